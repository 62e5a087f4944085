"""Delivers at least once: sends each outcome immediately, and stores its offset when the brokers acknowledge it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from consumer.delivery.base import TRANSACTION_S, Judge, PublisherLike, SourceLike
from consumer.delivery.offsets import Committable
from consumer.types import Acknowledged, Finished, Frame, TopicPartition


class AtLeastOnce:
    """A `Delivery` that repeats outcomes after a crash: those that were written but whose offsets were not committed.

    Args:
        source: The Kafka consumer, which stores and commits the offsets.
        publisher: The producer without transactions.
        judge: Called for each outcome as it is sent.
    """

    broken = False
    # The brokers still acknowledge messages of a process that left the group. They only refuse its commits.
    expelled = False

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
        # Storing is enough: the partitions are unassigned next, and librdkafka commits stored offsets then.
        self._source.store(watermarks)

    def finish(self, watermarks: Sequence[Committable], within_s: float) -> None:  # noqa: ARG002
        # Store them too: on close, librdkafka commits the last stored offsets, which must not be older than these.
        self._source.store(watermarks)
        self._source.commit(watermarks)

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Frame]:
        # Messages in flight are still acknowledged. The offset tracker ignores them, because their epoch has ended.
        return self._publisher.forget(set(partitions))

    def recover(self) -> None:
        raise AssertionError("it is never broken")
