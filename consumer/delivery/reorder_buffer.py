"""Exactly once: outcomes that wait until every earlier offset of their partition has one. Pure, one owner thread.

A transaction commits offsets, and it must hold exactly the outcomes below them. Fair turns between sources can finish
a frame before an earlier one of its partition; written at once, it would lie above the committed offset, and a crash
would have it looked at and written again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from consumer.delivery.offsets import OffsetTracker
from consumer.types import Detected, Finished, Rejected, TopicPartition

# What a result has around its detections, and for each of them, about.
_RESULT_BYTES: Final = 1024
_DETECTION_BYTES: Final = 128
_LETTER_BYTES: Final = 2048


def outcome_bytes(item: Finished) -> int:
    """About how many bytes its message has. A dead letter holds the whole record."""
    outcome = item.outcome
    if isinstance(outcome, Rejected):
        return item.frame.record.size_bytes + _LETTER_BYTES
    return _RESULT_BYTES + (_DETECTION_BYTES * len(outcome.detections) if isinstance(outcome, Detected) else 0)


class HeldOutcomes:
    """Finished frames of the partitions that are assigned now. Holds no more than was received and is not done."""

    def __init__(self) -> None:
        self._held: dict[TopicPartition, dict[int, Finished]] = {}  # by offset
        self.more = False  # the last `take` left ready outcomes that did not fit

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

    def take(self, offsets: OffsetTracker, max_bytes: float = math.inf) -> list[Finished]:
        """Remove and return what no unfinished frame precedes, in offset order within each partition.

        At most `max_bytes` of messages, by `outcome_bytes`, or one outcome. `more` says that something was left. Then
        partitions that had no turn are first next time, so that none waits behind another one for good.
        `offsets` knows what was received; it must hear of every frame returned here that it is `done`, or the
        partition must be revoked there, before the next call.
        """
        ready: list[Finished] = []
        room, self.more = max_bytes, False
        for partition in list(self._held):
            line, before = self._held[partition], len(ready)
            for offset in offsets.in_line(partition):
                item = line.get(offset)
                if item is None:
                    break
                room -= outcome_bytes(item)
                self.more = room < 0 and bool(ready)
                if self.more:
                    break
                ready.append(line.pop(offset))
            if len(ready) > before:
                self._held[partition] = self._held.pop(partition)
            if self.more:
                break
        return ready

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Finished]:
        """Drop and return what is held of these partitions."""
        return [item for partition in partitions for item in self._held.pop(partition, {}).values()]
