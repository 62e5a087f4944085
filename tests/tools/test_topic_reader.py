"""The topic reader of the tools, on a client that delivers what a test prepares."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError as Code
from confluent_kafka import TopicPartition as KafkaPartition

from consumer.errors import KafkaError
from consumer.tools.kafka.reader import TopicReader
from consumer.types import TopicPartition
from fake_kafka import FakeMessage, failed

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)


class PreparedClient:
    """A consumer that delivers prepared batches, then nothing. `ends`: what the fetch responses report."""

    def __init__(self, *batches: Sequence[FakeMessage], ends: dict[int, int] | None = None) -> None:
        self._batches = list(batches)
        self._ends = ends or {}
        self.assigned: list[tuple[int, int]] = []
        self.paused: list[int] = []

    def assign(self, places: list[KafkaPartition]) -> None:
        self.assigned = [(place.partition, place.offset) for place in places]

    def resume(self, places: list[KafkaPartition]) -> None:
        self.paused = [number for number in self.paused if number not in {place.partition for place in places}]

    def pause(self, places: list[KafkaPartition]) -> None:
        self.paused += [place.partition for place in places]

    def consume(self, _count: int, _timeout: float) -> Sequence[FakeMessage]:
        return self._batches.pop(0) if self._batches else ()

    def poll(self, _timeout: float) -> FakeMessage | None:
        return self._batches.pop(0)[0] if self._batches else None

    def get_watermark_offsets(self, place: KafkaPartition, *, cached: bool) -> tuple[int, int] | None:
        assert cached, "the end is not requested from the broker"
        return (0, self._ends[place.partition]) if place.partition in self._ends else None


class Sized(FakeMessage):
    def __len__(self) -> int:
        return 1


def record(partition: TopicPartition, offset: int) -> FakeMessage:
    return Sized(partition, offset)


def log_end(partition: TopicPartition, offset: int) -> FakeMessage:
    return Sized(partition, offset, error=Code(Code._PARTITION_EOF))


def reader(client: Any, stop: threading.Event | None = None, **options: Any) -> TopicReader:
    return TopicReader(client, stop or threading.Event(), **options)


def test_a_scan_without_an_end_ends_where_the_partition_ended_at_its_first_fetch() -> None:
    """Catches: a busy topic that keeps a scan running, and a last record that is left out."""
    client = PreparedClient([record(P0, 0), record(P0, 1)], [record(P0, 2), record(P0, 3)], ends={0: 3})
    found = [each.offset for each in reader(client).scan("t", {0: (0, None)})]
    assert found == [0, 1, 2]
    assert client.paused == [0]


def test_a_scan_without_an_end_ends_at_the_log_end_of_each_partition() -> None:
    """Catches: an empty partition, or one that ends in a transaction marker, that is waited for."""
    client = PreparedClient([record(P0, 5), log_end(P1, 0)], [log_end(P0, 7)], ends={0: 9})
    assert [each[:2] for each in reader(client).scan("t", {0: (5, None), 1: (0, None)})] == [(0, 5)]


def test_a_scan_with_an_end_yields_no_record_at_or_after_it() -> None:
    """Catches: records of another partition, or behind the end, that are yielded; a progress that is not exact."""
    passed: list[int] = []
    client = PreparedClient([record(P0, 4), record(P0, 6), record(P1, 0)], ends={0: 9})
    found = [each[:2] for each in reader(client).scan("t", {0: (4, 6)}, passed.append)]
    assert found == [(0, 4)]
    assert passed == [2]


def test_an_empty_range_reads_nothing() -> None:
    client = PreparedClient([record(P0, 4)])
    assert list(reader(client).scan("t", {0: (4, 4)})) == []
    assert client.assigned == []


def test_a_log_end_after_markers_counts_as_read() -> None:
    """Offsets 2 and 3 are markers. Catches: a range whose last offsets hold no record, and that never ends."""
    client = PreparedClient([record(P0, 1), log_end(P0, 4)])
    assert [each.offset for each in reader(client).scan("t", {0: (1, 4)})] == [1]


def test_a_transaction_that_stays_open_before_the_end_is_an_error() -> None:
    """Catches: a scan that waits forever, and a silence that is reported instead."""
    client = PreparedClient([record(P0, 0), log_end(P0, 1)])
    with pytest.raises(KafkaError, match="open at offset 1 of partition 0"):
        list(reader(client, open_transaction_s=0.0).scan("t", {0: (0, 2)}, silence_s=0.0))


def test_brokers_that_deliver_nothing_are_an_error() -> None:
    with pytest.raises(KafkaError, match="delivered nothing"):
        list(reader(PreparedClient()).scan("t", {0: (0, None)}, silence_s=0.0))


@pytest.mark.parametrize(
    ("code", "words"),
    [(Code.TOPIC_AUTHORIZATION_FAILED, "refused"), (Code._AUTO_OFFSET_RESET, "retention has deleted records")],
)
def test_an_error_that_no_retry_can_fix_ends_a_scan(code: int, words: str) -> None:
    client = PreparedClient([Sized(P0, None, error=failed(code, "refused"))])
    with pytest.raises(KafkaError, match=words):
        list(reader(client).scan("t", {0: (0, 5)}))


def test_a_refused_group_is_no_error_for_a_consumer_that_joins_none() -> None:
    """Catches: a user without permissions on the made-up group name."""
    refused = Sized(P0, None, error=failed(Code.GROUP_AUTHORIZATION_FAILED))
    client = PreparedClient([refused, record(P0, 0)])
    assert [each.offset for each in reader(client).scan("t", {0: (0, 1)})] == [0]


def test_stop_ends_a_scan_between_two_records_of_one_fetch() -> None:
    """Catches: Ctrl-C that is only noticed after hundreds of records."""
    stop = threading.Event()
    found = reader(PreparedClient([record(P0, 0), record(P0, 1)]), stop).scan("t", {0: (0, 5)})
    assert next(found).offset == 0
    stop.set()
    assert list(found) == []


def test_a_finished_scan_keeps_the_ends_that_the_brokers_reported() -> None:
    """Catches: a broker that reports ends before its own records, and is believed."""
    made = reader(PreparedClient([record(P0, 0), record(P1, 0)], ends={0: 7, 1: 8}))
    list(made.scan("t", {0: (0, 1), 1: (0, 1)}))
    assert made.observed_ends == {P0: 7, P1: 8}


@pytest.mark.parametrize(
    ("delivered", "found"),
    [(record(P0, 3), True), (record(P0, 4), False), (record(P0, 0), False), (log_end(P0, 3), False)],
)
def test_a_record_is_found_only_at_its_own_offset(delivered: FakeMessage, found: bool) -> None:
    """Catches: a neighbour that is returned for a record which compaction or retention has removed."""
    assert (reader(PreparedClient([delivered])).record_at("t", 0, 3) is not None) is found


def test_a_partition_that_an_earlier_scan_paused_is_resumed() -> None:
    """Catches: a second scan of the same partition that never receives a record."""
    client = PreparedClient([record(P0, 0)], [record(P0, 0)])
    made = reader(client)
    for _ in range(2):
        assert len(list(made.scan("t", {0: (0, 1)}))) == 1
    assert client.paused == [0]


def test_following_a_topic_skips_log_ends_and_goes_on() -> None:
    """Catches: a tail that ends, or fails, at the end of a partition."""
    stop = threading.Event()
    client = PreparedClient([record(P0, 0)], [log_end(P0, 1)], [record(P0, 1)])
    made = reader(client, stop)
    made.partitions = lambda _topic: [0]  # type: ignore[method-assign]
    records = made.follow("t", from_beginning=True)
    assert [next(records).offset for _ in range(2)] == [0, 1]
    stop.set()
    assert list(records) == []
