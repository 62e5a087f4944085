"""`sluice verify` on Apache Kafka: it finds what is wrong in topics written by hand, and nothing in those of Sluice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions
from confluent_kafka import TopicPartition as Place

import images
from apache_kafka import KafkaCluster
from brokers import EMBEDDED, Broker, unique_name
from consumer.errors import KafkaError
from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker, dies_with_parent
from consumer.tools.verify.brokers import Brokers
from exactly_once import EXACTLY_ONCE, frames
from fleet import ENTRY, PATHS
from kafka_clients import consumer_settings, group_offset, new_producer
from raw_producer import produce_raw
from sluice_entry import BUG
from sluice_process import Sluice, Topics, produce, reading, running
from verify_topics import AT, ByHand, kinds, run_in_process, sluice_verify
from waiting import wait_until

pytestmark = pytest.mark.kafka

ENGINE = "simulated://5ms@1,20ms@16"


@pytest.fixture
def by_hand(apache_broker: Broker) -> ByHand:
    return ByHand(apache_broker)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_the_real_program_keeps_its_promises_while_it_runs_and_after_it(apache_broker: Broker, delivery: str) -> None:
    """Also across a SIGKILL. Catches: a false alarm at markers, aborted transactions, open ones, or a commit that is
    newer than the outcomes that were read."""
    sent, topics = frames(1500), Topics.on(apache_broker)
    options = {**EXACTLY_ONCE, "delivery": delivery, "kafka__commit_interval_ms": 50}
    options["kafka__consumer"] = {**apache_broker.client_settings, "group.instance.id": "pod-0"}
    with (
        running(apache_broker, topics, ENGINE, **options) as sluice,
        reading(apache_broker, topics.detections) as results,
    ):
        produce(apache_broker, topics.frames, sent)
        arguments = [
            *("--bootstrap-servers", apache_broker.bootstrap_servers, "--group", sluice.group, "--json"),
            *("--input", topics.frames, "--output", topics.detections, "--dead-letter", topics.dead),
            *("--delivery", delivery.replace("_", "-")),
        ]
        results.read(100, 60, alive=lambda: sluice.running)
        checks = 0
        while len(results.messages) < 1300:
            found = json.loads(sluice_verify(*arguments, code=0))
            assert found["counts"]["judged"] > 0
            checks += 1
            if checks == 2:
                sluice.kill()
                sluice.start()
            results.read(len(results.messages) + 100, 60, alive=lambda: sluice.running)
        assert checks > 2
        results.read(sum(value != b"damaged" for _, value in sent), 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    counts = json.loads(sluice_verify(*arguments, code=0))["counts"]
    assert (counts["records"], counts["answered"], counts["judged"], counts["pending"]) == (1500, 1500, 1500, 0)
    assert not any(counts["ignored"].values())


@pytest.mark.parametrize(("bug", "kind"), [("drop-rejections", "missing"), ("batches-out-of-order", "order")])
def test_a_program_with_a_bug_is_found_out(apache_broker: Broker, bug: str, kind: str) -> None:
    """The seeded bugs of the fault rig. Catches: a checker that knows violations only as its own tests write them."""
    sent, topics = frames(1000), Topics.on(apache_broker)
    produce(apache_broker, topics.frames, sent)
    sluice = Sluice(
        apache_broker,
        topics,
        ENGINE,
        {"batching.max_batch_size": 16, "kafka.commit_interval_ms": 50},
        entry=ENTRY,
        variables={BUG: bug, "PYTHONPATH": PATHS},
    )
    try:
        sluice.start().wait_ready()  # before that, the broker may not know the group's coordinator
        wait_until(lambda: group_offsets(sluice) == len(sent), 120, "all frames to be committed")
    finally:
        sluice.stop()
    options = ["--bootstrap-servers", apache_broker.bootstrap_servers, "--group", sluice.group, "--json"]
    options += ["--input", topics.frames, "--output", topics.detections, "--dead-letter", topics.dead]
    found = kinds(json.loads(sluice_verify(*options, code=1)))
    assert found.pop(kind) > 0
    assert found.keys() <= {"commit_ahead"}


def group_offsets(sluice: Sluice) -> int:
    """Committed offsets of all partitions, together."""
    return sum(group_offset(sluice.broker, sluice.group, sluice.topics.frames, n) for n in range(4))


def test_a_missing_outcome_is_found_with_its_source(by_hand: ByHand) -> None:
    """Catches: a loss that is covered by the outcomes around it."""
    by_hand.send(10).result(0, 1, 2, 3, 5, 6, 8).letter(7, 9).commit(10)
    found = by_hand.verify(code=1)
    assert kinds(found) == {"missing": 1, "commit_ahead": 1}
    missing = found["violations"][0]
    assert (missing["input"], missing["source"]) == (f"{by_hand.topics.frames}/0/4", "cam-1")


def test_a_repeat_breaks_exactly_once_and_is_only_counted_at_least_once(by_hand: ByHand) -> None:
    """Catches: a repeat that hides in the dead-letter topic."""
    by_hand.send(4).result(0, 1, 2, 3).result(1).letter(3).commit(4)
    found = by_hand.verify("--delivery", "exactly-once", code=1)
    assert kinds(found) == {"repeat": 2}
    assert {each["place"] for each in found["violations"]} == {
        f"{by_hand.topics.detections}[0]@4",
        f"{by_hand.topics.dead}[0]@0",
    }
    assert by_hand.verify("--delivery", "at-least-once", code=0)["counts"]["repeats"] == 2


def test_two_swapped_outcomes_of_one_source_are_found(by_hand: ByHand) -> None:
    """Catches: an order among all sources, which sources that overtake each other break."""
    by_hand.send(6).result(4, 5, source="a").result(0, 1, 3, 2, source="b").commit(6)
    found = by_hand.verify(code=1)
    assert kinds(found) == {"order": 1}
    assert found["violations"][0]["input"] == f"{by_hand.topics.frames}/0/2"
    assert found["violations"][0]["source"] == "b"


def test_a_committed_offset_that_was_set_ahead_is_found(by_hand: ByHand) -> None:
    """Catches: a group that skips records without an error."""
    by_hand.send(10).result(0, 1, 2).commit(3)
    assert by_hand.verify(code=0)["counts"]["pending"] == 7
    by_hand.commit(8)
    found = by_hand.verify(code=1)
    assert kinds(found) == {"missing": 5, "commit_ahead": 1}
    assert "committed 8" in found["violations"][-1]["text"]
    by_hand.result(*range(3, 10)).commit(15)
    assert kinds(by_hand.verify(code=1)) == {"commit_ahead": 1}


def test_markers_and_aborted_records_of_the_input_raise_no_alarm(by_hand: ByHand) -> None:
    """Catches: offsets that are counted instead of records, and an end of the topic that is never reached."""
    producer = new_producer(by_hand.broker, transactional_id=unique_name("camera"))
    producer.init_transactions(30)
    for commit in (True, False, True, False):
        producer.begin_transaction()
        by_hand.send(5, producer=producer)
        producer.commit_transaction(30) if commit else producer.abort_transaction(30)
    good = [*range(5), *range(12, 17)]  # 5 and 17 are markers of commits, 6 to 10 and 18 to 22 are aborted
    by_hand.result(*good).commit(24)
    counts = by_hand.verify("--delivery", "exactly-once", code=0)["counts"]
    assert (counts["records"], counts["answered"]) == (10, 10)
    by_hand.result(7)
    assert kinds(by_hand.verify(code=1)) == {"invented": 1}
    all_records = by_hand.verify("-X", "isolation.level=read_uncommitted", code=1)["counts"]
    assert (all_records["records"], all_records["answered"], all_records["missing"]) == (20, 11, 9)


def test_outcomes_of_aborted_transactions_are_none(by_hand: ByHand) -> None:
    """Catches: a reader of what is not committed, to whom each aborted try is a repeat, or an answer."""
    by_hand.send(4)
    plain, by_hand.producer = by_hand.producer, new_producer(by_hand.broker, transactional_id=unique_name("sluice"))
    by_hand.producer.init_transactions(30)
    for offsets, commit in (((0, 1), True), ((2, 3), False), ((2, 3), True)):
        by_hand.producer.begin_transaction()
        by_hand.result(*offsets)
        by_hand.producer.commit_transaction(30) if commit else by_hand.producer.abort_transaction(30)
    by_hand.commit(4)
    counts = by_hand.verify("--delivery", "exactly-once", code=0)["counts"]
    assert (counts["answered"], counts["outcomes_read"]) == (4, 4)
    by_hand.producer.begin_transaction()
    by_hand.result(1)
    by_hand.producer.abort_transaction(30)
    by_hand.producer = plain
    assert by_hand.verify("--delivery", "exactly-once", code=0)["counts"]["answered"] == 4


def test_a_transaction_that_is_not_marked_yet_is_waited_for(by_hand: ByHand) -> None:
    """Its offsets are committed before its marker is in the output topic. Catches: a false loss in that moment."""
    by_hand.send(4).result(0, 1)
    by_hand.producer = new_producer(by_hand.broker, transactional_id=unique_name("sluice"))
    by_hand.producer.init_transactions(30)
    by_hand.producer.begin_transaction()
    by_hand.result(2, 3).commit(4)
    waited = []

    def progress(what: str, passed: int, total: int) -> None:
        waited.append(what)
        if waited.count("reading the outcomes") == 10:
            by_hand.producer.commit_transaction(30)

    report = run_in_process(by_hand, progress)
    assert report.result.clean
    assert report.result.partitions[0].answered == 4
    assert waited.count("reading the outcomes") >= 10


def open_transaction(by_hand: ByHand) -> None:
    """A result that is written and neither committed nor aborted."""
    by_hand.send(2).result(0).commit(2)
    by_hand.producer = new_producer(by_hand.broker, transactional_id=unique_name("sluice"))
    by_hand.producer.init_transactions(30)
    by_hand.producer.begin_transaction()
    by_hand.result(1)


def test_a_transaction_that_stays_open_is_reported_and_not_judged(by_hand: ByHand) -> None:
    """Catches: a check that hangs, or one that calls what it could not read lost."""
    open_transaction(by_hand)
    brokers = Brokers(by_hand.broker.bootstrap_servers, {}, threading.Event())
    with brokers.reader("read_committed", skips_deleted=False) as reader:
        reader._open_transaction_s = 1.0
        with pytest.raises(KafkaError, match="a transaction has been open at offset 1 of partition 0"):
            list(reader.scan(by_hand.topics.detections, {0: (0, 2)}))
    by_hand.producer.abort_transaction(30)


def test_ctrl_c_ends_it_without_a_result(by_hand: ByHand) -> None:
    """Catches: half of a topic that is judged as if it were all."""
    open_transaction(by_hand)
    command = dies_with_parent([sys.executable, "-m", "consumer", "verify", *by_hand.options()])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        watched = psutil.Process(process.pid)
        wait_until(watched.net_connections, 60, "the process to have a connection")
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, "")
    assert "nothing is judged" in said
    by_hand.producer.abort_transaction(30)


def test_an_outcome_that_is_written_after_its_commit_is_a_commit_ahead(by_hand: ByHand) -> None:
    """Catches: a commit before its outcome that is forgiven, because the outcome is there in the end."""
    by_hand.send(4).result(0, 1, 2).commit(4)

    def progress(what: str, passed: int, total: int) -> None:
        if what == "reading the input" and passed:
            by_hand.result(3)

    report = run_in_process(by_hand, progress)
    assert dict(report.result.totals) == {"commit_ahead": 1}
    assert report.result.partitions[0].answered == 4


@pytest.mark.parametrize(
    ("options", "records", "missing"),
    [
        ((), 10, 2),
        (("--from", "3"), 7, 1),
        (("--from", "3", "--to", "7"), 4, 0),
        (("--from", str(AT + 3000)), 7, 1),
        (("--from", str(AT + 2001), "--to", str(AT + 7000)), 4, 0),
        (("--from", "2023-11-14T22:13:21+00:00", "--to", "2023-11-14T22:13:24+00:00"), 3, 1),
        (("--to", "2023-11-14T22:13:21+00:00"), 1, 0),
    ],
)
def test_only_the_records_of_the_range_are_checked(
    by_hand: ByHand, options: Sequence[str], records: int, missing: int
) -> None:
    """Records 2 and 8 have no outcome. Catches: a range that is one off, and outcomes of others that are invented."""
    by_hand.send(10).result(0, 1, 3, 4, 5, 6, 7, 9).commit(10)
    found = by_hand.verify(*options, code=1 if missing else 0)
    assert (found["counts"]["records"], found["counts"]["missing"]) == (records, missing)
    assert kinds(found) == ({"missing": missing, "commit_ahead": 1} if missing else {})


def offsets_of(broker: Broker, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    with closing(Consumer(consumer_settings(broker))) as client:
        known = client.list_topics(timeout=10).topics
        return {
            (topic, number): client.get_watermark_offsets(Place(topic, number), timeout=10)[1]
            for topic in topics
            for number in known[topic].partitions
        }


def test_nothing_is_written_and_nothing_is_committed(apache_kafka: KafkaCluster, by_hand: ByHand) -> None:
    """Catches: a checker that joins a group, commits for itself or for the group, or makes a topic."""
    by_hand.send(50).result(*range(48)).commit(50)
    admin = apache_kafka.admin()

    def state() -> tuple[Any, ...]:
        topics = admin.list_topics(timeout=10).topics
        watched = [*(name for name in topics if name.startswith("__")), *vars_of(by_hand.topics)]
        request = [ConsumerGroupTopicPartitions(by_hand.group)]
        committed = admin.list_consumer_group_offsets(request)[by_hand.group].result(10).topic_partitions
        groups = {each.group_id for each in admin.list_consumer_groups().result(10).valid}
        return (
            sorted(topics),
            offsets_of(by_hand.broker, watched),
            [(each.topic, each.partition, each.offset) for each in committed],
            groups,
        )

    before = state()
    assert by_hand.group in before[3]
    assert kinds(by_hand.verify(code=1)) == {"missing": 2, "commit_ahead": 1}
    assert state() == before


def vars_of(topics: Topics) -> list[str]:
    return [topics.frames, topics.detections, topics.dead]


def test_records_of_others_in_the_output_topic_are_counted_and_ignored(by_hand: ByHand) -> None:
    """Catches: another program, or a header name that is not text, that decides or ends the check."""
    by_hand.send(3).result(0, 1, 2).commit(3)
    by_hand.producer.produce(by_hand.topics.detections, b"x", b"k", headers={"ce_id": b"1"})
    assert by_hand.producer.flush(30) == 0
    produce_raw(by_hand.broker, by_hand.topics.detections, b"k", b"v", [(b"\xff", b"x")])
    other = ByHand(by_hand.broker)
    other.topics = by_hand.topics
    other.result(0, 0, 99)
    ignored = by_hand.verify("--delivery", "exactly-once", code=0)["counts"]["ignored"]
    assert (ignored["foreign"], ignored["other_group"]) == (2, 3)


def test_every_partition_and_every_topic_is_checked(apache_broker: Broker) -> None:
    """Catches: offsets of one partition that answer for another's."""
    by_hand = ByHand(apache_broker, partitions=3)
    for partition in range(3):
        by_hand.send(5, partition)
        for offset in range(5):
            if (partition, offset) != (1, 2):
                by_hand.result(offset, source=f"cam-{offset}", partition=partition)
        by_hand.commit(5, partition)
    found = by_hand.verify(code=1)
    assert [each["input"] for each in found["violations"] if each["kind"] == "missing"] == [
        f"{by_hand.topics.frames}/1/2"
    ]
    assert [each["missing"] for each in found["partitions"]] == [0, 1, 0]


