"""Memory that a decoding process can be given: anonymous, by file descriptor.

It needs no room in /dev/shm, and the kernel takes it back with the last process that has it, however that one ends.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray


class SharedMemory:
    """`array` is uint8 of `shape`, zeroed. Where it lies may be handed on by `fd`, which `close` closes.

    Raises OSError where there is no memory or file descriptor left. Pages are taken as they are touched.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        import fcntl  # noqa: PLC0415 - Windows has none, and decodes in threads

        size = int(np.prod(shape))
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            # Whoever made it smaller would end every process that touches the rest.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.fd, size), np.uint8).reshape(shape)
        except BaseException:
            os.close(self.fd)
            raise
        self._address = self.array.ctypes.data

    def offset(self, part: NDArray[np.uint8]) -> int:
        """Where `part`, a contiguous view of `array`, begins in it. Raises ValueError for memory that is not in it."""
        offset = part.ctypes.data - self._address
        if offset < 0 or offset + part.nbytes > self.array.nbytes or not part.flags.c_contiguous:
            raise ValueError("these slots are not in the memory that the decoding processes have")
        return offset

    def close(self) -> None:
        """No other process can be given it from now on. `array` stays valid for as long as something refers to it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
