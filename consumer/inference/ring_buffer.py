"""Manages the ring buffer of slots that frames are decoded into.

The memory is allocated once, so it is bounded.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


class Ring:
    """A ring buffer of slots. Each batch holds a contiguous range of slots, because a device copies it in one piece.

    Each batch begins after the previous one. If the slots up to the end are too few for a full batch, it begins at the
    first slot instead. So if batches are slightly less than full, the buffer holds one batch fewer. Batches are given
    back in the order in which they were held.

    Not thread-safe: its only user, the worker, has a lock.

    Args:
        memory: uint8 (slots, slot_bytes), contiguous.
        batch_size: The number of frames in a full batch.

    Raises:
        ValueError: The memory has another shape or dtype, or is too small for one full batch.
    """

    def __init__(self, memory: NDArray[np.uint8], batch_size: int) -> None:
        if memory.ndim != 2 or not memory.size or memory.dtype != np.uint8 or not memory.flags.c_contiguous:
            raise ValueError(
                f"ring: expected contiguous uint8 (slots, slot_bytes), got {memory.dtype} {memory.shape}, "
                f"strides {memory.strides}"
            )
        if not 1 <= batch_size <= len(memory):
            raise ValueError(f"ring: {len(memory)} slots have no room for a batch of {batch_size}")
        self.slots = memory
        self.batch_size = batch_size
        self._held: deque[tuple[int, int]] = deque()  # [first, stop) of each batch, the oldest first

    @property
    def free(self) -> int:
        """The number of batches that may still begin.

        The limit is the number of full batches that fit into the memory, also if batches are small. The value can be
        negative: the frames that remain when a batch closes can become a batch without a call of `begin`.
        """
        return len(self.slots) // self.batch_size - len(self._held)

    def begin(self) -> int | None:
        """Return the first slot for a new batch that may become full.

        If no batch is held, it is always slot 0. So a few frames stay in a few slots, which stay in the CPU cache.

        Returns:
            The slot, or None if there is no room or too many batches are held. None is the backpressure.
        """
        if self.free > 0:
            for first in (self._held[-1][1] if self._held else 0, 0):
                if self.room(first) == self.batch_size:
                    return first
        return None

    def room(self, first: int) -> int:
        """Return the number of consecutive free slots from `first`, at most `batch_size`."""
        end = len(self.slots)
        if self._held:
            (oldest, _), (_, newest) = self._held[0], self._held[-1]
            around = newest <= oldest  # whether the held range wraps around
            if first < newest:
                end = first if around else oldest
            elif around:
                end = oldest
        return max(0, min(self.batch_size, end - first))

    def hold(self, first: int, stop: int) -> None:
        """Hold the slots [first, stop) for a batch.

        Raises:
            ValueError: A slot is not free. Two batches would write to it.
        """
        if not first < stop <= first + self.room(first):
            raise ValueError(f"ring: slots {first} to {stop} are not free; held are {list(self._held)}")
        self._held.append((first, stop))

    def give_back(self, first: int, stop: int) -> None:
        """Free the slots [first, stop) of the oldest batch.

        Raises:
            ValueError: It is not the oldest batch. Slots of another batch would be reused too early.
        """
        if not self._held or self._held[0] != (first, stop):
            raise ValueError(f"ring: slots {first} to {stop} are not the oldest of {list(self._held)}")
        self._held.popleft()