def test_the_report_for_a_person_names_every_promise_and_the_violations(by_hand: ByHand) -> None:
    """Catches: a report that does not name what is lost."""
    by_hand.send(4).result(0, 1, 3).commit(4)
    said = sluice_verify(*by_hand.options(), code=1)
    for promise in ("every record answered", "answered once", "in order per source", "no commit ahead"):
        assert promise in said
    assert f"missing: {by_hand.topics.frames}/0/2 of cam-2: has no outcome" in said
    assert said.splitlines()[-1] == "broken: 2 violations"


def test_wrong_options_and_unreachable_brokers_have_their_own_exit_codes(by_hand: ByHand) -> None:
    """Catches: a check of nothing that ends with 0, and trouble that looks like a violation."""
    by_hand.send(3).result(0, 1, 2).commit(3)
    assert "has committed no offset" in sluice_verify(*by_hand.options(), "--group", unique_name("none"), code=2)
    assert "the range is empty" in sluice_verify(*by_hand.options(), "--from", "5", "--to", "5", code=2)
    assert "expected an offset" in sluice_verify(*by_hand.options(), "--from", "soon", code=2)
    assert "at-least-once" in sluice_verify(*by_hand.options(), "--delivery", "twice", code=2)
    assert "different topics" in sluice_verify(*by_hand.options(), "--output", by_hand.topics.frames, code=2)
    assert "nowhere" in sluice_verify(*by_hand.options(), "--input", "nowhere", code=4)
    nobody = ["--bootstrap-servers", "127.0.0.1:1"]
    assert "no answer" in sluice_verify(*by_hand.options(), *nobody, code=4)


