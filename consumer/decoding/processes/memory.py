"""Allocates anonymous memory that is shared with decoding processes by file descriptor.

It needs no space in /dev/shm. The kernel frees it when the last process that has it ends, however that process ends.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray


class SharedMemory:
    """Zeroed memory that other processes can map.

    Pages are allocated when they are first used.

    Args:
        name: A name for the memory in /proc.
        shape: The shape of the array.

    Attributes:
        array: uint8 of the given shape.
        fd: The descriptor to pass to other processes; -1 after `close`.

    Raises:
        OSError: No memory or file descriptor is left.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        import fcntl  # noqa: PLC0415 - not available on Windows, which decodes in threads

        size = int(np.prod(shape))
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            # If one process could shrink the memory, all processes that use the removed part would crash.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.fd, size), np.uint8).reshape(shape)
        except BaseException:
            os.close(self.fd)
            raise
        self._address = self.array.ctypes.data

    def offset(self, part: NDArray[np.uint8]) -> int:
        """Return the offset of `part`, a contiguous view of `array`, in bytes.

        Raises:
            ValueError: `part` is not contiguous, or not inside `array`.
        """
        offset = part.ctypes.data - self._address
        if offset < 0 or offset + part.nbytes > self.array.nbytes or not part.flags.c_contiguous:
            raise ValueError("these slots are not in the memory that the decoding processes have")
        return offset

    def close(self) -> None:
        """Close the descriptor. No further process can get the memory; `array` stays valid while it is referenced."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
