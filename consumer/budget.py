"""Exactly once: how many bytes a transaction may have, so that it ends in time on the way to the brokers as it is now.

A transaction that is too large for a slow way never commits, however often it is tried. A small one on a fast way costs
round trips. So the budget grows while transactions are quick, and shrinks as soon as one takes long. Pure: no clock.
"""

from __future__ import annotations

from typing import Final

FIRST_BYTES: Final = 2**20
LEAST_BYTES: Final = 64 * 1024
# What librdkafka holds of a transaction lies beside what the pipeline holds.
MOST_BYTES: Final = 32 * 2**20
# A transaction should take no longer. Above twice this, the budget shrinks.
TARGET_S: Final = 2.0


class TransactionBudget:
    """`bytes` is what the next transaction may have; a single larger outcome goes alone."""

    def __init__(self) -> None:
        self.bytes = FIRST_BYTES

    def committed(self, size: int, seconds: float, *, full: bool) -> None:
        """A transaction of `size` bytes took so long. `full`: more was ready and had to wait for the next one."""
        if seconds > 2 * TARGET_S:
            self._shrink(int(size * TARGET_S / seconds))
        elif full and seconds <= TARGET_S:
            self.bytes = min(MOST_BYTES, 2 * self.bytes)

    def failed(self, size: int, seconds: float) -> None:
        """A transaction of `size` bytes failed after so long. One that failed at once did not fail for its bytes."""
        if seconds > TARGET_S:
            self._shrink(size // 4)

    def _shrink(self, to: int) -> None:
        self.bytes = max(LEAST_BYTES, min(self.bytes, to))