def test_a_compacted_output_topic_cannot_be_judged(by_hand: ByHand, apache_topic: Callable[..., str]) -> None:
    """Catches: outcomes that compaction has removed and that are called lost."""
    by_hand.send(3).commit(3)
    compacted = apache_topic(cleanup_policy="compact")
    assert "compacted" in sluice_verify(*by_hand.options(), "--output", compacted, code=2)


def test_a_broker_that_reports_wrong_ends_is_refused(embedded_broker: EmbeddedBroker) -> None:
    """The embedded one reports where the last batch begins. Catches: a false alarm on each of its topics."""
    make = lambda name, partitions: embedded_broker.create_topics({name: partitions})  # noqa: E731
    broker = Broker("embedded", embedded_broker.bootstrap_servers, CLIENT_SETTINGS, EMBEDDED, make)
    by_hand = ByHand(broker).send(10).result(*range(10)).commit(10)
    assert "nothing can be judged" in sluice_verify(*by_hand.options(), "-X", "fetch.wait.max.ms=100", code=4)


def test_frames_of_three_megabytes_are_read(by_hand: ByHand) -> None:
    """Catches: a reader that asks for records in sizes that large frames exceed."""
    for n in range(30):
        by_hand.producer.produce(by_hand.topics.frames, images.jpeg(64, 48) + bytes(3_000_000), f"cam-{n}")
        by_hand.producer.flush(30)
    by_hand.result(*range(29)).commit(30)
    found = by_hand.verify(code=1)
    assert (found["counts"]["records"], found["violations"][0]["source"]) == (30, "cam-29")
