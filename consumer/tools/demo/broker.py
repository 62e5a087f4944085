"""The broker of a demo, embedded or existing, with topics that belong to this demo alone."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka.admin import AdminClient

from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker
from consumer.tools.topics import create_topics, delete_topics

PARTITIONS: Final = 4
_MAX_MESSAGE_BYTES: Final = 16 * 2**20  # decode.max_bytes: the topic accepts what the consumer accepts


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics and the group of one demo. The suffix separates two demos on one broker."""

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

    @property
    def all(self) -> dict[str, int]:
        """Topic name to number of partitions."""
        return dict.fromkeys((self.frames, self.detections, self.dead), PARTITIONS)


@dataclass(frozen=True, slots=True)
class DemoBroker:
    """A broker with the topics of a demo.

    `client` has the settings of every client (`-X`), `consumer` those of consumers only.
    """

    bootstrap_servers: str
    topics: Topics
    client: Mapping[str, Any]
    consumer: Mapping[str, Any]


@contextlib.contextmanager
def broker_with_topics(bootstrap_servers: str | None, client: Mapping[str, Any]) -> Iterator[DemoBroker]:
    """Yield a broker with new topics. On an existing broker, topics and group are deleted at the end of the block.

    Args:
        bootstrap_servers: Address of an existing broker. None: start the embedded broker for the block.
        client: Settings of every client on an existing broker.

    Raises:
        KafkaError: The broker did not start, or did not create a topic.
    """
    topics = Topics()
    if bootstrap_servers is None:
        with EmbeddedBroker() as embedded:
            embedded.create_topics(topics.all)
            yield DemoBroker(embedded.bootstrap_servers, topics, {}, dict(CLIENT_SETTINGS))
        return
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, **client, "log_level": 0})
    limits = {"max.message.bytes": str(_MAX_MESSAGE_BYTES)}
    create_topics(admin, topics.all, broker=bootstrap_servers, config=limits)
    try:
        yield DemoBroker(bootstrap_servers, topics, client, {})
    finally:
        delete_topics(admin, topics.all, group=topics.group)
