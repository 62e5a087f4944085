"""Computes which offset of each partition may be committed.

The code is pure: it has no clock, no I/O and no locks, and one thread owns it.

The watermark of a partition is the offset after the last frame up to which every frame has an acknowledged outcome.
Outcomes of one partition can finish out of order, because its sources are batched fairly and not in offset order.
Offsets can have gaps (compaction, transaction markers). So the watermark follows the order of receipt, not the numbers.

A partition can also end with offsets that no consumer receives: transaction markers and aborted records. If no frame is
pending, the watermark is the offset that the consumer reads next, after them. A watermark below them would drop out of
the log when retention removes the records, although every frame has its outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from consumer.types import Receipt, TopicPartition


class Committable(NamedTuple):
    """An offset to commit: `next_offset` is the first offset that a new owner of the partition should read."""

    partition: TopicPartition
    next_offset: int


class _Assignment:
    """State of one partition during one epoch."""

    __slots__ = ("abandoned", "epoch", "finished", "pending", "read_to", "reported", "watermark")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.pending: deque[int] = deque()  # received offsets at or above the watermark, in order of receipt
        self.finished: set[int] = set()  # pending offsets that are done, though an earlier one is not
        self.abandoned = 0  # number of pending offsets whose frames were dropped before processing, so never done here
        self.read_to = 0  # the consumer has returned every frame below this offset
        self.watermark: int | None = None
        self.reported: int | None = None  # the watermark that `committable` returned last


class OffsetTracker:
    """Tracks the watermark and the epoch of each partition that is currently assigned."""

    def __init__(self) -> None:
        self._assigned: dict[TopicPartition, _Assignment] = {}

    def assign(self, partition: TopicPartition, epoch: int) -> None:
        """Start a new epoch of the partition, and discard all state of an earlier one."""
        self._assigned[partition] = _Assignment(epoch)

    def revoke(self, partition: TopicPartition) -> None:
        """End the epoch of the partition. Later completions of its frames are ignored, as are unknown partitions."""
        self._assigned.pop(partition, None)

    def is_current(self, receipt: Receipt) -> bool:
        """Return whether the frame's epoch is current. If not, another consumer may own the partition now."""
        assignment = self._assigned.get(receipt.partition)
        return assignment is not None and assignment.epoch == receipt.epoch

    def received(self, receipt: Receipt) -> None:
        """Record a frame that the consumer returned. Call this for every frame, in the consumer's order.

        Raises:
            ValueError: The epoch is not assigned, or offsets do not rise within it. Either is a bug in the caller.
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
        """Record that the consumer has returned every frame below `receipt.offset`.

        Pass all of these frames to `received` first. If no frame of the partition is pending, the offset becomes the
        watermark now; otherwise it does when all pending frames are done. The call has no effect if the epoch has
        ended, or if reading had already reached the offset.
        """
        assignment = self._current(receipt)
        if assignment is None or receipt.offset <= assignment.read_to:
            return
        assignment.read_to = receipt.offset
        if not assignment.pending:
            assignment.watermark = receipt.offset

    def done(self, receipt: Receipt) -> bool:
        """Record that the outcome of the frame was acknowledged.

        Returns:
            Whether the epoch of the frame is current. If not, nothing changes.

        Raises:
            ValueError: The frame was already done, or never received. Either is a bug in the pipeline.
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
        """Record that the frame was dropped before processing.

        The frame still holds the watermark back, but `outstanding` no longer counts it.
        """
        assignment = self._current(receipt)
        if assignment is not None:
            assignment.abandoned += 1

    def committable(self) -> list[Committable]:
        """Return the watermarks that rose since the last call."""
        risen = []
        for partition, assignment in self._assigned.items():
            if assignment.watermark != assignment.reported and assignment.watermark is not None:
                assignment.reported = assignment.watermark
                risen.append(Committable(partition, assignment.watermark))
        return risen

    def watermarks(self, partitions: Iterable[TopicPartition]) -> list[Committable]:
        """Return the watermarks of these partitions, including those already reported. For a synchronous commit."""
        return [
            Committable(partition, assignment.watermark)
            for partition in partitions
            if (assignment := self._assigned.get(partition)) is not None and assignment.watermark is not None
        ]

    def watermarks_after(self, last: Mapping[TopicPartition, int]) -> list[Committable]:
        """Return the watermarks that will hold when all frames up to and including `last[partition]` are done.

        Args:
            last: An offset for each partition.
        """
        after = []
        for partition, offset in last.items():
            assignment = self._assigned.get(partition)
            all_done = assignment is not None and (not assignment.pending or assignment.pending[-1] <= offset)
            after.append(Committable(partition, assignment.read_to if assignment and all_done else offset + 1))
        return after

    def in_line(self, partition: TopicPartition) -> Iterator[int]:
        """Iterate over the received offsets at or above the watermark, in order of receipt.

        Do not call `done` for this partition during the iteration.
        """
        assignment = self._assigned.get(partition)
        return iter(assignment.pending if assignment is not None else ())

    def outstanding(self, partitions: Iterable[TopicPartition] | None = None) -> int:
        """Count the received frames of these partitions (default: all) whose outcome is still to come."""
        chosen = self._assigned.values() if partitions is None else map(self._assigned.get, partitions)
        return sum(len(a.pending) - len(a.finished) - a.abandoned for a in chosen if a is not None)

    @property
    def partitions(self) -> list[TopicPartition]:
        """The partitions that are currently assigned."""
        return list(self._assigned)

    def _current(self, receipt: Receipt) -> _Assignment | None:
        assignment = self._assigned.get(receipt.partition)
        return assignment if assignment is not None and assignment.epoch == receipt.epoch else None
