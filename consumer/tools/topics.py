"""Creates and deletes the topics of demo and bench."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.errors import KafkaError
from consumer.tools.clients import text_of

CLUSTER_DEFAULT: Final = -1  # the replication factor that the cluster uses by default
_TIMEOUT_S: Final = 15.0


def create_topics(
    admin: AdminClient,
    topics: Mapping[str, int],
    *,
    broker: str,
    replication_factor: int = CLUSTER_DEFAULT,
    config: Mapping[str, str] | None = None,
) -> None:
    """Create topics and wait until they exist.

    Args:
        admin: A client of the cluster. Keep a reference to it until this returns.
        topics: Topic name to number of partitions.
        broker: What the error message calls the cluster.
        replication_factor: Replicas of each partition.
        config: Topic settings, the same for all topics.

    Raises:
        KafkaError: A topic was not created.
    """
    if not topics:
        return
    wanted = [
        NewTopic(name, num_partitions=count, replication_factor=replication_factor, config=dict(config or {}))
        for name, count in topics.items()
    ]
    for name, future in admin.create_topics(wanted, operation_timeout=_TIMEOUT_S).items():
        try:
            future.result(_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            raise KafkaError(f"{broker} did not create the topic {name}: {text_of(error)}") from None


def delete_topics(admin: AdminClient, topics: Iterable[str], *, group: str | None = None) -> None:
    """Delete topics, and the group that read them. Ignores what the broker refuses to delete."""
    futures = [*admin.delete_topics(list(topics), operation_timeout=_TIMEOUT_S).values()]
    if group is not None:
        futures += admin.delete_consumer_groups([group], request_timeout=_TIMEOUT_S).values()
    for future in futures:
        with contextlib.suppress(KafkaException, TimeoutError):
            future.result(_TIMEOUT_S)
