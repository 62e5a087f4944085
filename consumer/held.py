"""Exactly once: outcomes that wait until every earlier offset of their partition has one. Pure, one owner thread.

A transaction commits offsets, and it must hold exactly the outcomes below them. Fair turns between sources can finish
a frame before an earlier one of its partition; written at once, it would lie above the committed offset, and a crash
would have it looked at and written again.
"""

from __future__ import annotations

from collections.abc import Iterable

from consumer.offsets import OffsetTracker
from consumer.types import Finished, TopicPartition


class HeldOutcomes:
    """Finished frames of the partitions that are assigned now. Holds no more than was received and is not done."""

    def __init__(self) -> None:
        self._held: dict[TopicPartition, dict[int, Finished]] = {}  # by offset

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def hold(self, item: Finished) -> None:
        """Take in the outcome of a frame whose epoch is current.

        Raises ValueError where the frame has one already: that would be a bug of the pipeline.
        """
        partition, offset, _ = item.frame.receipt
        line = self._held.setdefault(partition, {})
        if offset in line:
            raise ValueError(f"{partition}: offset {offset} has two outcomes")
        line[offset] = item

    def take(self, offsets: OffsetTracker) -> list[Finished]:
        """Remove and return what no unfinished frame precedes, in offset order within each partition.

        `offsets` knows what was received; it must hear of every frame returned here that it is `done`, or the
        partition must be revoked there, before the next call.
        """
        ready: list[Finished] = []
        for partition, line in self._held.items():
            for offset in offsets.in_line(partition):
                item = line.pop(offset, None)
                if item is None:
                    break
                ready.append(item)
        return ready

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Finished]:
        """Drop and return what is held of these partitions."""
        return [item for partition in partitions for item in self._held.pop(partition, {}).values()]
