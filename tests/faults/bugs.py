"""Seeded bugs: wrong designs that each break a promise, to prove that the tests would notice.

Only tests can reach them: in a process of its own through `sluice_entry.py` (SLUICE_TEST_BUG=NAME), in this one through
`planted`. Nothing in the program knows of them: methods are replaced from here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consumer.concurrency import Deadline
from consumer.delivery.at_least_once import AtLeastOnce
from consumer.delivery.base import TRANSACTION_S
from consumer.delivery.exactly_once import ExactlyOnce
from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.errors import TransactionError
from consumer.kafka.transactions import TransactionalPublisher
from consumer.pipeline import Pipeline
from consumer.types import Acknowledged, BatchResult, Finished, Receipt, Rejected, TopicPartition
from content_bugs import CONTENT_BUGS
from output_bugs import OUTPUT_BUGS
from patching import Bug, Patch
from source_bugs import SOURCE_BUGS


def plant(name: str) -> None:
    """In this process, from now on. Raises ValueError for a bug that does not exist: it would look like a survivor."""
    if name not in BUGS:
        raise ValueError(f"there is no bug {name!r}, only {', '.join(BUGS)}")
    for owner, method, replacement in BUGS[name].patches():
        setattr(owner, method, replacement)


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """For as long as the context lasts."""
    before = [(owner, method, getattr(owner, method)) for owner, method, _ in BUGS[name].patches()]
    plant(name)
    try:
        yield
    finally:
        for owner, method, whole in before:
            setattr(owner, method, whole)


def _kept_by(owner: Any) -> list[Any]:
    """What a bug remembers, for each object that it is in."""
    kept: list[Any] = owner.__dict__.setdefault("_kept_by_a_bug", [])
    return kept


def _size_bytes(results: Sequence[BatchResult]) -> int:
    return sum(frame.size_bytes for result in results for frame in result.batch.frames)


def _commit_before_acknowledgement() -> list[Patch]:
    """A frame is done when its outcome is handed to the producer."""
    whole = Pipeline._publish

    def publish(self: Pipeline, results: Sequence[BatchResult]) -> None:
        whole(self, results)
        for result in results:
            for frame in result.batch.frames:
                self._offsets.done(frame.receipt)

    def acknowledge(self: Pipeline, acknowledged: Sequence[Acknowledged]) -> None:
        self._held_bytes -= sum(done.frame.size_bytes for done in acknowledged)

    return [Patch(Pipeline, "_publish", publish), Patch(Pipeline, "_acknowledge", acknowledge)]


def _commit_position() -> list[Patch]:
    """What was read is committed, as `position()` has it."""

    def watermarks(self: OffsetTracker, partitions: Sequence[TopicPartition]) -> list[Committable]:
        known = [(each, self._assigned[each]) for each in partitions if each in self._assigned]
        return [Committable(each, a.read_to) for each, a in known if a.read_to]

    def committable(self: OffsetTracker) -> list[Committable]:
        return watermarks(self, self.partitions)

    return [Patch(OffsetTracker, "committable", committable), Patch(OffsetTracker, "watermarks", watermarks)]


def _commit_over_a_gap() -> list[Patch]:
    """The watermark is the highest offset that is done, whatever is missing below it."""

    def done(self: OffsetTracker, receipt: Receipt) -> bool:
        assignment = self._current(receipt)
        if assignment is None:
            return False
        assignment.pending.remove(receipt.offset)
        assignment.watermark = max(assignment.watermark or 0, receipt.offset + 1)
        return True

    return [Patch(OffsetTracker, "done", done)]


def _ignore_lost() -> list[Patch]:
    """Lost partitions are kept, and what is in flight of them is written."""
    return [Patch(Pipeline, "lost", lambda self, partitions: None)]


def _completion_without_epoch() -> list[Patch]:
    """An outcome is matched with its partition alone: the assignment before last counts as this one."""
    return [
        Patch(OffsetTracker, "_current", lambda self, receipt: self._assigned.get(receipt.partition)),
        Patch(OffsetTracker, "is_current", lambda self, receipt: receipt.partition in self._assigned),
    ]


def _publish_stale_outcomes() -> list[Patch]:
    """What comes out of the engine is written, even if another member owns the partition by then."""

    def publish(self: Pipeline, results: Sequence[BatchResult]) -> None:
        for result in results:
            pairs = zip(result.batch.frames, result.outcomes, strict=True)
            self._delivery.publish([Finished(frame, outcome, result.summary) for frame, outcome in pairs])

    return [Patch(Pipeline, "_publish", publish)]


def _batches_out_of_order() -> list[Patch]:
    """Every second batch is written behind the one that follows it, as a pool of engines without an order would."""
    publish, acknowledge = Pipeline._publish, Pipeline._acknowledge

    def swapped(self: Pipeline, results: Sequence[BatchResult]) -> None:
        held = _kept_by(self)
        for result in results:
            if not held:
                held.append(result)
                self._held_bytes -= _size_bytes([result])  # a result that is held back does not count
            else:
                publish(self, [result])
                release(self)

    def release(self: Pipeline) -> None:
        result = _kept_by(self).pop()
        self._held_bytes += _size_bytes([result])
        publish(self, [result])

    def flush(self: Pipeline, acknowledged: Sequence[Acknowledged]) -> None:
        if _kept_by(self) and not self._worker.in_flight:
            release(self)
        acknowledge(self, acknowledged)

    return [Patch(Pipeline, "_publish", swapped), Patch(Pipeline, "_acknowledge", flush)]


def _drop_rejections() -> list[Patch]:
    """A bad frame counts as done, and nobody hears of it."""
    publish, deliver = AtLeastOnce.publish, AtLeastOnce.deliver

    def silent(self: AtLeastOnce, finished: Sequence[Finished]) -> None:
        for item in finished:
            if isinstance(item.outcome, Rejected):
                _kept_by(self).append(Acknowledged(item.frame, item.outcome, item.batch.taken_at))
        publish(self, [item for item in finished if not isinstance(item.outcome, Rejected)])

    def delivered(self: AtLeastOnce, wait_s: float = 0.0, within_s: float = TRANSACTION_S) -> list[Acknowledged]:
        dropped = _kept_by(self)
        silently, dropped[:] = dropped[:], []
        return [*silently, *deliver(self, wait_s, within_s)]

    return [Patch(AtLeastOnce, "publish", silent), Patch(AtLeastOnce, "deliver", delivered)]


def _revoke_without_draining() -> list[Patch]:
    """What is in flight of a revoked partition is dropped, and what is acknowledged is not committed."""
    return [Patch(Pipeline, "revoked", lambda self, partitions: self._drop(partitions))]


def _stop_without_committing() -> list[Patch]:
    """A clean stop leaves the last acknowledged outcomes to be repeated."""
    settle = Pipeline._settle

    def settled(self: Pipeline, partitions: Sequence[TopicPartition], deadline: Deadline) -> int:
        self._commit = lambda risen: None  # type: ignore[method-assign]
        try:
            return settle(self, partitions, deadline)
        finally:
            del self._commit  # type: ignore[method-assign]

    return [Patch(AtLeastOnce, "finish", lambda self, watermarks, within_s: None), Patch(Pipeline, "_settle", settled)]


def _write_twice() -> list[Patch]:
    """Now and then an outcome is written a second time, as a retry beside the idempotent producer's would."""
    publish = AtLeastOnce.publish
    count = iter(range(1, 2**31))

    def twice(self: AtLeastOnce, finished: Sequence[Finished]) -> None:
        publish(self, [item for item in finished for _ in range(1 if next(count) % 20 else 2)])

    return [Patch(AtLeastOnce, "publish", twice)]


