"""Exactly once: outcomes and the offsets below them are written in one transaction.

Outcomes are held until every earlier offset of their partition has one.
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

# How long it is tried to begin again after a failed transaction, before the process ends.
RECOVERY_S = 120.0
# Offsets that rise without an outcome (behind transaction markers) wait so long for a transaction that has outcomes.
OFFSETS_ONLY_S: Final = 1.0
# With less time left, none is begun for them alone.
_LEAST_TRANSACTION_S: Final = 1.0


class ExactlyOnce:
    """A `read_committed` reader sees each outcome once, and the group's offsets say exactly which there are.

    Transactions are short: one begins when outcomes are ready, and ends within the same call. Where it is not known
    whether one has committed, all is dropped, and read again from the committed offsets in new epochs.
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
        # Watermarks of the current epochs: those that transactions have committed, and those that rose beyond them
        # without an outcome.
        self._committed: dict[TopicPartition, int] = {}
        self._uncommitted_ends: dict[TopicPartition, int] = {}
        self._ends_since = 0.0
        self._budget = TransactionBudget()
        self._failures = SparingLog(_log, clock)  # outside the group, there is one in every turn
        self._failed_since: float | None = None  # the first failure of a row that no success has ended
        self._failed_at = 0.0  # the last one
        self._refused = False  # as a member, in the last `deliver`
        self.broken = False

    @property
    def outstanding(self) -> int:
        return len(self._held)

    @property
    def buffered_bytes(self) -> int:
        return 0  # a transaction ends within the call that begins it, and its bytes are limited

    @property
    def expelled(self) -> bool:
        # With KIP-848 the client goes on as a member until a poll, and only the brokers say that it is none.
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
        """The transactions did, except for what rose without an outcome: the next one does, or one of its own."""
        for partition, next_offset in risen:
            if next_offset > self._committed.get(partition, -1):
                if not self._uncommitted_ends:
                    self._ends_since = self._clock()
                self._uncommitted_ends[partition] = next_offset

    def hand_over(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """The transactions did, except for what rose without an outcome."""
        self._commit_rest(watermarks, within_s)

    def finish(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """The transactions did, except for what rose without an outcome."""
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
        if epochs is None:  # the source has logged why
            self._check_patience(
                TransactionError("the consumer cannot go back to the committed offsets", rolled_back=True)
            )
            return
        for partition, epoch in epochs.items():
            self._offsets.assign(partition, epoch)
        self.broken = False

    def _transact(self, ready: Sequence[Finished], within_s: float) -> list[Acknowledged] | None:
        """One transaction with these outcomes and all offsets that they or earlier ones allow. None: it failed."""
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
        # At once, not when the watermarks are reported: a rewind must not go below them, whatever comes first.
        self._source.transacted(offsets)
        self._committed.update(risen)
        self._uncommitted_ends.clear()
        self._failed_since = None
        self._metrics.transactions.labels("committed").inc()
        self._metrics.transaction.observe(took_s)
        return done

    def _commit_rest(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Best effort: if it fails, the next owner of the partition reads to the same end again and commits it."""
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
        """Rolled back for certain, it is tried again in the next turn: the next poll may bring what was the matter."""
        for item in ready:
            self._held.hold(item)
        # In doubt, offsets alone take nothing back: everything below them is done.
        self.broken = not error.rolled_back and bool(ready)
        self._refused = self._refused or error.expelled
        self._metrics.transactions.labels("failed").inc()
        self._failures.warning(
            "transaction failed", outcomes=len(ready), rolled_back=error.rolled_back, error=str(error)
        )
        self._check_patience(error)

    def _check_patience(self, error: TransactionError) -> None:
        now = self._clock()
        # One long ago is of another row: what followed it may have had nothing to write, and so no success.
        if self._failed_since is None or now - self._failed_at > RECOVERY_S:
            self._failed_since = now
        self._failed_at = now
        if now - self._failed_since > RECOVERY_S:
            raise KafkaError(f"no transaction succeeded for {RECOVERY_S:.0f} s, the last: {error}") from error
