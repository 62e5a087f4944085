"""Asks the cluster for topics, their limits, rights, the group and its offsets. Changes nothing."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, cast

from confluent_kafka import Consumer, KafkaException, TopicCollection
from confluent_kafka import KafkaError as Code
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin._config import ConfigResource

from consumer.tools import clients
from consumer.types import TopicPartition

ANSWER_S: Final = 8.0
Logs = Mapping[TopicPartition, tuple[int, int]]  # the oldest offset that is there, and the next one
_TRIES: Final = 5
_NOT_YET: Final = (Code.NOT_COORDINATOR, Code.COORDINATOR_LOAD_IN_PROGRESS, Code.COORDINATOR_NOT_AVAILABLE)
_NOT_ALLOWED: Final = (Code.TOPIC_AUTHORIZATION_FAILED, Code.GROUP_AUTHORIZATION_FAILED)


@dataclass(frozen=True, slots=True)
class Topic:
    """`rights` and `settings` are None where the brokers do not tell. `error`: why it cannot be described, or ""."""

    name: str
    partitions: int = 0
    replicas: int = 0
    rights: frozenset[str] | None = None
    settings: Mapping[str, str] | None = None
    error: str = ""
    missing: bool = False
    hidden: bool = False  # this user may not even describe it

    @property
    def limit(self) -> int | None:
        """`max.message.bytes`."""
        return None if self.settings is None else int(self.settings["max.message.bytes"])


@dataclass(frozen=True, slots=True)
class Group:
    """`members`: how many partitions each member has now. `committed`: -1 where there is no offset yet.

    `rights` is None where the brokers do not tell. `hidden`: this user may not even describe it.
    """

    name: str
    rights: frozenset[str] | None = None
    members: Sequence[int] = ()
    committed: Mapping[TopicPartition, int] = field(default_factory=dict)
    error: str = ""
    hidden: bool = False


class Cluster:
    """One administrator's client and what can be asked of it. `settings`: of the program's consumer or producer."""

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any]) -> None:
        self._servers = bootstrap_servers
        self._settings = dict(settings)
        self._admin = clients.admin(bootstrap_servers, {**settings, "log_level": 0})

    def topic(self, name: str) -> Topic:
        """Describe one topic, as far as this user may."""
        try:
            found = self._one(self._admin.describe_topics(TopicCollection([name]), include_authorized_operations=True))
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
        """Describe the group, and what it has committed."""
        rights, members = None, []
        try:
            found = self._described(name)
            rights = _rights(found.authorized_operations)
            members = [len(each.assignment.topic_partitions) for each in found.members]
        except KafkaException as error:
            if error.args[0].code() == Code.GROUP_AUTHORIZATION_FAILED:
                return Group(name, error=clients.text_of(error), hidden=True)
            # Any other answer means that nobody has joined it yet, or that these brokers cannot describe it.
        try:
            return Group(name, rights, members, self._committed(name, list(partitions)))
        except KafkaException as error:
            return Group(name, rights, members, error=clients.text_of(error))

    def transaction_error(self, name: str) -> Code | None:
        """Whether transactions may be made under this name; None: they may.

        It makes the name known to the brokers, for a week by default, and fences whoever uses it: never ask with the
        name of a program.
        """
        settings = {**self._settings, "transactional.id": name, "enable.idempotence": True, "log_level": 0}
        try:
            clients.producer(self._servers, settings).init_transactions(ANSWER_S)
        except KafkaException as error:
            return cast("Code", error.args[0])
        return None

    def logs(self, partitions: Iterable[TopicPartition]) -> Logs:
        """The oldest offset and the next one of each partition."""
        with self.reader(f"sluice-doctor-{uuid.uuid4()}") as client:
            return {
                each: client.get_watermark_offsets(Place(each.topic, each.partition), timeout=ANSWER_S, cached=False)
                for each in partitions
            }

    @contextlib.contextmanager
    def reader(self, group: str, **settings: Any) -> Iterator[Consumer]:
        """A consumer that joins no group and commits nothing; `group` is the one whose offsets it may ask for."""
        ours = {"group.id": group, "enable.auto.commit": False, "enable.auto.offset.store": False, "log_level": 0}
        client = clients.consumer(self._servers, {**self._settings, **ours, **settings})
        try:
            yield client
        finally:
            client.close()

    def _described(self, group: str) -> Any:
        """The first question about a group may come before its coordinator is ready."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._one(self._admin.describe_consumer_groups([group], include_authorized_operations=True))
            except KafkaException as error:
                if not tries_left or error.args[0].code() not in _NOT_YET:
                    raise
                time.sleep(0.3)
        raise AssertionError("unreachable")

    def _committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        committed = {}
        with self.reader(group) as client:
            for place in client.committed([Place(each.topic, each.partition) for each in partitions], timeout=ANSWER_S):
                if place.error is not None:
                    raise KafkaException(place.error)
                committed[TopicPartition(place.topic, place.partition)] = max(-1, place.offset)
        return committed

    def _topic_settings(self, name: str) -> Mapping[str, str] | None:
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        try:
            entries = self._one(self._admin.describe_configs([resource]))
        except KafkaException:
            return None  # it needs DESCRIBE_CONFIGS, which the program does not
        found = {entry.name: str(entry.value) for entry in entries.values()}
        return found if "max.message.bytes" in found else None

    @staticmethod
    def _one(answers: Mapping[Any, Future[Any]]) -> Any:
        (answer,) = answers.values()
        try:
            return answer.result(ANSWER_S)
        except TimeoutError:
            raise KafkaException(Code(Code._TIMED_OUT)) from None  # noqa: SLF001


def _rights(operations: Iterable[Any] | None) -> frozenset[str] | None:
    return None if operations is None else frozenset(operation.name for operation in operations)
