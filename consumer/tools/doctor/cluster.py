"""Queries topics, their settings, permissions, the group and its offsets. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, cast

from confluent_kafka import Consumer, KafkaException, TopicCollection
from confluent_kafka import KafkaError as Code
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin._config import ConfigResource

from consumer.tools import clients
from consumer.tools.kafka.reader import standalone_consumer
from consumer.types import TopicPartition

ANSWER_S: Final = 8.0
Logs = Mapping[TopicPartition, tuple[int, int]]  # (first offset that is still stored, end) of each partition
_TRIES: Final = 5
_NOT_YET: Final = (Code.NOT_COORDINATOR, Code.COORDINATOR_LOAD_IN_PROGRESS, Code.COORDINATOR_NOT_AVAILABLE)
_NOT_ALLOWED: Final = (Code.TOPIC_AUTHORIZATION_FAILED, Code.GROUP_AUTHORIZATION_FAILED)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic, as far as this user may describe it.

    Attributes:
        rights: operations that this user may perform; None if the brokers do not return them.
        settings: None if the brokers do not return them.
        error: why the topic cannot be described, or "".
        missing: the topic does not exist.
        hidden: this user may not describe the topic.
    """

    name: str
    partitions: int = 0
    replicas: int = 0
    rights: frozenset[str] | None = None
    settings: Mapping[str, str] | None = None
    error: str = ""
    missing: bool = False
    hidden: bool = False

    @property
    def limit(self) -> int | None:
        """`max.message.bytes`."""
        return None if self.settings is None else int(self.settings["max.message.bytes"])


@dataclass(frozen=True, slots=True)
class Group:
    """The consumer group of the program.

    Attributes:
        rights: operations that this user may perform; None if the brokers do not return them.
        members: the number of partitions of each member.
        committed: the committed offset of each partition; -1 if there is none.
        error: why the offsets cannot be read, or "".
        hidden: this user may not describe the group.
    """

    name: str
    rights: frozenset[str] | None = None
    members: Sequence[int] = ()
    committed: Mapping[TopicPartition, int] = field(default_factory=dict)
    error: str = ""
    hidden: bool = False


class Cluster:
    """Queries with one admin client. `settings`: those of the program's consumer or producer."""

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any]) -> None:
        self._servers = bootstrap_servers
        self._settings = dict(settings)
        self._admin = clients.admin(bootstrap_servers, {**settings, "log_level": 0})

    def topic(self, name: str) -> Topic:
        """Describe one topic. A topic that cannot be described has `error` set."""
        try:
            found = self._single_result(
                self._admin.describe_topics(TopicCollection([name]), include_authorized_operations=True)
            )
        except KafkaException as error:
            code = error.args[0].code()
            return Topic(
                name,
                error=clients.text_of(error),
                missing=code in (Code.UNKNOWN_TOPIC_OR_PART, Code._UNKNOWN_TOPIC),  # noqa: SLF001
                hidden=code in _NOT_ALLOWED,
            )
        return Topic(
            name,
            partitions=len(found.partitions),
            replicas=min((len(each.replicas) for each in found.partitions), default=0),
            rights=_rights(found.authorized_operations),
            settings=self._topic_settings(name),
        )

    def group(self, name: str, partitions: Iterable[TopicPartition]) -> Group:
        """Describe the group and its committed offsets."""
        rights, members = None, []
        try:
            found = self._describe_group(name)
            rights = _rights(found.authorized_operations)
            members = [len(each.assignment.topic_partitions) for each in found.members]
        except KafkaException as error:
            if error.args[0].code() == Code.GROUP_AUTHORIZATION_FAILED:
                return Group(name, error=clients.text_of(error), hidden=True)
            # Any other error means that no member has joined yet, or that these brokers cannot describe groups.
        try:
            return Group(name, rights, members, self._committed(name, list(partitions)))
        except KafkaException as error:
            return Group(name, rights, members, error=clients.text_of(error))

    def transaction_error(self, name: str) -> Code | None:
        """Try to initialise transactions with this transactional ID.

        The brokers then store the ID, for a week by default, and fence any producer that uses it. So never pass the
        transactional ID of a program.

        Returns:
            The error, or None if transactions are allowed.
        """
        settings = {**self._settings, "transactional.id": name, "enable.idempotence": True, "log_level": 0}
        try:
            clients.producer(self._servers, settings).init_transactions(ANSWER_S)
        except KafkaException as error:
            return cast("Code", error.args[0])
        return None

    def logs(self, partitions: Iterable[TopicPartition]) -> Logs:
        """The first offset that is still stored and the end of each partition."""
        with self.reader() as client:
            return {
                each: client.get_watermark_offsets(Place(each.topic, each.partition), timeout=ANSWER_S, cached=False)
                for each in partitions
            }

    def reader(
        self, settings: Mapping[str, Any] | None = None, group: str | None = None
    ) -> AbstractContextManager[Consumer]:
        """Open a consumer that joins no group. `group`: the group whose committed offsets it may read."""
        return standalone_consumer(self._servers, {**self._settings, "log_level": 0, **(settings or {})}, group)

    def _describe_group(self, group: str) -> Any:
        """Retries, because the coordinator of a group may not be ready at the first request."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._single_result(
                    self._admin.describe_consumer_groups([group], include_authorized_operations=True)
                )
            except KafkaException as error:
                if not tries_left or error.args[0].code() not in _NOT_YET:
                    raise
                time.sleep(0.3)
        raise AssertionError("unreachable")

    def _committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        committed = {}
        with self.reader(group=group) as client:
            for place in client.committed([Place(each.topic, each.partition) for each in partitions], timeout=ANSWER_S):
                if place.error is not None:
                    raise KafkaException(place.error)
                committed[TopicPartition(place.topic, place.partition)] = max(-1, place.offset)
        return committed

    def _topic_settings(self, name: str) -> Mapping[str, str] | None:
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        try:
            entries = self._single_result(self._admin.describe_configs([resource]))
        except KafkaException:
            return None  # this needs DESCRIBE_CONFIGS, which the program does not need
        found = {entry.name: str(entry.value) for entry in entries.values()}
        return found if "max.message.bytes" in found else None

    @staticmethod
    def _single_result(answers: Mapping[Any, Future[Any]]) -> Any:
        (answer,) = answers.values()
        try:
            return answer.result(ANSWER_S)
        except TimeoutError:
            raise KafkaException(Code(Code._TIMED_OUT)) from None  # noqa: SLF001


def _rights(operations: Iterable[Any] | None) -> frozenset[str] | None:
    return None if operations is None else frozenset(operation.name for operation in operations)
