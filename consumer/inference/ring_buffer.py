"""The ring of slots: allocated once, decoded into, given back in order. Memory stays bounded by construction."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


class Ring:
    """Slots for batches: each batch has a range of them, since a device copies it in one piece.

    Batches follow one another, and begin again at the first slot where the rest is too short for a full one: of those
    that are a little less than full it holds one fewer. They are given back in the order in which they were held.

    `memory` is uint8 (slots, slot_bytes), contiguous, with room for a batch of `batch_size` at least; ValueError for
    any other. Not thread-safe: its one user, the worker, has a lock.
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
        """How many more batches may begin: in all as many as there is room for if they are full, however small.

        Below 0 where what was left over of some was held by itself.
        """
        return len(self.slots) // self.batch_size - len(self._held)

    def begin(self) -> int | None:
        """The slot where a full batch may begin; None while there is no room, or enough are held: the backpressure.

        With nothing held it is the first slot, whatever came before: few frames stay in a few slots, warm in the cache.
        """
        if self.free > 0:
            for first in (self._held[-1][1] if self._held else 0, 0):
                if self.room(first) == self.batch_size:
                    return first
        return None

    def room(self, first: int) -> int:
        """Free slots from `first` on, one after the other; `batch_size` at most."""
        end = len(self.slots)
        if self._held:
            (oldest, _), (_, newest) = self._held[0], self._held[-1]
            around = newest <= oldest  # what is held goes over the end
            if first < newest:
                end = first if around else oldest
            elif around:
                end = oldest
        return max(0, min(self.batch_size, end - first))

    def hold(self, first: int, stop: int) -> None:
        """A batch lies in [first, stop). Raises ValueError where another one does: both would write there."""
        if not first < stop <= first + self.room(first):
            raise ValueError(f"ring: slots {first} to {stop} are not free; held are {list(self._held)}")
        self._held.append((first, stop))

    def give_back(self, first: int, stop: int) -> None:
        """Raises ValueError for what is not the oldest batch: slots would be used that another one still has."""
        if not self._held or self._held[0] != (first, stop):
            raise ValueError(f"ring: slots {first} to {stop} are not the oldest of {list(self._held)}")
        self._held.popleft()
