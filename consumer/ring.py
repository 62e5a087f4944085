"""The batch buffers: allocated once, taken, decoded into, given back. Memory stays bounded by construction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Room for one batch. `slots` is uint8 (batch_size, slot_bytes): row i belongs to frame i of the batch."""

    index: int
    slots: NDArray[np.uint8]


class Ring:
    """A fixed set of buffers. Not thread-safe: its one user, the worker, calls it under its own lock.

    `memory` is uint8 (buffers, batch_size, slot_bytes), contiguous. Raises ValueError for any other.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        if memory.ndim != 3 or not memory.size or memory.dtype != np.uint8 or not memory.flags.c_contiguous:
            raise ValueError(
                "ring: expected contiguous uint8 (buffers, batch_size, slot_bytes), "
                f"got {memory.dtype} {memory.shape}, strides {memory.strides}"
            )
        self.nbytes = memory.nbytes
        self._buffers = tuple(Buffer(index, slots) for index, slots in enumerate(memory))
        self._free = list(reversed(self._buffers))

    @property
    def free(self) -> int:
        """How many buffers can be taken."""
        return len(self._free)

    def take(self) -> Buffer | None:
        """A buffer that nobody else holds, or None while all are taken: that is the backpressure.

        Its contents are those of the batch before. The one given back last comes first: it is warm in the cache.
        """
        return self._free.pop() if self._free else None

    def give_back(self, buffer: Buffer) -> None:
        """Raises ValueError for a buffer of another ring, or one given back already: two batches would share it."""
        if not 0 <= buffer.index < len(self._buffers) or self._buffers[buffer.index] is not buffer:
            raise ValueError(f"ring: buffer {buffer.index} is not of this ring")
        if buffer in self._free:  # by identity, among a handful
            raise ValueError(f"ring: buffer {buffer.index} was given back twice")
        self._free.append(buffer)
