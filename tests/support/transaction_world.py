"""The world of the pipeline with exactly-once delivery: transactions that may fail at any point, against one log.

What each promise means is checked where a transaction takes effect: its outcomes are exactly those between the offset
that the group had committed and the one that it commits, in order, each for the first time, and all of the epochs in
which this process owns the partitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from consumer.config import Config
from consumer.delivery.base import Delivery, Judge, SourceLike
from consumer.delivery.exactly_once import ExactlyOnce
from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.errors import KafkaError, TransactionError
from consumer.observability.metrics import Metrics
from consumer.types import Acknowledged, Detected, Finished, Rejected, TopicPartition
from made_frames import VirtualClock, check_belongs
from pipeline_group import FakeSource, Log
from pipeline_world import UNPUBLISHABLE, World, outcome_of

# What becomes of a transaction: it commits; it is rolled back, and we know it, perhaps because the group has put this
# process out; it does not commit, or it does, but the
# answer is lost; it is left in the middle, and whoever renews the producer finds it committed.
Fate = Literal["commits", "rolled back", "expelled", "aborts", "answer lost", "commits later"]
FATES: tuple[Fate, ...] = get_args(Fate)


class FakeTransactions:
    """As `TransactionalPublisher`. `fail` ends the process at the next transaction."""

    def __init__(self, source: FakeSource, clock: VirtualClock, log: Log) -> None:
        self.source, self.clock, self.log = source, clock, log
        self.fate: Callable[[], Fate] = lambda: "commits"
        self.takes_s: Callable[[], float] = lambda: 0.01
        self.renewal_fails: Callable[[], bool] = lambda: False
        self.fail = False
        self.transactions: list[int] = []  # outcomes in each that committed
        self._unresolved: tuple[list[Finished], list[Committable]] | None = None
        self._suspect = self._with_outcomes = False
        log.resolve()  # what an earlier process has left open
        log.resolve = self._resolve

    def transact(
        self, finished: Sequence[Finished], positions: Sequence[Committable], membership: object, within_s: float
    ) -> list[Acknowledged]:
        assert membership is not None, "a transaction without a proof of membership"
        assert not (self._suspect and self._with_outcomes), "the next transaction came before the recovery"
        if self._suspect:  # as the real one: it begins with a new producer, in the same time
            began = self.clock.now
            self._renew(within_s)
            within_s -= self.clock.now - began
            if within_s <= 0:
                raise TransactionError("no time was left to begin one", rolled_back=True)
        takes_s, fate = self.takes_s(), self.fate()
        self.clock.advance(min(takes_s, within_s))
        if self.fail:
            raise KafkaError("the brokers refuse it")
        if takes_s > within_s:
            fate = {"commits": "answer lost"}.get(fate, fate)
        if fate in {"commits", "answer lost"}:
            self._commit(finished, positions)
        if fate == "commits":
            return [Acknowledged(item.frame, _written(item), self.clock.now) for item in finished]
        if fate in {"rolled back", "expelled"}:
            raise TransactionError(fate, rolled_back=True, expelled=fate == "expelled")
        self._suspect, self._with_outcomes = True, bool(finished)
        self._unresolved = (list(finished), list(positions)) if fate == "commits later" else None
        raise TransactionError(fate, rolled_back=False)

    def renew(self) -> None:
        self._renew(math.inf)

    def _renew(self, within_s: float) -> None:
        self.clock.advance(min(self.takes_s(), within_s))
        if self.renewal_fails():
            raise TransactionError("the brokers do not answer", rolled_back=True)
        self._resolve()
        self._suspect = False

    def rest(self, timeout_s: float) -> None:
        self.clock.advance(timeout_s)

    def check_resolved(self) -> None:
        assert not self._suspect, "what is committed was looked up while a transaction was unresolved"

    def _resolve(self) -> None:
        unresolved, self._unresolved = self._unresolved, None
        if unresolved is not None:
            self._commit(*unresolved)

    def _commit(self, finished: Sequence[Finished], positions: Sequence[Committable]) -> None:
        lines: dict[TopicPartition, list[int]] = {partition: [] for partition, _ in positions}
        for item in finished:
            partition, offset, epoch = item.frame.receipt
            check_belongs(item.frame, item.outcome, outcome_of(item.frame))
            owned = self.source.owned.get(partition)
            # A transaction that is resolved late may belong to an epoch before the one that owns the partition now.
            assert owned is not None or self._suspect, f"committed for {partition}, which is not ours"
            assert owned == epoch or self._suspect, f"committed for an epoch that has ended: {item.frame.receipt}"
            lines[partition].append(offset)
            assert (partition, offset) not in self.log.acknowledged, f"{partition}: {offset} is seen twice"
            self.log.acknowledge(partition, offset, epoch)
        for partition, after in positions:
            offsets, before = lines[partition], self.log.committed.get(partition, 0)
            assert before <= after, f"{partition}: the commit went back from {before} to {after}"
            below = [offset for offset, _, _ in self.log.records[partition] if before <= offset < after]
            assert offsets == below, f"{partition}: {offsets} written, {before} to {after} committed"
            self.log.committed[partition] = after
        self.transactions.append(len(finished))


class ExactlyOnceSource(FakeSource):
    """Nothing is stored or committed beside the transactions; what is committed is looked up when they are resolved."""

    transactions: FakeTransactions

    def rewind(self) -> object:
        self.transactions.check_resolved()
        return super().rewind()

    def store(self, offsets: object) -> None:
        raise AssertionError("stored beside the transactions")

    def commit(self, offsets: Sequence[Committable]) -> None:
        raise AssertionError("committed beside the transactions")


class ExactlyOnceWorld(World):
    """`publisher` are the transactions."""

    def __init__(self, log: Log, config: Config, metrics: Metrics | None = None) -> None:
        super().__init__(log, config.model_copy(update={"delivery": "exactly_once"}), metrics)

    def _make_source(self, listener: object) -> FakeSource:
        self.source = ExactlyOnceSource(self.log, self.clock, listener)
        return self.source

    def _make_delivery(self, source: SourceLike, offsets: OffsetTracker, judge: Judge) -> Delivery:
        self.publisher = FakeTransactions(self.source, self.clock, self.log)
        self.source.transactions = self.publisher
        self.delivery = ExactlyOnce(source, self.publisher, offsets, judge, metrics=self.metrics, clock=self.clock)
        return self.delivery

    def _published_bytes(self) -> int:
        lines = self.delivery._held._held.values()
        return sum(item.frame.record.size_bytes for line in lines for item in line.values())


def _written(item: Finished) -> Detected | Rejected:
    if isinstance(item.outcome, Detected) and item.frame.payload.startswith(UNPUBLISHABLE):
        return Rejected("publish", "unpublishable", "a number of the result is not finite")
    return item.outcome
