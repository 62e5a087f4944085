"""Queries offsets from the brokers, and opens readers. Joins no group, commits nothing, writes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import confluent_kafka
from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaException
from confluent_kafka.admin._listoffsets import OffsetSpec

from consumer.errors import KafkaError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.kafka.reader import TopicReader, open_reader
from consumer.types import TopicPartition

ANSWER_S: Final = 15.0
_DEFAULTS: Final = {
    "fetch.queue.backoff.ms": 10,  # with the default of 1000 ms, a reader of large records waits most of the time
    # A small record takes much more memory in the client library than its bytes, and the next limit counts only bytes.
    "queued.min.messages": 2000,
    "queued.max.messages.kbytes": 32 * 1024,
    "fetch.message.max.bytes": 256 * 1024,  # per partition; a larger record is fetched alone
    "fetch.max.bytes": 16 * 2**20,
}
# Settings of the program's consumer that are for a group member, or that `sluice verify` sets itself.
_NOT_TAKEN: Final = ("group.", "partition.assignment.", "session.", "heartbeat.", "isolation.level", "debug")

_EARLIEST: Final[OffsetSpec] = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: Final[OffsetSpec] = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class Brokers:
    """The queries of `sluice verify`. Every method raises KafkaError if the brokers do not answer.

    Args:
        bootstrap_servers: brokers to connect to first, comma-separated.
        settings: librdkafka settings of the program's consumer.
        stop: ends the readers.
    """

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any], stop: threading.Event) -> None:
        self.stop = stop
        self._servers = bootstrap_servers
        self._settings = {n: v for n, v in settings.items() if not n.startswith(_NOT_TAKEN)}
        self._admin = clients.admin(bootstrap_servers, {**self._settings, "log_level": 0})

    def reader(self, isolation: str, *, skips_deleted: bool) -> AbstractContextManager[TopicReader]:
        """Open a reader.

        Args:
            isolation: `read_committed` or `read_uncommitted`.
            skips_deleted: skip records that retention deletes before they are read. Otherwise, the scan raises
                KafkaError.
        """
        own = {
            "isolation.level": isolation,
            "auto.offset.reset": "earliest" if skips_deleted else "error",
            "allow.auto.create.topics": False,
        }
        return open_reader(self._servers, {**_DEFAULTS, **self._settings, **own}, self.stop)

    def committed(self, group: str, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The committed offsets of a group, -1 if there is none. Offsets of open transactions are not included."""
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
        """The first offset that each partition still holds."""
        return self._offsets(dict.fromkeys(partitions, _EARLIEST))

    def ends(self, partitions: Iterable[TopicPartition], *, committed: bool = False) -> dict[TopicPartition, int]:
        """The offset after the last record. `committed`: after the last record before any open transaction."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        return self._offsets(dict.fromkeys(partitions, _LATEST), level)

    def at_time(self, partitions: Iterable[TopicPartition], ms: int) -> dict[TopicPartition, int]:
        """The first record of each partition with this timestamp or a later one; -1 if there is none."""
        return self._offsets(dict.fromkeys(partitions, OffsetSpec.for_timestamp(ms)))

    def _offsets(
        self, wanted: Mapping[TopicPartition, OffsetSpec], level: IsolationLevel = IsolationLevel.READ_UNCOMMITTED
    ) -> dict[TopicPartition, int]:
        if not wanted:
            return {}
        request = {confluent_kafka.TopicPartition(*each): spec for each, spec in wanted.items()}
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
            raise KafkaError(f"the brokers do not return {what}: {clients.text_of(error)}") from None
        except TimeoutError:
            raise KafkaError(f"the brokers do not return {what}: no answer in {ANSWER_S:.0f} s") from None


class Stopped(Exception):  # noqa: N818 - not an error: the user ended the command
    """The user ended the command before there was a result."""
