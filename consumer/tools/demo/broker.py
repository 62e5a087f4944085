"""The broker of a demo, embedded or existing, with topics of the demo's own."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.errors import KafkaError
from consumer.tools.clients import text_of
from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker

PARTITIONS: Final = 4
_ANSWER_S: Final = 15.0
_MAX_MESSAGE_BYTES: Final = 16 * 2**20  # decode.max_bytes: what the consumer takes, the topic should


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics and the group of one demo. The suffix keeps two demos on one broker apart."""

    suffix: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def frames(self) -> str:
        return f"sluice-demo-frames-{self.suffix}"

    @property
    def detections(self) -> str:
        return f"sluice-demo-detections-{self.suffix}"

    @property
    def dead(self) -> str:
        return f"sluice-demo-frames-dead-{self.suffix}"

    @property
    def group(self) -> str:
        return f"sluice-demo-{self.suffix}"


@dataclass(frozen=True, slots=True)
class Broker:
    """`client`: settings for every client (`-X`); `consumer`: for consumers alone."""

    bootstrap_servers: str
    topics: Topics
    client: Mapping[str, Any]
    consumer: Mapping[str, Any]


@contextlib.contextmanager
def broker_with_topics(bootstrap_servers: str | None, client: Mapping[str, Any]) -> Iterator[Broker]:
    """The broker at that address, or without one the embedded broker, for as long as the block lasts."""
    topics = Topics()
    if bootstrap_servers is None:
        with EmbeddedBroker() as embedded:
            embedded.create_topics(dict.fromkeys((topics.frames, topics.detections, topics.dead), PARTITIONS))
            yield Broker(embedded.bootstrap_servers, topics, {}, dict(CLIENT_SETTINGS))
        return
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, **client, "log_level": 0})
    _create(admin, bootstrap_servers, topics)
    try:
        yield Broker(bootstrap_servers, topics, client, {})
    finally:
        _delete(admin, topics)


def _create(admin: AdminClient, where: str, topics: Topics) -> None:
    wanted = [
        NewTopic(
            name,
            num_partitions=PARTITIONS,
            replication_factor=-1,  # what the cluster does by default
            config={"max.message.bytes": str(_MAX_MESSAGE_BYTES)},
        )
        for name in (topics.frames, topics.detections, topics.dead)
    ]
    for name, answer in admin.create_topics(wanted, operation_timeout=_ANSWER_S).items():
        try:
            answer.result(_ANSWER_S)
        except (KafkaException, TimeoutError) as error:
            raise KafkaError(f"{where} did not create the topic {name}: {text_of(error)}") from None


def _delete(admin: AdminClient, topics: Topics) -> None:
    """What the demo made on somebody's broker goes with it, as far as the broker lets it."""
    names = [topics.frames, topics.detections, topics.dead]
    answers = [*admin.delete_topics(names, operation_timeout=_ANSWER_S).values()]
    answers += admin.delete_consumer_groups([topics.group], request_timeout=_ANSWER_S).values()
    for answer in answers:
        with contextlib.suppress(KafkaException, TimeoutError):
            answer.result(_ANSWER_S)
