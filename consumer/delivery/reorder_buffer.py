"""Holds outcomes, for exactly-once delivery, until every earlier offset of their partition has an outcome.

The code is pure, and one thread owns it.

A transaction commits offsets, and must contain exactly the outcomes below them. Fair scheduling between sources can
finish a frame before an earlier one of its partition. If its outcome were written immediately, it would be above the
committed offset. After a crash the frame would be processed, and its outcome written, a second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from consumer.delivery.offsets import OffsetTracker
from consumer.types import Detected, Finished, Rejected, TopicPartition

# Approximate sizes: of a result without its detections, of one detection, and of a dead letter without its record.
_RESULT_BYTES: Final = 1024
_DETECTION_BYTES: Final = 128
_LETTER_BYTES: Final = 2048


def outcome_bytes(item: Finished) -> int:
    """Estimate the bytes of the outcome's message. A dead letter contains the whole input record."""
    outcome = item.outcome
    if isinstance(outcome, Rejected):
        return item.frame.record.size_bytes + _LETTER_BYTES
    return _RESULT_BYTES + (_DETECTION_BYTES * len(outcome.detections) if isinstance(outcome, Detected) else 0)


class HeldOutcomes:
    """Finished frames of the partitions that are currently assigned.

    Its size is bounded: each frame in it was received and is not done.
    """

    def __init__(self) -> None:
        self._held: dict[TopicPartition, dict[int, Finished]] = {}  # inner keys: offsets
        self.more = False  # whether the last `take` left ready outcomes that did not fit

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def hold(self, item: Finished) -> None:
        """Add the outcome of a frame whose epoch is current.

        Raises:
            ValueError: The frame already has an outcome here. This is a bug in the pipeline.
        """
        partition, offset, _ = item.frame.receipt
        line = self._held.setdefault(partition, {})
        if offset in line:
            raise ValueError(f"{partition}: offset {offset} has two outcomes")
        line[offset] = item

    def take(self, offsets: OffsetTracker, max_bytes: float = math.inf) -> list[Finished]:
        """Remove and return the outcomes that no unfinished frame precedes, in offset order within each partition.

        If ready outcomes remain, `more` is True. The next call then starts with the partitions that were not served, so
        that no partition waits for another one indefinitely.

        Args:
            offsets: The tracker of received frames. Before the next call of this method, either call its `done` for
                every returned frame, or revoke the partition there.
            max_bytes: The maximum total of `outcome_bytes`. A single larger outcome is returned alone.
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
        """Remove and return all outcomes of these partitions."""
        return [item for partition in partitions for item in self._held.pop(partition, {}).values()]