def _no_rewind_after_abort() -> list[Patch]:
    """After a transaction that failed, the next one goes on behind it: the consumer does not go back by itself."""
    deliver = ExactlyOnce.deliver

    def failed(self: ExactlyOnce, ready: Sequence[Finished], error: TransactionError) -> None:
        _kept_by(self).extend(Acknowledged(item.frame, item.outcome, item.batch.taken_at) for item in ready)
        self.broken = not error.rolled_back

    def recover(self: Pipeline) -> None:
        with contextlib.suppress(TransactionError):
            self._delivery._publisher.renew()
            self._delivery.broken = False
        self._watch_over()

    def delivered(self: ExactlyOnce, wait_s: float = 0.0, within_s: float = TRANSACTION_S) -> list[Acknowledged]:
        done = deliver(self, wait_s, within_s)
        aborted = _kept_by(self)
        gone, aborted[:] = aborted[:], []
        return [*done, *gone]

    return [
        Patch(ExactlyOnce, "_failed", failed),
        Patch(ExactlyOnce, "deliver", delivered),
        Patch(Pipeline, "_recover", recover),
    ]


def _offsets_outside_the_transaction() -> list[Patch]:
    """Outcomes are written in transactions, and the consumer commits beside them, once a second."""
    last, whole = [0.0], TransactionalPublisher.transact

    def transact(
        self: TransactionalPublisher, finished: Sequence[Finished], _: object, membership: object, within_s: float
    ) -> list[Acknowledged]:
        return whole(self, finished, [], membership, within_s)

    def commit(self: ExactlyOnce, _: Sequence[Committable]) -> None:
        if time.monotonic() - last[0] >= 1.0:
            last[0] = time.monotonic()
            finish(self, self._offsets.watermarks(self._offsets.partitions))

    def finish(self: ExactlyOnce, watermarks: Sequence[Committable], within_s: float = 0.0) -> None:
        self._source.commit(watermarks)

    return [
        Patch(TransactionalPublisher, "transact", transact),
        Patch(ExactlyOnce, "commit", commit),
        Patch(ExactlyOnce, "finish", finish),
    ]


BUGS: Mapping[str, Bug] = {
    "commit-before-acknowledgement": Bug(
        "committed after published", "at_least_once", _commit_before_acknowledgement, "net-produce-held"
    ),
    "commit-position": Bug("committed after published", "at_least_once", _commit_position, "sigkill"),
    "commit-over-a-gap": Bug("complete", "at_least_once", _commit_over_a_gap, "broker-pause"),
    "ignore-lost": Bug("ordered", "at_least_once", _ignore_lost, "net-heartbeats-held"),
    "completion-without-epoch": Bug("ordered", "at_least_once", _completion_without_epoch),
    "publish-stale-outcomes": Bug("ordered", "at_least_once", _publish_stale_outcomes),
    "batches-out-of-order": Bug("ordered", "at_least_once", _batches_out_of_order, "sigterm"),
    "drop-rejections": Bug("complete", "at_least_once", _drop_rejections, "sigterm"),
    "revoke-without-draining": Bug(
        "a rebalance repeats nothing", "at_least_once", _revoke_without_draining, "scale-storm"
    ),
    "stop-without-committing": Bug(
        "a clean stop repeats nothing", "at_least_once", _stop_without_committing, "rolling-restart"
    ),
    "write-twice": Bug("a clean run repeats nothing", "at_least_once", _write_twice, "sigterm"),
    "no-rewind-after-abort": Bug("exactly once", "exactly_once", _no_rewind_after_abort, "net-end-txn-held"),
    "offsets-outside-the-transaction": Bug("exactly once", "exactly_once", _offsets_outside_the_transaction, "sigkill"),
    **CONTENT_BUGS,
    **SOURCE_BUGS,
    **OUTPUT_BUGS,
}
