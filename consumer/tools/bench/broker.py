"""The broker that a bench runs on: the embedded one or an existing one."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka.admin import AdminClient

from consumer.config import load_config
from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker
from consumer.tools.topics import CLUSTER_DEFAULT, create_topics, delete_topics


@dataclass(frozen=True, slots=True)
class BenchBroker:
    """A broker, and what clients need to know about it.

    Attributes:
        name: What the output calls the broker.
        bootstrap_servers: Its address.
        settings: Settings of consumers.
        client: Settings of every client, for example TLS and SASL. They may hold secrets, so they are not passed on
            command lines: child processes read them from the configuration (`client_settings`).
        pid: Process ID of an embedded broker, for measuring its CPU time.
        transactions: Whether the broker hides aborted records, so that exactly-once delivery works on it.
    """

    name: str
    bootstrap_servers: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pid: int | None = None
    transactions: bool = True

    @property
    def is_embedded(self) -> bool:
        """Started by this bench, and so without encryption and authentication."""
        return self.pid is not None

    @contextlib.contextmanager
    def topics(self, partitions: int) -> Iterator[tuple[str, str, str]]:
        """Yield new topics for frames, results and dead letters. They are deleted at the end, which frees memory."""
        run = uuid.uuid4().hex[:8]
        frames, results, dead = (f"sluice-bench-{run}-{what}" for what in ("frames", "results", "dead"))
        names = dict.fromkeys((frames, results, dead), partitions)
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0, **self.client})
        replicas = 1 if self.is_embedded else CLUSTER_DEFAULT
        create_topics(admin, names, broker=self.name, replication_factor=replicas)
        try:
            yield frames, results, dead
        finally:
            delete_topics(admin, names)


@contextlib.contextmanager
def broker_at(bootstrap_servers: str | None) -> Iterator[BenchBroker]:
    """Yield the broker at an address. None: start the embedded broker for the block."""
    if bootstrap_servers is not None:
        yield BenchBroker(bootstrap_servers, bootstrap_servers, client=client_settings(is_embedded=False))
        return
    with EmbeddedBroker() as embedded:
        yield BenchBroker(
            "embedded (Tansu, in memory)",
            embedded.bootstrap_servers,
            settings=dict(CLIENT_SETTINGS),
            pid=embedded.pid,
            transactions=False,
        )


def client_settings(*, is_embedded: bool) -> dict[str, Any]:
    """The settings of every client: none on an embedded broker, else those of the configuration."""
    return {} if is_embedded else load_config().kafka.shared
