"""Exactly once: how many bytes a transaction may have, so that it ends in time on the way to the brokers as it is now.

A transaction that is too large for a slow way never commits, however often it is tried. A small one on a fast way costs
round trips. So the budget grows while transactions are quick, and shrinks when one takes long because of its bytes.
Brokers that need seconds for each transaction, whatever its size, get large ones. Pure: no clock.
"""

from __future__ import annotations

from typing import Final

FIRST_BYTES: Final = 2**20
LEAST_BYTES: Final = 64 * 1024
# What librdkafka holds of a transaction lies beside what the pipeline holds.
MOST_BYTES: Final = 32 * 2**20
# A transaction should take no longer. Above twice this, the budget shrinks.
TARGET_S: Final = 2.0
# The bytes do not matter if one transaction has twice those of another and their times differ by less than this part.
_SAME_TIME: Final = 0.25


class TransactionBudget:
    """`bytes` is what the next transaction may have; a single larger outcome goes alone."""

    def __init__(self) -> None:
        self.bytes = FIRST_BYTES
        self._last_size, self._last_s = 0, 0.0

    def committed(self, size: int, seconds: float, *, full: bool) -> None:
        """A transaction of `size` bytes took so long. `full`: more was ready and had to wait for the next one."""
        if not size:
            return  # offsets alone say nothing about bytes
        slow = seconds > 2 * TARGET_S
        if slow and not self._as_long_as_the_last(size, seconds):
            self._shrink(int(size * TARGET_S / seconds))
        elif full and (slow or seconds <= TARGET_S):
            self.bytes = min(MOST_BYTES, 2 * self.bytes)
        self._last_size, self._last_s = size, seconds

    def failed(self, size: int, seconds: float) -> None:
        """A transaction of `size` bytes failed after so long. One that failed at once did not fail for its bytes."""
        if size and seconds > TARGET_S:
            self._shrink(size // 4)

    def _as_long_as_the_last(self, size: int, seconds: float) -> bool:
        """The last one had far more or far fewer bytes and took as long: the time is not that of the bytes."""
        small, large = sorted((size, self._last_size))
        return 2 * small <= large and abs(seconds - self._last_s) < _SAME_TIME * max(seconds, self._last_s)

    def _shrink(self, to: int) -> None:
        self.bytes = max(LEAST_BYTES, min(self.bytes, to))
