"""Commit: which offset of each partition may be committed. Pure: no clock, no I/O, no locks; one owner thread.

A partition's watermark is the offset after the last frame up to which every frame has an acknowledged outcome.
Outcomes of one partition can end out of order (its sources are batched fairly, not in offset order), and offsets can
have gaps (compaction, transaction markers), so the watermark follows the order of receipt, not the numbers.

A partition can also end with offsets that no consumer receives: transaction markers and aborted records. If nothing is
pending, the watermark is the offset that the consumer reads next, behind them. A watermark that stays below them falls
out of the log when retention removes the records, although every frame has its outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from consumer.types import Receipt, TopicPartition


class Committable(NamedTuple):
    """`next_offset` is the first offset that a new owner of the partition should read."""

    partition: TopicPartition
    next_offset: int


class _Assignment:
    """One partition during one epoch."""

    __slots__ = ("abandoned", "epoch", "finished", "pending", "read_to", "reported", "watermark")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.pending: deque[int] = deque()  # received and not below the watermark, in order of receipt
        self.finished: set[int] = set()  # of those, the ones that ended before an earlier one did
        self.abandoned = 0  # of those, the ones that will never end here: dropped before they were looked at
        self.read_to = 0  # the consumer has handed out every frame below this offset
        self.watermark: int | None = None
        self.reported: int | None = None


class OffsetTracker:
    """Contiguous watermarks of the partitions that are assigned now, each with its epoch."""

    def __init__(self) -> None:
        self._assigned: dict[TopicPartition, _Assignment] = {}

    def assign(self, partition: TopicPartition, epoch: int) -> None:
        """A new epoch begins; everything known of an earlier one is forgotten."""
        self._assigned[partition] = _Assignment(epoch)

    def revoke(self, partition: TopicPartition) -> None:
        """The epoch has ended: completions that come later are ignored. Unknown partitions are ignored too."""
        self._assigned.pop(partition, None)

    def is_current(self, receipt: Receipt) -> bool:
        """Whether the frame's assignment still stands; if not, its outcome belongs to another consumer."""
        assignment = self._assigned.get(receipt.partition)
        return assignment is not None and assignment.epoch == receipt.epoch

    def received(self, receipt: Receipt) -> None:
        """A frame was taken from the consumer. Must be called for every one, in the consumer's order.

        Raises ValueError where offsets do not rise within an epoch: that would be a bug of the source.
        """
        assignment = self._current(receipt)
        if assignment is None:
            raise ValueError(f"{receipt.partition} offset {receipt.offset}: epoch {receipt.epoch} is not assigned")
        if receipt.offset < assignment.read_to:
            raise ValueError(
                f"{receipt.partition}: offset {receipt.offset} received after {assignment.read_to - 1} was read"
            )
        assignment.read_to = receipt.offset + 1
        assignment.pending.append(receipt.offset)

    def read_to(self, receipt: Receipt) -> None:
        """The consumer has handed out every frame below `receipt.offset`, and each of them was `received` here.

        If nothing of the partition is pending, this offset is its watermark; otherwise it is once all of it is done.
        Ignored if the epoch has ended, or if nothing below the offset is new.
        """
        assignment = self._current(receipt)
        if assignment is None or receipt.offset <= assignment.read_to:
            return
        assignment.read_to = receipt.offset
        if not assignment.pending:
            assignment.watermark = receipt.offset

    def done(self, receipt: Receipt) -> bool:
        """The frame's outcome was acknowledged. False where its epoch has ended, and nothing changes.

        Raises ValueError where the frame was done before: a second outcome would be a bug of the pipeline.
        """
        assignment = self._current(receipt)
        if assignment is None:
            return False
        pending, finished = assignment.pending, assignment.finished
        if receipt.offset in finished or (pending and receipt.offset < pending[0]) or not pending:
            raise ValueError(f"{receipt.partition}: offset {receipt.offset} was done twice, or never received")
        if pending[0] != receipt.offset:
            finished.add(receipt.offset)
            return True
        assignment.watermark = pending.popleft() + 1
        while pending and pending[0] in finished:
            finished.discard(pending[0])
            assignment.watermark = pending.popleft() + 1
        if not pending:
            assignment.watermark = assignment.read_to
        return True

    def abandon(self, receipt: Receipt) -> None:
        """The frame was dropped before it was looked at. It holds the watermark back, and nobody waits for it."""
        assignment = self._current(receipt)
        if assignment is not None:
            assignment.abandoned += 1

    def committable(self) -> list[Committable]:
        """The watermarks that rose since the last call."""
        risen = []
        for partition, assignment in self._assigned.items():
            if assignment.watermark != assignment.reported and assignment.watermark is not None:
                assignment.reported = assignment.watermark
                risen.append(Committable(partition, assignment.watermark))
        return risen

    def watermarks(self, partitions: Iterable[TopicPartition]) -> list[Committable]:
        """The watermarks of these partitions, reported before or not: for a synchronous commit."""
        return [
            Committable(partition, assignment.watermark)
            for partition in partitions
            if (assignment := self._assigned.get(partition)) is not None and assignment.watermark is not None
        ]

    def watermarks_after(self, last: Mapping[TopicPartition, int]) -> list[Committable]:
        """The watermarks once all frames up to and including the offset `last[partition]` are done."""
        after = []
        for partition, offset in last.items():
            assignment = self._assigned.get(partition)
            all_done = assignment is not None and (not assignment.pending or assignment.pending[-1] <= offset)
            after.append(Committable(partition, assignment.read_to if assignment and all_done else offset + 1))
        return after

    def in_line(self, partition: TopicPartition) -> Iterator[int]:
        """Offsets received and not below the watermark, in order of receipt. Do not mark any `done` meanwhile."""
        assignment = self._assigned.get(partition)
        return iter(assignment.pending if assignment is not None else ())

    def outstanding(self, partitions: Iterable[TopicPartition] | None = None) -> int:
        """Frames of these partitions (default: all) that were received and still await their outcome."""
        chosen = self._assigned.values() if partitions is None else map(self._assigned.get, partitions)
        return sum(len(a.pending) - len(a.finished) - a.abandoned for a in chosen if a is not None)

    @property
    def partitions(self) -> list[TopicPartition]:
        """What is assigned now."""
        return list(self._assigned)

    def _current(self, receipt: Receipt) -> _Assignment | None:
        assignment = self._assigned.get(receipt.partition)
        return assignment if assignment is not None and assignment.epoch == receipt.epoch else None
