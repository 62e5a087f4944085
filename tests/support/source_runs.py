"""A source around a fake client of the library, with the records that a test gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import confluent_kafka

from consumer.config import Config
from consumer.kafka.consumer import Source
from consumer.types import Frame, TopicPartition
from fake_kafka import FakeConsumer, FakeMessage, FakeTopicIds
from made_frames import P0, VirtualClock


class Listener:
    """Records what it is told; `raises` comes out of the next call."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.raises: list[BaseException] = []
        self.patience = 1000  # how often it goes on waiting

    def waiting(self) -> bool:
        self.patience -= 1
        return self.patience >= 0

    def assigned(self, epochs: dict[TopicPartition, int]) -> None:
        self._tell("assigned", dict(epochs))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._tell("revoked", list(partitions))

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._tell("lost", list(partitions))

    def _tell(self, event: str, what: Any) -> None:
        self.told.append((event, what))
        if self.raises:
            raise self.raises.pop(0)


class Bench:
    def __init__(self, **kafka: Any) -> None:
        self.listener = Listener()
        self.clock = VirtualClock()
        self.topic_ids = FakeTopicIds()
        self.commits: list[float | None] = []
        self.source = Source(
            Config(kafka=kafka),
            self.listener,
            clock=self.clock,
            wall_clock_ms=self.clock.unix_ms,  # type: ignore[arg-type]
            on_committed=self.commits.append,
            topic_ids=self.topic_ids,  # type: ignore[arg-type]
        )
        self.client: FakeConsumer = self.source._client  # type: ignore[assignment]
        self.source.subscribe()

    def play(self, *script: Any, room: int = 100) -> list[Frame]:
        self.client.script.extend(script)
        return self.source.poll(room, 0.2)

    def assign(self, *partitions: TopicPartition) -> None:
        assert self.play(self.client.rebalance("assign", *partitions)) == []

    def answer_commit(self, error: confluent_kafka.KafkaError | None = None) -> None:
        self.client.settings["on_commit"](error, [])


def messages(count: int, partition: TopicPartition = P0, first: int = 0) -> list[FakeMessage]:
    return [FakeMessage(partition, offset) for offset in range(first, first + count)]
