"""`sluice dlq` on real brokers: what is replayed is the original, once, and becomes a detection."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Message, TopicPartition
from confluent_kafka.admin import AdminClient

import images
from brokers import EMBEDDED, Broker, unique_name
from consumer.errors import KafkaError
from consumer.messages import encode_dead_letter
from consumer.tools.dlq.dead_letters import DeadLetterRecord, Selection
from consumer.tools.dlq.replay import Replayer
from consumer.tools.dlq.replay_writer import TransactionalWriter
from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker, dies_with_parent
from consumer.tools.kafka.reader import open_reader
from consumer.types import Frame, Receipt, Record, Rejected
from consumer.types import TopicPartition as Input
from kafka_clients import new_producer
from sluice_process import Topics, produce, reading, running

AT = 1_700_000_000_000
ORIGINAL = (("frame-id", b"7"), ("raw", b"\x00\xff"), ("none", None), ("ce_id", b"theirs"))


class Dlq:
    """`sluice dlq` as a person calls it, on one dead-letter topic, with a group of its own."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.broker, self.topic, self.group = broker, topic, unique_name("replay")

    def command(self, name: str, *more: str) -> list[str]:
        settings = [f"-X{n}={v}" for n, v in self.broker.client_settings.items() if n.startswith("fetch.")]
        common = ["--bootstrap-servers", self.broker.bootstrap_servers, "--topic", self.topic, *settings]
        group = ["--group", self.group] if name == "replay" else []
        return [sys.executable, "-m", "consumer", "dlq", name, *common, *group, *more]

    def __call__(self, name: str, *more: str, code: int = 0) -> str:
        """What it printed; its stderr is in `said`."""
        done = subprocess.run(self.command(name, *more), capture_output=True, text=True, timeout=120, check=False)
        self.said = done.stderr
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def replay(self, *more: str, code: int = 0) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self("replay", "--yes", "--json", *more, code=code))
        return said

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = dies_with_parent([*self.command("replay", "--yes", "--json", *more)])
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_dead_letters(
    broker: Broker, topics: Topics, letters: Sequence[tuple[str, bytes, str]], **more: Any
) -> list[Record]:
    """Write dead letters (source, value, reason) of frames 0, 1, ... in order; returns the original records."""
    producer = new_producer(broker, partitioner="murmur2_random")
    records = []
    for n, (source, value, reason) in enumerate(letters):
        record = Record(source.encode(), value, (*ORIGINAL, ("n", b"%d" % n)), AT + n)
        frame = Frame(source, str(n), AT, value, 0.0, Receipt(Input(topics.frames, 0), n, 1), record)
        rejected = Rejected("decode", reason, f"why {n}")
        options = {"source": "/sluice/g", "max_bytes": 10**7, "now_ms": int(time.time() * 1000)} | more
        message = encode_dead_letter(frame, rejected, **options)
        producer.produce(
            topics.dead, message.value, message.key, headers=message.headers, timestamp=message.timestamp_ms or 0
        )
        records.append(record)
    assert producer.flush(60) == 0
    return records


def number(message: Message) -> int:
    return int(dict(message.headers())["n"])


def read_frames(broker: Broker, topic: str, count: int) -> list[Message]:
    """The messages of a topic, which are so many and no more."""
    with reading(broker, topic) as reader:
        reader.read(count, 30)
        assert len(reader.drain()) == count
        return reader.messages


@pytest.fixture
def topics(broker: Broker) -> Topics:
    return Topics.on(broker, partitions=3)


@pytest.fixture
def dlq(broker: Broker, topics: Topics) -> Dlq:
    return Dlq(broker, topics.dead)


def mode(broker: Broker) -> list[str]:
    """The embedded broker cannot roll back."""
    return [] if broker.capabilities.transactions else ["--at-least-once"]


