"""Delivers exactly once: writes outcomes and commits the offsets below them in one transaction.

An outcome is held until every earlier offset of its partition has an outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from consumer.delivery.base import TRANSACTION_S, Judge, SourceLike, TransactionsLike
from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.delivery.reorder_buffer import HeldOutcomes, outcome_bytes
from consumer.delivery.transaction_budget import TransactionBudget
from consumer.errors import KafkaError, TransactionError
from consumer.observability.metrics import Metrics
from consumer.observability.rate_limited_log import SparingLog
from consumer.types import Acknowledged, Clock, Finished, Frame, TopicPartition

_log = structlog.get_logger(__name__)

# The process ends if transactions fail for this long without a success.
RECOVERY_S = 120.0
# A watermark can rise without an outcome, past transaction markers. It waits this long for a transaction with outcomes.
OFFSETS_ONLY_S: Final = 1.0
# No transaction for these watermarks alone begins with less time left than this.
_LEAST_TRANSACTION_S: Final = 1.0


class ExactlyOnce:
    """A `Delivery` whose outcomes a `read_committed` reader sees exactly once.

    The committed offsets of the group always match the outcomes that were written. Transactions are short: one begins
    when outcomes are ready, and ends within the same call. If it is unknown whether a transaction was committed, all
    outcomes are dropped. Their frames are read again from the committed offsets, in new epochs.

    Args:
        source: The Kafka consumer, which knows the group metadata and the positions to commit.
        publisher: The transactional producer.
        offsets: The offset tracker of the pipeline.
        judge: Called for each outcome after its transaction was committed.
        metrics: Counts transactions and measures their duration.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        source: SourceLike,
        publisher: TransactionsLike,
        offsets: OffsetTracker,
        judge: Judge,
        *,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._offsets = offsets
        self._judge = judge
        self._metrics = metrics
        self._clock = clock
        self._held = HeldOutcomes()
        # Watermarks of the current epochs: the ones that transactions committed, and the ones that rose further
        # without an outcome.
        self._committed: dict[TopicPartition, int] = {}
        self._uncommitted_ends: dict[TopicPartition, int] = {}
        self._ends_since = 0.0
        self._budget = TransactionBudget()
        self._failures = SparingLog(_log, clock)  # a process outside the group fails in every iteration
        self._failed_since: float | None = None  # time of the first failure since the last success
        self._failed_at = 0.0  # time of the last failure
        self._refused = False  # the brokers refused this process as a group member, since the last `deliver` began
        self.broken = False

    @property
    def outstanding(self) -> int:
        return len(self._held)

    @property
    def buffered_bytes(self) -> int:
        return 0  # a transaction ends within the call that begins it, and its size is limited

    @property
    def expelled(self) -> bool:
        # With KIP-848 the client considers itself a member until the next poll. Only a refusal by the brokers shows
        # that it was removed.
        return self._refused or self._source.membership() is None

    def publish(self, finished: Sequence[Finished]) -> None:
        for item in finished:
            self._held.hold(item)

    def deliver(self, wait_s: float = 0.0, within_s: float = TRANSACTION_S) -> list[Acknowledged]:
        self._refused = False
        ready = [] if self.broken else self._held.take(self._offsets, self._budget.bytes)
        quiet = not self.broken and bool(self._uncommitted_ends) and self._clock() - self._ends_since >= OFFSETS_ONLY_S
        if not ready and not quiet:
            if wait_s:
                self._publisher.rest(wait_s)
            return []
        done = self._transact(ready, within_s)
        if done is None:
            if wait_s:
                self._publisher.rest(wait_s)
            return []
        for item in done:
            self._judge(item.frame, item.outcome)
        return done

    def commit(self, risen: Sequence[Committable]) -> None:
        """Remember watermarks that rose without an outcome. The transactions have already committed all others.

        The next transaction commits them, or after `OFFSETS_ONLY_S` a transaction without outcomes.
        """
        for partition, next_offset in risen:
            if next_offset > self._committed.get(partition, -1):
                if not self._uncommitted_ends:
                    self._ends_since = self._clock()
                self._uncommitted_ends[partition] = next_offset

    def hand_over(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Commit watermarks that rose without an outcome. The transactions have already committed all others."""
        self._commit_rest(watermarks, within_s)

    def finish(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Commit watermarks that rose without an outcome. The transactions have already committed all others."""
        self._commit_rest(watermarks, within_s)

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Frame]:
        ended = list(partitions)
        for partition in ended:
            self._committed.pop(partition, None)
            self._uncommitted_ends.pop(partition, None)
        return [item.frame for item in self._held.forget(ended)]

    def recover(self) -> None:
        try:
            self._publisher.renew()
        except TransactionError as error:
            self._check_patience(error)
            return
        epochs = self._source.rewind()
        if epochs is None:  # the consumer has logged the reason
            self._check_patience(
                TransactionError("the consumer cannot go back to the committed offsets", rolled_back=True)
            )
            return
        for partition, epoch in epochs.items():
            self._offsets.assign(partition, epoch)
        self.broken = False

    def _transact(self, ready: Sequence[Finished], within_s: float) -> list[Acknowledged] | None:
        """Run one transaction with these outcomes and every offset that can be committed with them.

        Returns:
            The committed outcomes, or None if the transaction failed.
        """
        last = {item.frame.receipt.partition: item.frame.receipt.offset for item in ready}
        risen = {**self._uncommitted_ends, **dict(self._offsets.watermarks_after(last))}
        offsets = [Committable(*item) for item in risen.items()]
        began, size = self._clock(), sum(map(outcome_bytes, ready))
        try:
            done = self._publisher.transact(
                ready, self._source.commit_positions(offsets), self._membership(), min(within_s, TRANSACTION_S)
            )
        except TransactionError as error:
            self._budget.failed(size, self._clock() - began)
            self._failed(ready, error)
            return None
        took_s = self._clock() - began
        self._budget.committed(size, took_s, full=bool(ready) and self._held.more)
        # Immediately, not when the watermarks are reported: a rewind may come before that, and must not go below them.
        self._source.transacted(offsets)
        self._committed.update(risen)
        self._uncommitted_ends.clear()
        self._failed_since = None
        self._metrics.transactions.labels("committed").inc()
        self._metrics.transaction.observe(took_s)
        return done

    def _commit_rest(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Try to commit watermarks that rose without an outcome.

        If this fails, the next owner of the partition reads to the same end again and commits it.
        """
        self.commit(watermarks)
        wanted = {partition for partition, _ in watermarks}
        possible = not self.broken and not self.expelled and within_s >= _LEAST_TRANSACTION_S
        if possible and wanted & self._uncommitted_ends.keys():
            self._transact([], within_s)

    def _membership(self) -> object:
        membership = self._source.membership()
        if membership is None:
            raise TransactionError("this process is not a member of the group at the moment", rolled_back=True)
        return membership

    def _failed(self, ready: Sequence[Finished], error: TransactionError) -> None:
        """Keep the outcomes of a failed transaction, and decide whether the delivery is broken.

        After a confirmed rollback, the next iteration tries again. The poll before that may resolve the cause.
        """
        for item in ready:
            self._held.hold(item)
        # A transaction of offsets alone does no harm if its result is unknown: every frame below them is done.
        self.broken = not error.rolled_back and bool(ready)
        self._refused = self._refused or error.expelled
        self._metrics.transactions.labels("failed").inc()
        self._failures.warning(
            "transaction failed", outcomes=len(ready), rolled_back=error.rolled_back, error=str(error)
        )
        self._check_patience(error)

    def _check_patience(self, error: TransactionError) -> None:
        now = self._clock()
        # A failure that is long ago starts a new series: since then there may have been nothing to write, and so no
        # success to reset it.
        if self._failed_since is None or now - self._failed_at > RECOVERY_S:
            self._failed_since = now
        self._failed_at = now
        if now - self._failed_since > RECOVERY_S:
            raise KafkaError(f"no transaction succeeded for {RECOVERY_S:.0f} s, the last: {error}") from error
