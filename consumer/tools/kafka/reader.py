"""Reads records from topics without joining a consumer group and without committing offsets."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, Message
from confluent_kafka import KafkaError as ClientError
from confluent_kafka import TopicPartition as KafkaPartition

from consumer.errors import KafkaError
from consumer.messages import read_record
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.types import Record, TopicPartition

SILENCE_S: Final = 30.0  # brokers that deliver nothing for so long count as unreachable
# An open transaction ends by itself: librdkafka's transaction.timeout.ms is 60 s, and brokers check every 10 s.
OPEN_TRANSACTION_S: Final = 90.0
_FETCH_COUNT: Final = 500  # records taken from the client in one call
_FETCH_BYTES: Final = 8 * 2**20


class TopicRecord(NamedTuple):
    """One record and its position in the topic."""

    partition: int
    offset: int
    record: Record


@contextmanager
def standalone_consumer(
    bootstrap_servers: str, settings: Mapping[str, Any], group: str | None = None
) -> Iterator[Consumer]:
    """Open a consumer that joins no group and commits nothing by itself.

    Args:
        bootstrap_servers: brokers to connect to first, comma-separated.
        settings: librdkafka settings.
        group: the group whose committed offsets the client reads or writes. Without one, the client gets a unique group
            name, because librdkafka requires a name. No broker sees that name.

    Raises:
        ConfigError: librdkafka refuses a setting.
    """
    fixed = {
        "group.id": group or f"sluice-tools-{uuid.uuid4()}",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
    }
    client = clients.consumer(bootstrap_servers, {**settings, **fixed})
    try:
        yield client
    finally:
        client.close()


@contextmanager
def open_reader(
    bootstrap_servers: str, settings: Mapping[str, Any], stop: threading.Event, group: str | None = None
) -> Iterator[TopicReader]:
    """Open a topic reader. See `standalone_consumer` for `group`, and for the error it raises."""
    merged = {"fetch.wait.max.ms": 100, **settings, "enable.partition.eof": True}
    with standalone_consumer(bootstrap_servers, merged, group) as client:
        yield TopicReader(client, stop)


@dataclass(slots=True)
class _Range:
    """The offsets of one partition that are still to be read."""

    position: int  # the next offset to read
    end: int | None  # the offset after the last one to read; None: not known yet
    until_log_end: bool = field(init=False)  # the caller gave no end
    at_log_end: bool = False  # the client has read everything that the partition holds now

    def __post_init__(self) -> None:
        self.until_log_end = self.end is None

    def advance(self, message: Message) -> None:
        """Move past a record, or to the end of the partition if the message reports that end."""
        self.at_log_end = message.error() is not None
        offset = message.offset() or 0
        # The reported end lies after transaction markers and aborted records, which are never delivered.
        reached = offset if self.at_log_end else offset + 1
        self.position = max(self.position, reached if self.end is None else min(reached, self.end))

    @property
    def is_finished(self) -> bool:
        return (self.until_log_end and self.at_log_end) or (self.end is not None and self.position >= self.end)


class TopicReader:
    """Reads one topic at a time, each partition in offset order.

    Attributes:
        client: the consumer. Callers may use it to read or commit offsets.
        observed_ends: the end of each partition, as the fetch responses of the finished scans reported it.
    """

    def __init__(
        self,
        client: Consumer,
        stop: threading.Event,
        *,
        open_transaction_s: float = OPEN_TRANSACTION_S,
    ) -> None:
        self.client = client
        self.observed_ends: dict[TopicPartition, int] = {}
        self._stop = stop
        self._open_transaction_s = open_transaction_s
        self._largest = _FETCH_BYTES // 20  # bytes of the largest record of the latest fetch

    def partitions(self, topic: str) -> list[int]:
        """The partitions that the topic has now. Raises KafkaError if it has none, or if no broker answers."""
        return clients.partitions_of(self.client, topic)

    def scan(
        self,
        topic: str,
        ranges: Mapping[int, tuple[int, int | None]],
        on_progress: Callable[[int], None] = lambda _: None,
        silence_s: float = SILENCE_S,
    ) -> Iterator[TopicRecord]:
        """Yield the records of some partitions, each partition in offset order.

        Ends when every range has been read, or when `stop` is set. The caller checks which of the two happened.

        Args:
            topic: the topic to read.
            ranges: for each partition, the first offset to read and the offset after the last one. If that is None, the
                partition is read up to its end at the first fetch. A range with an end waits for open transactions.
            on_progress: receives the number of offsets passed, once per fetch.
            silence_s: raise KafkaError if the brokers deliver nothing for so long.

        Raises:
            KafkaError: the topic cannot be read, the brokers deliver nothing for too long, or a transaction in a range
                stays open for too long.
        """
        remaining = {number: _Range(*each) for number, each in ranges.items() if each[1] is None or each[0] < each[1]}
        places = [KafkaPartition(topic, number, each.position) for number, each in remaining.items()]
        self.client.assign(places)
        self.client.resume(places)  # a partition that an earlier scan paused stays paused when it is assigned again
        progressed_at = time.monotonic()
        while remaining and not self._stop.is_set():
            passed = 0
            for message in self._fetch():
                if self._stop.is_set():
                    return
                number = message.partition()
                if not self._is_record_or_end(topic, message) or number not in remaining:
                    continue
                current = remaining[number]
                before = current.position
                if (found := self._accept(topic, number, message, current)) is not None:
                    yield found
                if current.position > before:
                    progressed_at = time.monotonic()
                    passed += current.position - before
                if current.is_finished:
                    del remaining[number]
                    self.client.pause([KafkaPartition(topic, number)])
            on_progress(passed)
            self._check_progress(topic, remaining, time.monotonic() - progressed_at, silence_s)
        for place in places:
            if (end := self._observed_end(topic, place.partition)) is not None:
                self.observed_ends[TopicPartition(topic, place.partition)] = end

    def scan_all(self, topic: str) -> Iterator[TopicRecord]:
        """Yield all records of all partitions, up to the ends at the time of the first fetch. See `scan`."""
        return self.scan(topic, dict.fromkeys(self.partitions(topic), (OFFSET_BEGINNING, None)))

    def record_at(self, topic: str, partition: int, offset: int) -> Record | None:
        """The record at one position of an existing partition; None if there is no record at this offset."""
        found = next(self.scan(topic, {partition: (offset, None)}, silence_s=clients.METADATA_TIMEOUT_S), None)
        return found.record if found is not None and found.offset == offset else None

    def follow(self, topic: str, *, from_beginning: bool) -> Iterator[TopicRecord]:
        """Yield the records of all partitions, also those written later, until `stop` is set.

        Partitions that are added later are not read.

        Raises:
            KafkaError: the topic cannot be read.
        """
        offset = OFFSET_BEGINNING if from_beginning else OFFSET_END
        self.client.assign([KafkaPartition(topic, number, offset) for number in self.partitions(topic)])
        while not self._stop.is_set():
            message = self.client.poll(0.2)
            if message is not None and self._is_record_or_end(topic, message) and message.error() is None:
                yield TopicRecord(message.partition() or 0, message.offset() or 0, read_record(message))

    def _accept(self, topic: str, number: int, message: Message, current: _Range) -> TopicRecord | None:
        """Move `current` past the message. Returns the record if the message is a record in the range."""
        offset = message.offset() or 0
        found: TopicRecord | None = None
        if message.error() is None:
            # Not requested beforehand: neither the embedded broker nor Apache Kafka answers that request correctly.
            current.end = current.end or self._observed_end(topic, number)
            if current.end is None or offset < current.end:
                found = TopicRecord(number, offset, read_record(message))
        current.advance(message)
        return found

    def _fetch(self) -> list[Message]:
        """The next records, at most about `_FETCH_BYTES` of them."""
        messages = self.client.consume(max(1, min(_FETCH_COUNT, _FETCH_BYTES // self._largest)), 0.1)
        if messages:
            self._largest = max(1, *map(len, messages))
        return messages

    @staticmethod
    def _is_record_or_end(topic: str, message: Message) -> bool:
        """False for an error that the client retries. Raises KafkaError for one that no retry can fix."""
        error = message.error()
        if error is None or error.code() == ClientError._PARTITION_EOF:  # noqa: SLF001 - the library's public name
            return True
        if error.code() == ClientError._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise KafkaError(
                f"topic {printable(topic)}: retention has deleted records just before they were read. Run this again"
            )
        if clients.is_permanent(error):
            raise KafkaError(f"topic {printable(topic)}: {printable(error.str())}")
        return False

    def _observed_end(self, topic: str, partition: int) -> int | None:
        """The end of a partition, as the latest fetch response reported it."""
        known = self.client.get_watermark_offsets(KafkaPartition(topic, partition), cached=True)
        return known[1] if known is not None and known[1] > 0 else None

    def _check_progress(self, topic: str, remaining: Mapping[int, _Range], quiet_s: float, silence_s: float) -> None:
        if quiet_s > silence_s and not all(each.at_log_end for each in remaining.values()):
            raise KafkaError(f"topic {printable(topic)}: the brokers have delivered nothing for {quiet_s:.0f} s")
        if quiet_s > self._open_transaction_s and remaining:
            number, blocked = next(iter(remaining.items()))
            raise KafkaError(
                f"topic {printable(topic)}: a transaction has been open at offset {blocked.position} of partition "
                f"{number} for {quiet_s:.0f} s, and the records after it cannot be read. Run this again when it has "
                "ended"
            )