def test_what_is_replayed_is_the_original_byte_for_byte_and_counted(broker: Broker, topics: Topics, dlq: Dlq) -> None:
    """Catches: headers of the dead letter left on the record, a lost ce_id, a rewritten key, an old timestamp."""
    before_ms = time.time_ns() // 1_000_000
    sent = write_dead_letters(broker, topics, [(f"cam-{n % 3}", bytes([n]) * 100, "damaged") for n in range(9)])
    said = dlq.replay(*mode(broker))
    assert (said["replayed"], said["to"], said["ended"]) == (9, {topics.frames: 9}, "end")
    for message in read_frames(broker, topics.frames, 9):
        record = sent[number(message)]
        assert (message.key(), message.value()) == (record.key, record.value)
        assert message.timestamp()[1] >= before_ms
        first = ("sluice-original-timestamp-ms", b"%d" % (record.timestamp_ms or 0))
        assert message.headers() == [*record.headers, first, ("sluice-replays", b"1")]


def test_a_frame_replayed_after_its_cause_is_fixed_becomes_a_detection(
    broker: Broker, topics: Topics, dlq: Dlq
) -> None:
    """The real program at both ends. Catches a replay that looks right and that the program cannot read."""
    frame = images.jpeg(320, 240)
    with running(broker, topics, "simulated://0ms@1,0ms@32", decode__max_bytes=1024) as sluice:
        produce(broker, topics.frames, [("cam-1", frame)], headers={"frame-id": "7"}, timestamp=AT)
        with reading(broker, topics.dead) as dead_letters:
            dead_letters.read(1, 60, alive=lambda: sluice.running)
        sluice.terminate()
        (row,) = map(json.loads, dlq("list", "--json").splitlines())
        assert (row["reason"], row["source_id"], row["bytes"]) == ("too_large", "cam-1", len(frame))
        assert dlq.replay(*mode(broker))["replayed"] == 1
        sluice.options = {"decode.max_bytes": 10**6}
        sluice.start()
        with reading(broker, topics.detections) as reader:
            reader.read(1, 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    (result,) = reader.results()
    assert (result["source_id"], result["frame_id"], result["captured_at_ms"]) == ("cam-1", "7", AT)
    assert (result["width"], result["height"]) == (320, 240)


def test_a_frame_that_fails_again_is_replayed_until_max_replays(broker: Broker, topics: Topics, dlq: Dlq) -> None:
    """The real program. Catches: a loop without an end, and letters that grow with each turn."""
    with running(broker, topics, "simulated://0ms@1,0ms@32") as sluice, reading(broker, topics.dead) as dead_letters:
        produce(broker, topics.frames, [("cam-1", b"no image")])
        for turn in range(1, 4):
            dead_letters.read(turn, 60, alive=lambda: sluice.running)
            expected = 1 if turn <= 2 else 0
            assert dlq.replay(*mode(broker), "--max-replays", "2")["replayed"] == expected
        assert sluice.terminate() == 0, sluice.log
    rows = [json.loads(line) for line in dlq("list", "--json").splitlines()]
    assert [row["replays"] for row in rows] == [0, 1, 2]
    assert [len(message.headers()) for message in dead_letters.messages] == [11, 12, 12]
    said = dlq("replay", "--yes", *mode(broker), "--max-replays", "2")
    assert "replayed 0" in said


def test_a_dry_run_says_what_would_go_and_writes_nothing(broker: Broker, topics: Topics, dlq: Dlq) -> None:
    """Catches: a dry run that commits, so that the real one finds nothing left."""
    write_dead_letters(broker, topics, [("cam-1", b"x", "damaged")] * 5 + [("cam-2", b"y", "too_large")] * 2)
    said = dlq.replay("--dry-run")
    assert (said["replayed"], said["reasons"]) == (7, {"damaged": 5, "too_large": 2})
    assert "would replay 5" in dlq("replay", "--dry-run", "--reason", "damaged")
    with reading(broker, topics.frames) as reader:
        assert reader.drain() == []
    assert dlq.replay(*mode(broker))["replayed"] == 7


def test_limit_ends_it_and_the_next_run_goes_on_there(broker: Broker, topics: Topics, dlq: Dlq) -> None:
    """Catches: progress that counts what was read instead of what was sent."""
    write_dead_letters(broker, topics, [(f"cam-{n % 4}", b"x", "damaged") for n in range(20)])
    said = [dlq.replay(*mode(broker), "--limit", "8", "--batch", "3") for _ in range(4)]
    assert [(each["replayed"], each["ended"]) for each in said] == [(8, "limit"), (8, "limit"), (4, "end"), (0, "end")]
    assert Counter(map(number, read_frames(broker, topics.frames, 20))) == Counter(range(20))


def test_a_letter_replayed_to_another_topic_can_still_go_to_its_own(broker: Broker, topics: Topics, dlq: Dlq) -> None:
    """Catches: a trial run on a topic of one's own that uses up the letters."""
    write_dead_letters(broker, topics, [("cam-1", b"x", "damaged")] * 3)
    trial = broker.new_topic(1)
    assert dlq.replay(*mode(broker), "--to", trial)["to"] == {trial: 3}
    assert dlq.replay(*mode(broker), "--to", trial)["replayed"] == 0
    assert dlq.replay(*mode(broker))["to"] == {topics.frames: 3}
    assert len(read_frames(broker, trial, 3)) == 3


def test_a_truncated_letter_is_left_unless_asked_for_and_stays_known_as_one(
    broker: Broker, topics: Topics, dlq: Dlq
) -> None:
    """Catches: half an image sent to the detector as if it were whole."""
    write_dead_letters(broker, topics, [("cam-1", b"x" * 9000, "damaged")], max_bytes=4096)
    said = dlq.replay(*mode(broker))
    assert (said["replayed"], said["left"]["truncated"]) == (0, 1)
    assert "--include-truncated" in dlq("replay", "--yes", *mode(broker))
    assert dlq.replay(*mode(broker), "--include-truncated")["replayed"] == 1
    (message,) = read_frames(broker, topics.frames, 1)
    headers = dict(message.headers())
    assert headers["sluice-truncated"] == b"true"
    assert headers["sluice-original-bytes"] == b"9000"


def test_list_and_show_find_what_is_there_and_show_saves_it_whole(
    broker: Broker, topics: Topics, dlq: Dlq, tmp_path: Path
) -> None:
    """Catches: the last batch of a partition missed, junk hidden, control characters on the terminal."""
    good = images.jpeg(64, 48)
    records = write_dead_letters(
        broker, topics, [("cam-\x1b[31m", b"\x1b]0;owned\x07", "bad_source_id"), ("cam-2", good, "damaged")]
    )
    produce(broker, topics.dead, [("who", b"junk\x1b[2J")])
    said = dlq("list")
    assert "\x1b" not in said
    assert "2 dead letters: " in said
    assert "1 record is not a dead letter of Sluice" in said
    assert said.count("not a dead letter:") == 1
    assert "bad_source_id" not in dlq("list", "--reason", "damaged").splitlines()[1]
    (row,) = [json.loads(line) for line in dlq("list", "--json", "--source", "cam-2").splitlines() if "damaged" in line]
    shown = dlq("show", row["place"], "--save", str(tmp_path / "frame.jpg"))
    assert (tmp_path / "frame.jpg").read_bytes() == records[1].value
    assert "JPEG, 64x48" in shown
    assert "raw = \\x00\\xff" in shown
    assert dlq("show", row["id"]) == shown
    assert json.loads(dlq("show", row["id"], "--json"))["frame"]["image"]["width"] == 64
    dlq("show", row["place"], "--save", str(tmp_path / "frame.jpg"), code=2)
    dlq("show", "0@999", code=4)
    dlq("show", "frames/9/9", code=4)
    hint = dlq("list", "--reason", "damagd")
    assert "there are: bad_source_id, damaged" in dlq.said, (hint, dlq.said)


def test_without_a_person_to_ask_it_writes_nothing(broker: Broker, topics: Topics, dlq: Dlq) -> None:
    """Catches: a script that replays because nobody said no."""
    write_dead_letters(broker, topics, [("cam-1", b"x", "damaged")])
    done = subprocess.run(dlq.command("replay"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert dlq.replay(*mode(broker), "--dry-run")["replayed"] == 1


@pytest.mark.parametrize("to", ["--to-dead", "__consumer_offsets"])
def test_it_never_writes_where_no_frames_belong(broker: Broker, topics: Topics, dlq: Dlq, to: str) -> None:
    """Catches: a replay that feeds itself, and a forged header that names a topic of the broker's own."""
    write_dead_letters(broker, topics, [("cam-1", b"x", "damaged")])
    dlq("replay", "--yes", "--to", topics.dead if to == "--to-dead" else to, code=2)
    assert "Traceback" not in dlq.said


# On Apache Kafka alone: transactions


@pytest.fixture
def apache_topics(apache_broker: Broker) -> Topics:
    return Topics.on(apache_broker, partitions=3)


@pytest.mark.kafka
def test_no_letter_goes_twice_whatever_filters_it_is_asked_with(apache_broker: Broker, apache_topics: Topics) -> None:
    """Catches: progress for each filter alone, so that overlapping ones repeat; and one for all, which skips."""
    dlq = Dlq(apache_broker, apache_topics.dead)
    write_dead_letters(
        apache_broker, apache_topics, [(f"cam-{n % 4}", b"x", ("damaged", "too_large")[n % 2]) for n in range(24)]
    )
    counts = [
        dlq.replay(*options)["replayed"]
        for options in (
            ["--reason", "damaged", "--limit", "5"],
            ["--source", "cam-0", "--since", "1h"],
            ["--source", "cam-1", "--stage", "decode"],
            ["--reason", "bad_header"],
            ["--input-topic", "elsewhere"],
            [],
            ["--reason", "damaged"],
            ["--since", "2h"],
        )
    ]
    assert sum(counts) == 24
    assert counts[0] == 5
    assert counts[2] == 6
    assert counts[3:5] == [0, 0]
    assert counts[6:] == [0, 0]
    assert Counter(map(number, read_frames(apache_broker, apache_topics.frames, 24))) == Counter(range(24))


@pytest.mark.kafka
def test_sigkill_in_mid_replay_repeats_nothing_and_loses_nothing(apache_broker: Broker, apache_topics: Topics) -> None:
    """Kills at random moments over 500 letters. Catches: progress that is lost, or ahead of what was written."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    write_dead_letters(apache_broker, apache_topics, [(f"cam-{n % 9}", b"x" * 500, "damaged") for n in range(500)])
    dlq = Dlq(apache_broker, apache_topics.dead)
    kills = 0
    with reading(apache_broker, apache_topics.frames) as reader:
        for _ in range(4):
            child = dlq.start("--batch", "4")
            want = len(reader.messages) + chance.randrange(10, 90)
            reader.read(want, 60, alive=lambda child=child: child.poll() is None)
            child.kill()
            child.communicate()
            kills += 1
        before = len(reader.messages)
        assert before < 500, "the kills came too late to show anything"
        said = dlq.replay()
        reader.read(500, 60)
        reader.drain()
        print(f"kills {kills}, {before} seen at the last of them, the last run sent {said['replayed']}")
        assert Counter(map(number, reader.messages)) == Counter(range(500))
    assert dlq.replay()["replayed"] == 0


DOOMED = """
import os, signal, sys
from consumer.cli import main
from consumer.tools import clients

point, make = sys.argv.pop(1), clients.producer

class Doomed:
    def __init__(self, *arguments):
        self.client, self.sent = make(*arguments), 0

    def __getattr__(self, name):
        return getattr(self.client, name)

    def die_at(self, here):
        if here == point and self.sent >= 30:
            os.kill(os.getpid(), signal.SIGKILL)

    def produce(self, *arguments, **options):
        self.client.produce(*arguments, **options)
        self.sent += 1

    def flush(self, *timeout):
        self.client.flush(*timeout)
        self.die_at("acknowledged, progress not committed")

    def send_offsets_to_transaction(self, *arguments):
        self.client.flush(30)
        self.die_at("acknowledged")
        self.client.send_offsets_to_transaction(*arguments)
        self.die_at("offsets sent")

    def commit_transaction(self, *arguments):
        self.client.commit_transaction(*arguments)
        self.die_at("committed")

clients.producer = Doomed
main()
"""


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("point", "more", "repeats"),
    [
        ("acknowledged", [], 0),
        ("offsets sent", [], 0),
        ("committed", [], 0),
        ("acknowledged, progress not committed", ["--at-least-once"], 10),
    ],
)
def test_killed_at_any_step_of_a_chunk_a_replay_repeats_nothing(
    apache_broker: Broker, apache_topics: Topics, point: str, more: list[str], repeats: int
) -> None:
    """At the worst moments, which chance seldom finds: --at-least-once, the wrong design, repeats a chunk there."""
    write_dead_letters(apache_broker, apache_topics, [("cam-1", b"x" * 500, "damaged")] * 100)
    dlq = Dlq(apache_broker, apache_topics.dead)
    arguments = dlq.command("replay", "--yes", "--batch", "10", *more)[3:]
    killed = subprocess.run([sys.executable, "-c", DOOMED, point, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert dlq.replay("--batch", "10", *more)["replayed"] == (70 if point == "committed" else 80)
    messages = read_frames(apache_broker, apache_topics.frames, 100 + repeats)
    assert Counter(map(number, messages)).keys() == set(range(100))


@pytest.mark.kafka
def test_of_two_replays_at_once_the_older_one_stops_and_nothing_goes_twice(
    apache_broker: Broker, apache_topics: Topics
) -> None:
    """Even with different filters. Catches: two persons on call who replay the same letters."""
    write_dead_letters(apache_broker, apache_topics, [(f"cam-{n % 9}", b"x" * 500, "damaged") for n in range(2000)])
    dlq = Dlq(apache_broker, apache_topics.dead)
    with reading(apache_broker, apache_topics.frames) as reader:
        older = dlq.start("--batch", "1")
        reader.read(10, 60, alive=lambda: older.poll() is None)
        newer = dlq.replay("--reason", "damaged")
        _, said = older.communicate(timeout=60)
        assert older.returncode == 4, said
        assert "another replay of this group has started" in said
        assert 0 < newer["replayed"] < 2000
        reader.read(2000, 60)
        reader.drain()
    assert Counter(map(number, reader.messages)) == Counter(range(2000))


@pytest.mark.kafka
def test_a_replay_that_reconnects_repeats_nothing_that_another_one_sent(
    apache_broker: Broker, apache_topic: Callable[..., str]
) -> None:
    """Catches: a new connection that fences the newer replay and goes on from a stale memory."""
    topics = Topics(apache_topic(), apache_topic(), apache_topic())
    write_dead_letters(apache_broker, topics, [("cam-1", b"x", "damaged")] * 10)
    servers, group = apache_broker.bootstrap_servers, unique_name("replay")
    made: list[TransactionalWriter] = []

    def run(limit: int, on_letter: Callable[[DeadLetterRecord], object]) -> None:
        with open_reader(servers, {"isolation.level": "read_committed"}, threading.Event(), group) as reader:

            def connect() -> TransactionalWriter:
                made.append(TransactionalWriter(servers, {}, group, reader.client))
                return made[-1]

            options: dict[str, Any] = {"make_writer": connect, "limit": limit, "batch": 1, "stop": threading.Event()}
            Replayer(reader, topics.dead, Selection(), **options, on_letter=on_letter).run()

    def another_one(letter: DeadLetterRecord) -> None:
        if letter.offset == 2:
            run(4, lambda _: None)
            made[0]._suspect = True  # as after an answer that came late

    with pytest.raises(KafkaError, match="meanwhile"):
        run(10, another_one)
    run(10, lambda _: None)
    assert [number(message) for message in read_frames(apache_broker, topics.frames, 10)] == list(range(10))


@pytest.mark.kafka
def test_a_letter_that_the_topic_refuses_is_named_and_does_not_block_others(
    apache_broker: Broker, apache_topic: Callable[..., str]
) -> None:
    """Catches: one refused record that rolls its whole chunk back forever, and is not named."""
    topics = Topics(apache_topic(max_message_bytes=2000), apache_topic(), apache_topic())
    values = [b"x", b"x", random.Random(1).randbytes(5000), b"x"]
    write_dead_letters(apache_broker, topics, [("cam-1", value, "damaged") for value in values])
    dlq = Dlq(apache_broker, topics.dead)
    for _ in range(2):
        dlq("replay", "--yes", code=5)
        assert "dead letter 0@2 was refused" in dlq.said, dlq.said
        assert len(read_frames(apache_broker, topics.frames, 2)) == 2


def test_a_broker_that_forgets_metadata_is_found_out_before_anything_is_sent(
    embedded_broker: EmbeddedBroker,
) -> None:
    """The embedded one. Catches: an offset without its filters, taken for "all below was replayed": letters lost."""
    broker = Broker("embedded", embedded_broker.bootstrap_servers, CLIENT_SETTINGS, EMBEDDED, lambda *_: None)
    topics = Topics(*(unique_name("topic") for _ in range(3)))
    embedded_broker.create_topics({topics.frames: 1, topics.detections: 1, topics.dead: 1})
    dlq = Dlq(broker, topics.dead)
    write_dead_letters(broker, topics, [("cam-1", b"x", ("damaged", "too_large")[n % 2]) for n in range(10)])
    dlq("replay", "--yes", code=4)
    assert "--at-least-once" in dlq.said
    with reading(broker, topics.frames) as reader:
        assert reader.drain() == []
    said = [dlq.replay("--at-least-once", "--reason", reason) for reason in ("too_large", "damaged", "damaged")]
    assert [each["replayed"] for each in said] == [5, 5, 0]
    assert "forgets" in dlq.said


@pytest.mark.kafka
def test_a_missing_topic_is_named_and_nothing_is_made(apache_broker: Broker, apache_topics: Topics) -> None:
    gone = unique_name("gone")
    write_dead_letters(apache_broker, Topics(gone, "", apache_topics.dead), [("cam-1", b"x", "damaged")])
    dlq = Dlq(apache_broker, apache_topics.dead)
    dlq("replay", "--yes", code=4)
    assert gone in dlq.said
    assert "--to" in dlq.said


@pytest.mark.kafka
def test_an_offset_that_an_operator_sets_counts_as_replayed(
    apache_broker: Broker, apache_topic: Callable[..., str]
) -> None:
    """`kafka-consumer-groups --reset-offsets` knows no metadata. Catches: progress that ignores the operator."""
    topics = Topics(apache_topic(), apache_topic(), apache_topic())
    write_dead_letters(apache_broker, topics, [("cam-1", b"x", "damaged")] * 10)
    dlq = Dlq(apache_broker, topics.dead)
    admin = AdminClient({"bootstrap.servers": apache_broker.bootstrap_servers})
    offsets = ConsumerGroupTopicPartitions(dlq.group, [TopicPartition(topics.dead, 0, 6)])
    admin.alter_consumer_group_offsets([offsets])[dlq.group].result(20)
    assert dlq.replay()["replayed"] == 4
    assert [number(m) for m in read_frames(apache_broker, topics.frames, 4)] == [6, 7, 8, 9]
