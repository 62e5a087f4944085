"""The main job on real brokers, with the real program in a process of its own."""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path
from typing import Any

import confluent_kafka
import msgpack
import pytest
from jsonschema import Draft202012Validator

import images
from brokers import Broker
from sluice_process import Reader, Topics, produce, reading, running
from waiting import wait_until

SCHEMAS = Path(__file__).parents[2] / "schemas"
FREE = "simulated://0ms@1,0ms@32"


def by_source(results: list[dict[str, Any]]) -> dict[str, list[int]]:
    offsets: dict[str, list[int]] = collections.defaultdict(list)
    for result in results:
        offsets[result["source_id"]].append(result["input"]["offset"])
    return offsets


def first_seen(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a reader has that drops repeats by ID."""
    return list({result["id"]: result for result in results}.values())


@pytest.mark.parametrize("output_format", ["msgpack", "json"])
def test_every_frame_comes_back_once_in_order_and_keyed_by_its_source(broker: Broker, output_format: str) -> None:
    """Catches: results keyed by the wrong thing, order lost between decode threads, a batch's tail left behind."""
    topics = Topics.on(broker)
    frames = [images.jpeg(64, 48, seed) for seed in range(8)]
    sent = [(f"cam-{n % 5}", frames[n % 8]) for n in range(600)]
    with (
        running(broker, topics, "simulated://1ms@1,4ms@32", output__format=output_format) as sluice,
        reading(broker, topics.detections) as reader,
    ):
        produce(broker, topics.frames, sent)
        reader.read(600, 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
        reader.drain()
    results = reader.results()
    assert len(results) == len({result["id"] for result in results}) == 600
    assert all(offsets == sorted(offsets) for offsets in by_source(results).values())
    validator = Draft202012Validator(json.loads((SCHEMAS / "detections.schema.json").read_text()))
    for message, result in zip(reader.messages, results, strict=True):
        headers = dict(message.headers())
        assert message.key().decode() == result["source_id"]
        assert headers["ce_id"].decode() == result["id"]
        assert (result["width"], result["height"]) == (64, 48)
        validator.validate(result)


def test_what_was_acknowledged_is_committed_at_the_end_and_nothing_is_read_twice(broker: Broker) -> None:
    """Catches: a drain that ends without a commit, so that each rolling update repeats frames."""
    topics = Topics.on(broker, partitions=2)
    with running(broker, topics, FREE) as sluice, reading(broker, topics.detections) as reader:
        for turn in range(2):
            produce(broker, topics.frames, [(f"cam-{n % 4}", images.jpeg(64, 48)) for n in range(100)])
            reader.read(100 * (turn + 1), 60, alive=lambda: sluice.running)
            assert sluice.terminate() == 0, sluice.log
            sluice.start()
        sluice.wait_ready()
        assert sluice.terminate() == 0, sluice.log
        assert len(reader.drain()) == 200


def test_a_msgpack_envelope_and_a_raw_image_give_the_same_detections(broker: Broker) -> None:
    """Catches: the two input forms taking different ways through the program."""
    topics = Topics.on(broker, partitions=1)
    image = images.jpeg(320, 240)
    envelope = {"source_id": "cam-b", "frame_id": "7", "captured_at_ms": 1_700_000_000_123, "data": image}
    with running(broker, topics, FREE) as sluice, reading(broker, topics.detections) as reader:
        headers = {"frame-id": "7", "captured-at-ms": "1700000000123", "content-type": "image/jpeg"}
        produce(broker, topics.frames, [("cam-a", image)], headers=headers)
        produce(broker, topics.frames, [(None, msgpack.packb(envelope))])
        reader.read(2, 60, alive=lambda: sluice.running)
    raw, packed = reader.results()
    assert (raw["source_id"], packed["source_id"]) == ("cam-a", "cam-b")
    for name in ("frame_id", "captured_at_ms", "width", "height", "detections"):
        assert raw[name] == packed[name]
    assert raw["captured_at_ms"] == 1_700_000_000_123


def hostile_records() -> list[tuple[bytes | str | None, bytes | None, str]]:
    """(key, value, the reason that its dead letter must give)."""
    bomb = b"\x81\xa1a" * 300_000 + b"\x01"
    wrong = msgpack.packb({"source_id": "cam-1", "data": 5})
    good = images.jpeg(64, 48)
    records: list[tuple[bytes | str | None, bytes | None, str]] = [
        ("cam-1", b"", "empty"),
        ("cam-1", None, "empty"),
        ("cam-1", b"garbage", "unsupported_format"),
        ("cam-1", wrong, "bad_envelope"),
        ("cam-1", bomb, "bad_envelope"),
        ("cam-1", b"\xdf\xff\xff\xff\xff", "bad_envelope"),
        (b"\xff\xfe", good, "bad_source_id"),
        (None, good, "bad_source_id"),
        ("cam\x1b[31m", good, "bad_source_id"),
        ("x" * 1000, good, "bad_source_id"),
    ]
    records += [("cam-1", value, reason) for value, reason in images.hostile().values()]
    return records


def test_each_bad_frame_becomes_a_dead_letter_with_its_reason_and_its_neighbours_are_detected(broker: Broker) -> None:
    """Catches: a bad frame that fails its batch, that is dropped, or that kills the process."""
    topics = Topics.on(broker, partitions=1)
    hostile = hostile_records()
    good = ("cam-good", images.jpeg(64, 48))
    sent: list[tuple[bytes | str | None, bytes | None]] = [good]
    for key, value, _ in hostile:
        sent += [(key, value), good]
    with running(broker, topics, FREE) as sluice, reading(broker, topics.detections) as reader:
        produce(broker, topics.frames, sent)
        reader.read(len(hostile) + 1, 60, alive=lambda: sluice.running)
        with reading(broker, topics.dead) as morgue:
            morgue.read(len(hostile), 30, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    assert by_source(reader.results()) == {"cam-good": list(range(0, 2 * len(hostile) + 1, 2))}
    letters = {int(header(letter, "offset")): letter for letter in morgue.messages}
    for n, (key, value, reason) in enumerate(hostile):
        letter = letters[2 * n + 1]
        assert header(letter, "exception.class.name") == reason
        assert header(letter, "topic") == topics.frames
        assert letter.value() == value
        assert letter.key() == (key.encode() if isinstance(key, str) else key)


def header(message: confluent_kafka.Message, name: str) -> str:
    return dict(message.headers())["__connect.errors." + name].decode()


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_sigkill_in_mid_stream_loses_nothing_and_keeps_order(apache_broker: Broker) -> None:
    """Ten kills over 5,000 frames. Catches: a commit ahead of an acknowledgement, a watermark over a gap.

    Repeats are bounded by what a kill can leave acknowledged and not committed: one commit interval at the engine's
    rate, and what was in flight (the ring's four batches).
    """
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    topics = Topics.on(apache_broker)
    frames, kills, batch, interval_ms, rate = 5000, 10, 16, 200, 400
    options = {
        "batching__max_batch_size": batch,
        "kafka__commit_interval_ms": interval_ms,
        "kafka__consumer": {"session.timeout.ms": 1500, "heartbeat.interval.ms": 300},
    }
    image = [images.jpeg(64, 48, seed) for seed in range(4)]
    produce(apache_broker, topics.frames, [(f"cam-{n % 8}", image[n % 4]) for n in range(frames)])
    with (
        running(apache_broker, topics, "simulated://10ms@1,40ms@16", **options) as sluice,
        reading(apache_broker, topics.detections) as reader,
    ):
        for _ in range(kills):
            unique_before = len(first_seen(reader.results()))
            progress = unique_before + chance.randrange(150, 350)
            read_until_unique(reader, progress, lambda: sluice.running)
            sluice.kill()
            reader.drain(0.2)
            sluice.start()
        read_until_unique(reader, frames, lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
        reader.drain()
    results = reader.results()
    unique = first_seen(results)
    assert len(unique) == frames
    assert all(offsets == sorted(offsets) for offsets in by_source(unique).values())
    repeats = len(results) - frames
    in_flight = 4 * batch
    print(f"repeats {repeats} in {kills} kills")
    assert repeats <= kills * (in_flight + rate * (interval_ms / 1000) + batch)


def read_until_unique(reader: Reader, count: int, alive: Any) -> None:
    seen = {dict(message.headers())["ce_id"] for message in reader.messages}
    while len(seen) < count:
        before = len(reader.messages)
        reader.read(before + 1, 60, alive)
        seen.update(dict(message.headers())["ce_id"] for message in reader.messages[before:])


def test_a_wrong_option_stops_at_the_start_with_its_name_and_code_2(broker: Broker) -> None:
    """Catches: a program that joins the group before it knows that it cannot work."""
    topics = Topics.on(broker, partitions=1)
    with running(broker, topics, FREE, batching__max_batch_size=0) as sluice:
        assert sluice.wait() == 2
    assert "batching.max_batch_size" in sluice.log
    assert "Traceback" not in sluice.log


@pytest.mark.kafka
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_partitions_move_between_consumers_under_load_without_a_loss_or_a_repeat(
    apache_broker: Broker, protocol: str
) -> None:
    """A second consumer joins, then the first is told to go, both in mid-stream.

    Catches: a revocation that does not commit what it finished, results published for a partition that has gone, a
    drain that leaves its watermark behind what fair turns between two sources of a partition had finished.
    """
    frames, topics = 5000, Topics.on(apache_broker)
    options = {"batching__max_batch_size": 16, "kafka__commit_interval_ms": 5000}
    if protocol == "consumer":
        options["kafka__consumer"] = {"group.protocol": "consumer"}
    image = [images.jpeg(64, 48, seed) for seed in range(4)]
    # One source sends most of the frames, so that the others overtake it in every partition.
    sent = [("cam-busy" if n % 3 else f"cam-{n % 7}", image[n % 4]) for n in range(frames)]
    produce(apache_broker, topics.frames, sent)
    engine = "simulated://10ms@1,40ms@16"
    with (
        running(apache_broker, topics, engine, **options) as first,
        reading(apache_broker, topics.detections) as reader,
    ):
        reader.read(300, 60, alive=lambda: first.running)
        with running(apache_broker, topics, engine, kafka__group_id=first.group, **options) as second:
            wait_until(lambda: owned(second) > 0, 60, "the second consumer to have its share")
            reader.read(len(reader.messages) + 200, 60, alive=lambda: first.running and second.running)
            assert first.terminate() == 0, first.log
            read_until_unique(reader, frames, lambda: second.running)
            assert second.terminate() == 0, second.log
            reader.drain()
    results = reader.results()
    assert len(first_seen(results)) == frames
    repeated = [r["id"] for r in results if sum(r["id"] == o["id"] for o in results) > 1]
    assert not repeated, f"repeats {repeated}\n{first.log}\n{second.log}"
    assert all(offsets == sorted(offsets) for offsets in by_source(results).values())


def owned(sluice: Any) -> float:
    """Partitions assigned to this process now."""
    lines = sluice.get("/metrics")[1].splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith("sluice_assigned_partitions ")), 0.0)
