"""Asks the brokers for offsets and reads records. Joins no group, commits nothing, writes nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import confluent_kafka
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, IsolationLevel, KafkaException
from confluent_kafka import KafkaError as Code
from confluent_kafka.admin._listoffsets import OffsetSpec

from consumer.errors import KafkaError
from consumer.messages import read_record
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.types import Record, TopicPartition

ANSWER_S: Final = 15.0
SILENCE_S: Final = 30.0  # brokers that have said nothing for so long are gone
# An open transaction ends by itself: librdkafka's transaction.timeout.ms is 60 s, and brokers look every 10 s.
OPEN_S: Final = 90.0
_AT_ONCE: Final = 500  # records taken from the client in one call
_AT_ONCE_BYTES: Final = 8 * 2**20
_DEFAULTS: Final = {
    "fetch.wait.max.ms": 100,
    "fetch.queue.backoff.ms": 10,  # the default of 1000 ms starves a reader of large records
    # Small records cost the client library far more than their bytes, which is all that the next limit counts.
    "queued.min.messages": 2000,
    "queued.max.messages.kbytes": 32 * 1024,
    "fetch.message.max.bytes": 256 * 1024,  # of one partition; a larger record comes alone
    "fetch.max.bytes": 16 * 2**20,
}
_OURS: Final = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
}
# Settings of the program's consumer that make a member of it, or that it reads its own way.
_NOT_TAKEN: Final = ("group.", "partition.assignment.", "session.", "heartbeat.", "isolation.level", "debug")

_EARLIEST: Final[OffsetSpec] = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: Final[OffsetSpec] = OffsetSpec.latest()  # type: ignore[no-untyped-call]

Spans = Mapping[int, tuple[int, int]]  # partition -> first offset, and the one behind the last
OnRecord = Callable[[TopicPartition, int, Record], None]


class Brokers:
    """The questions that `sluice verify` asks. `settings`: of the program's consumer. Raises KafkaError throughout."""

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any], stop: threading.Event) -> None:
        self._servers = bootstrap_servers
        self._settings = {n: v for n, v in settings.items() if not n.startswith(_NOT_TAKEN)}
        self._stop = stop
        self._admin = clients.admin(bootstrap_servers, {**self._settings, "log_level": 0})

    @contextmanager
    def reader(self, isolation: str, *, skips_deleted: bool) -> Iterator[Reader]:
        """A client that reads records. `isolation`: read_committed or read_uncommitted.

        `skips_deleted`: what retention deletes before it is read is left out; otherwise reading ends with KafkaError.
        """
        own = {
            "group.id": f"sluice-verify-{uuid.uuid4()}",  # no broker hears of it
            "isolation.level": isolation,
            "auto.offset.reset": "earliest" if skips_deleted else "error",
        }
        client = clients.consumer(self._servers, {**_DEFAULTS, **self._settings, **_OURS, **own})
        try:
            yield Reader(client, self._stop)
        finally:
            client.close()

    def committed(self, group: str, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """What the group has committed, -1 where nothing. Of an open transaction nothing is known yet."""
        wanted = [confluent_kafka.TopicPartition(*each) for each in partitions]
        request = [ConsumerGroupTopicPartitions(group, wanted)]
        answer = self._result(
            self._admin.list_consumer_group_offsets(request, require_stable=False, request_timeout=ANSWER_S)[group],
            f"the committed offsets of group {printable(group)}",
        )
        for each in answer.topic_partitions:
            if each.error is not None:
                raise KafkaError(f"the committed offset of {each.topic}[{each.partition}]: {each.error.str()}")
        return {TopicPartition(each.topic, each.partition): max(-1, each.offset) for each in answer.topic_partitions}

    def beginnings(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still has."""
        return self._offsets(dict.fromkeys(partitions, _EARLIEST))

    def ends(self, partitions: Iterable[TopicPartition], *, committed: bool = False) -> dict[TopicPartition, int]:
        """The offset behind the last record; `committed`: behind the last one that no open transaction holds back."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        return self._offsets(dict.fromkeys(partitions, _LATEST), level)

    def at_time(self, partitions: Iterable[TopicPartition], ms: int) -> dict[TopicPartition, int]:
        """The first record of each partition with that timestamp or a later one; -1 where there is none."""
        return self._offsets(dict.fromkeys(partitions, OffsetSpec.for_timestamp(ms)))

    def _offsets(
        self, asked: Mapping[TopicPartition, OffsetSpec], level: IsolationLevel = IsolationLevel.READ_UNCOMMITTED
    ) -> dict[TopicPartition, int]:
        if not asked:
            return {}
        request = {confluent_kafka.TopicPartition(*each): spec for each, spec in asked.items()}
        answers = self._admin.list_offsets(request, isolation_level=level, request_timeout=ANSWER_S)
        return {
            TopicPartition(each.topic, each.partition): self._result(
                answer, f"the offsets of {printable(each.topic)}[{each.partition}]"
            ).offset
            for each, answer in answers.items()
        }

    @staticmethod
    def _result(answer: Any, what: str) -> Any:
        try:
            return answer.result(ANSWER_S + 1)
        except KafkaException as error:
            raise KafkaError(f"the brokers do not tell {what}: {clients.text_of(error)}") from None
        except TimeoutError:
            raise KafkaError(f"the brokers do not tell {what}: no answer in {ANSWER_S:.0f} s") from None


class Stopped(Exception):  # noqa: N818 - not an error: a person ended it
    """The user ended the command before there was a verdict."""


class Reader:
    """Reads partitions up to given ends."""

    def __init__(
        self, client: Consumer, stop: threading.Event, silence_s: float = SILENCE_S, open_s: float = OPEN_S
    ) -> None:
        self._client = client
        self._stop = stop
        self._silence_s = silence_s
        self._open_s = open_s
        self.seen_ends: dict[TopicPartition, int] = {}  # by the answers with the records themselves

    def partitions(self, topic: str) -> list[TopicPartition]:
        """Of a topic as it is now. Raises KafkaError where there is none."""
        return [TopicPartition(topic, number) for number in clients.partitions_of(self._client, topic)]

    def scan(self, topic: str, spans: Spans, on_record: OnRecord, on_progress: Callable[[int], None]) -> None:
        """Give each record of the spans to `on_record`, each partition in its order.

        `on_progress` is told how many offsets were passed. Ends when every partition is at its end: a reader of
        committed records waits there for open transactions. Raises KafkaError if that takes too long or the topic
        cannot be read, and Stopped.
        """
        at = {number: first for number, (first, end) in spans.items() if first < end}
        places = [confluent_kafka.TopicPartition(topic, *each) for each in at.items()]
        self._client.assign(places)
        self._client.resume(places)  # a pause of an earlier scan outlives its assignment
        waits: set[int] = set()  # partitions that are read as far as they can be, and are not at their ends
        heard, largest = time.monotonic(), _AT_ONCE_BYTES // 20
        while at:
            if self._stop.is_set():
                raise Stopped
            most = max(1, min(_AT_ONCE, _AT_ONCE_BYTES // largest))
            messages = self._client.consume(most, 0.1)
            largest = max([1, *map(len, messages)]) if messages else largest
            passed = 0
            for message in messages:
                number = message.partition()
                if number not in at:
                    if message.error() is not None:
                        self._check(topic, message)
                    continue
                reached = self._take(topic, message, spans[number][1], on_record, waits)
                if reached > at[number]:
                    heard = time.monotonic()
                    passed += min(reached, spans[number][1]) - at[number]
                    at[number] = reached
                if reached >= spans[number][1]:
                    del at[number]
                    waits.discard(number)
                    self._client.pause([confluent_kafka.TopicPartition(topic, number)])
            on_progress(passed)
            self._check_patience(topic, at, waits, time.monotonic() - heard)
        for place in places:
            known = self._client.get_watermark_offsets(place, cached=True)
            if known is not None and known[1] > 0:
                self.seen_ends[TopicPartition(topic, place.partition)] = known[1]
        self._client.unassign()

    def record_at(self, partition: TopicPartition, offset: int) -> Record | None:
        """The record at an offset; None where it is gone."""
        found: list[Record] = []
        span = {partition.partition: (offset, offset + 1)}
        self.scan(partition.topic, span, lambda _, at, record: found.append(record) if at == offset else None, _nobody)
        return found[0] if found else None

    def _take(self, topic: str, message: Any, end: int, on_record: OnRecord, waits: set[int]) -> int:
        """The offset that the reader has reached in the message's partition."""
        number, offset = message.partition(), message.offset()
        if message.error() is not None:
            if message.error().code() != Code._PARTITION_EOF:  # noqa: SLF001 - the library's own name
                self._check(topic, message)
                return -1
            waits.add(number)
            return int(offset)  # behind markers and aborted records, too
        waits.discard(number)
        if offset < end:
            on_record(TopicPartition(topic, number), offset, read_record(message))
        return int(offset) + 1

    @staticmethod
    def _check(topic: str, message: Any) -> None:
        error = message.error()
        if error.code() == Code._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise KafkaError(
                f"topic {printable(topic)}: retention has deleted records just before they were read. Run this again"
            )
        if error.code() != Code._PARTITION_EOF and clients.is_permanent(error):  # noqa: SLF001
            raise KafkaError(f"topic {printable(topic)}: {printable(error.str())}")

    def _check_patience(self, topic: str, at: Mapping[int, int], waits: set[int], quiet_s: float) -> None:
        if quiet_s > self._silence_s and not at.keys() <= waits:
            raise KafkaError(f"topic {printable(topic)}: the brokers have been silent for {quiet_s:.0f} s")
        if quiet_s > self._open_s and at:
            number, offset = next(iter(at.items()))
            raise KafkaError(
                f"topic {printable(topic)}: a transaction has been open at offset {offset} of partition "
                f"{number} for {quiet_s:.0f} s, and what is behind it cannot be read. Run this again when it has ended"
            )


def _nobody(_passed: int) -> None:
    """Hears of progress that is too small to be shown."""
