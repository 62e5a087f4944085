"""Steps 4 and 5 of the loop, publish and commit, in the two ways that the option `delivery` offers.

`AtLeastOnce` writes an outcome at once and stores offsets for the commit once it is acknowledged. `ExactlyOnce` holds
outcomes until every earlier offset of their partition has one, then writes them and the offsets in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import structlog

from consumer.budget import TransactionBudget
from consumer.errors import KafkaError, TransactionError
from consumer.held import HeldOutcomes, outcome_bytes
from consumer.metrics import Metrics
from consumer.offsets import Committable, OffsetTracker
from consumer.sparing import SparingLog
from consumer.types import Acknowledged, Clock, Finished, Frame, Lag, Outcome, Receipt, TopicPartition

_log = structlog.get_logger(__name__)

# How long it is tried to begin again after a failed transaction, before the process ends.
RECOVERY_S = 120.0
# Offsets that rise without an outcome (behind transaction markers) wait so long for a transaction that has outcomes.
OFFSETS_ONLY_S: Final = 1.0
# With less time left, none is begun for them alone.
_LEAST_TRANSACTION_S: Final = 1.0
# From begin to commit. It takes milliseconds; a rebalance or a shutdown may have to wait for it.
TRANSACTION_S: Final = 10.0

Judge = Callable[[Frame, Outcome], None]
"""Told of each outcome as it was written: a result that cannot be written has become a rejection."""


class SourceLike(Protocol):
    """What the loop asks of `source.Source`; tests put a fake one here."""

    def subscribe(self) -> None: ...
    def poll(self, room: int, timeout_s: float, max_bytes: float = ...) -> list[Frame]: ...
    def ends(self) -> list[Receipt]: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def store(self, offsets: Iterable[Committable]) -> None: ...
    def commit(self, offsets: Sequence[Committable]) -> None: ...
    def membership(self) -> object | None: ...
    def commit_positions(self, offsets: Iterable[Committable]) -> list[Any]: ...
    def transacted(self, offsets: Iterable[Committable]) -> None: ...
    def rewind(self) -> Mapping[TopicPartition, int] | None: ...
    def lag(self) -> list[Lag]: ...
    def close(self, timeout_s: float) -> bool: ...


class PublisherLike(Protocol):
    """What `AtLeastOnce` asks of `publisher.Publisher`."""

    @property
    def outstanding(self) -> int: ...
    @property
    def buffered_bytes(self) -> int: ...
    def publish(self, finished: Sequence[Finished], judge: Judge) -> None: ...
    def poll(self, timeout_s: float = 0.0) -> list[Acknowledged]: ...
    def forget(self, partitions: Collection[TopicPartition]) -> list[Frame]: ...


class TransactionsLike(Protocol):
    """What `ExactlyOnce` asks of `publisher.TransactionalPublisher`."""

    def transact(
        self, finished: Sequence[Finished], positions: Sequence[Any], membership: object, within_s: float
    ) -> list[Acknowledged]: ...
    def renew(self) -> None: ...
    def rest(self, timeout_s: float) -> None: ...


class Delivery(Protocol):
    """What the loop does with outcomes and watermarks. For the main thread alone.

    Raises KafkaError (and PublishError) where the process must end, from any method.
    """

    @property
    def outstanding(self) -> int:
        """Outcomes taken in that were not handed out as acknowledged."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """Bytes of messages that the client library holds between two calls, beside the frames themselves."""
        ...

    @property
    def broken(self) -> bool:
        """Nothing more is acknowledged until `recover` succeeds. Before that, forget all partitions."""
        ...

    @property
    def expelled(self) -> bool:
        """Since the last `deliver`: the group has put this process out. Until a poll nothing more is acknowledged."""
        ...

    def publish(self, finished: Sequence[Finished]) -> None:
        """Take in outcomes of frames whose epoch is current. Blocks only where the user's local queue is full."""
        ...

    def deliver(self, wait_s: float = 0.0, within_s: float = TRANSACTION_S) -> list[Acknowledged]:
        """What the brokers have by now. Blocks up to `wait_s` where nothing is there, or `within_s` to write it."""
        ...

    def commit(self, risen: Sequence[Committable]) -> None:
        """These watermarks rose by what was acknowledged, or to the end of a partition."""
        ...

    def hand_over(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Inside a revocation, once it is settled: the last word on these partitions. Blocks for `within_s` at most."""
        ...

    def finish(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """After the last turn, before the source is closed: the last word on all partitions.

        Blocks for `within_s`, and `at_least_once` for one commit.
        """
        ...

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Frame]:
        """The epochs of these partitions have ended. Returns the frames that will not be acknowledged any more."""
        ...

    def recover(self) -> None:
        """One try to begin again, in new epochs of the offset tracker. Blocks for seconds. See `broken` for success."""
        ...


MakeDelivery = Callable[[SourceLike, OffsetTracker, Judge], Delivery]


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
