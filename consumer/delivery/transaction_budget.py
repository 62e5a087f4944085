"""Adapts the size of transactions, for exactly-once delivery, to the current speed of the connection to the brokers.

A transaction that is too large for a slow connection never commits, however often it is retried. Small transactions on
a fast connection cost round trips. So the budget grows while transactions are fast, and shrinks if one is slow because
of its bytes. If the brokers need seconds for every transaction of any size, the budget grows too.

The code is pure: it has no clock.
"""

from __future__ import annotations

from typing import Final

FIRST_BYTES: Final = 2**20
LEAST_BYTES: Final = 64 * 1024
# librdkafka holds the messages of a transaction in addition to the frames that the pipeline holds.
MOST_BYTES: Final = 32 * 2**20
# The target duration of a transaction. If one takes more than twice as long, the budget shrinks.
TARGET_S: Final = 2.0
# If one transaction has at least twice the bytes of another, and their durations differ by less than this fraction, the
# bytes do not determine the duration.
_SAME_TIME: Final = 0.25


class TransactionBudget:
    """The limit for the next transaction, in `bytes`. A single larger outcome is sent alone."""

    def __init__(self) -> None:
        self.bytes = FIRST_BYTES
        self._last_size, self._last_s = 0, 0.0

    def committed(self, size: int, seconds: float, *, full: bool) -> None:
        """Adapt the budget to a transaction that was committed.

        Args:
            size: Bytes of its messages.
            seconds: How long it took.
            full: Whether more outcomes were ready, and had to wait for the next transaction.
        """
        if not size:
            return  # a transaction of offsets alone gives no information about bytes
        slow = seconds > 2 * TARGET_S
        if slow and not self._as_long_as_the_last(size, seconds):
            self._shrink(int(size * TARGET_S / seconds))
        elif full and (slow or seconds <= TARGET_S):
            self.bytes = min(MOST_BYTES, 2 * self.bytes)
        self._last_size, self._last_s = size, seconds

    def failed(self, size: int, seconds: float) -> None:
        """Adapt the budget to a transaction that failed. If it failed quickly, its size was not the cause.

        Args:
            size: Bytes of its messages.
            seconds: How long it took to fail.
        """
        if size and seconds > TARGET_S:
            self._shrink(size // 4)

    def _as_long_as_the_last(self, size: int, seconds: float) -> bool:
        """Return whether the last transaction took as long with far more or far fewer bytes.

        If so, the bytes do not determine the duration.
        """
        small, large = sorted((size, self._last_size))
        return 2 * small <= large and abs(seconds - self._last_s) < _SAME_TIME * max(seconds, self._last_s)

    def _shrink(self, to: int) -> None:
        self.bytes = max(LEAST_BYTES, min(self.bytes, to))
