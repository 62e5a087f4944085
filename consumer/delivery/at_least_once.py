"""At least once: an outcome is written at once, and its offset is stored for the commit once it is acknowledged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from consumer.delivery.base import TRANSACTION_S, Judge, PublisherLike, SourceLike
from consumer.delivery.offsets import Committable
from consumer.types import Acknowledged, Finished, Frame, TopicPartition


class AtLeastOnce:
    """After a crash, what was written and not committed is written again."""

    broken = False
    expelled = False  # what is on its way is acknowledged all the same, though its commit will be refused

    def __init__(self, source: SourceLike, publisher: PublisherLike, judge: Judge) -> None:
        self._source = source
        self._publisher = publisher
        self._judge = judge

    @property
    def outstanding(self) -> int:
        return self._publisher.outstanding

    @property
    def buffered_bytes(self) -> int:
        return self._publisher.buffered_bytes

    def publish(self, finished: Sequence[Finished]) -> None:
        self._publisher.publish(finished, self._judge)

    def deliver(self, wait_s: float = 0.0, within_s: float = TRANSACTION_S) -> list[Acknowledged]:  # noqa: ARG002
        return self._publisher.poll(wait_s)

    def commit(self, risen: Sequence[Committable]) -> None:
        self._source.store(risen)

    def hand_over(self, watermarks: Sequence[Committable], within_s: float) -> None:  # noqa: ARG002
        # Stored, not committed: librdkafka commits it when they are unassigned, which follows.
        self._source.store(watermarks)

    def finish(self, watermarks: Sequence[Committable], within_s: float) -> None:  # noqa: ARG002
        # Stored too: at its close librdkafka commits what was stored last, and that must not be older than this.
        self._source.store(watermarks)
        self._source.commit(watermarks)

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Frame]:
        # What is on its way is acknowledged still, and ignored then.
        return self._publisher.forget(set(partitions))

    def recover(self) -> None:
        raise AssertionError("it is never broken")
