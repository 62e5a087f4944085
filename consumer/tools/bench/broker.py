"""The broker that a bench runs on: the embedded one, or one that is there already."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.config import load_config
from consumer.errors import KafkaError
from consumer.tools.clients import text_of
from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker

_ANSWER_S = 15.0


@dataclass(frozen=True, slots=True)
class Broker:
    """`settings`: what consumers on it need. `pid`: of its process where it is ours, to measure its CPU.

    `client`: what every client on it needs, TLS and SASL for example. It may hold secrets: child processes get it from
    the configuration themselves (`client_settings`), and not on their command line.
    `transactions`: whether it hides what was aborted, so that the program delivers exactly once on it.
    """

    name: str
    bootstrap_servers: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pid: int | None = None
    transactions: bool = True

    @property
    def is_ours(self) -> bool:
        """Started for this bench, and so neither encrypted nor guarded."""
        return self.pid is not None

    @contextlib.contextmanager
    def topics(self, partitions: int) -> Iterator[tuple[str, str, str]]:
        """New topics for frames, results and dead letters; deleted at the end, which gives their memory back."""
        run = uuid.uuid4().hex[:8]
        frames, results, dead = (f"sluice-bench-{run}-{what}" for what in ("frames", "results", "dead"))
        self._create([frames, results, dead], partitions)
        try:
            yield frames, results, dead
        finally:
            self._delete([frames, results, dead])

    def _create(self, names: Sequence[str], partitions: int) -> None:
        replicas = 1 if self.is_ours else -1  # -1: what the cluster does by default
        wanted = [NewTopic(name, num_partitions=partitions, replication_factor=replicas) for name in names]
        admin = self._admin()  # held until the answers are there: they fail when it is collected
        for name, answer in admin.create_topics(wanted, operation_timeout=_ANSWER_S).items():
            try:
                answer.result(_ANSWER_S)
            except (KafkaException, TimeoutError) as error:
                raise KafkaError(f"{self.name} did not create the topic {name}: {text_of(error)}") from None

    def _delete(self, names: Sequence[str]) -> None:
        admin = self._admin()
        for answer in admin.delete_topics(list(names), operation_timeout=_ANSWER_S).values():
            with contextlib.suppress(KafkaException, TimeoutError):  # the figures stand; a topic is left behind
                answer.result(_ANSWER_S)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0, **self.client})


@contextlib.contextmanager
def broker_at(bootstrap_servers: str | None) -> Iterator[Broker]:
    """The broker at an address, or without one the embedded broker, for as long as the block lasts."""
    if bootstrap_servers is not None:
        yield Broker(bootstrap_servers, bootstrap_servers, client=client_settings(is_ours=False))
        return
    with EmbeddedBroker() as embedded:
        settings = dict(CLIENT_SETTINGS)
        yield Broker(
            "embedded (Tansu, in memory)", embedded.bootstrap_servers, settings, pid=embedded.pid, transactions=False
        )


def client_settings(*, is_ours: bool) -> dict[str, Any]:
    """What every client needs on a broker: nothing on our own, else what the configuration says."""
    return {} if is_ours else load_config().kafka.shared
