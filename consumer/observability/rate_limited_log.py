"""Limits the rate of log lines, and counts the suppressed lines."""

from __future__ import annotations

from typing import Any

from consumer.types import Clock

BURST = 10
LINES_PER_S = 1.0


class SparingLog:
    """Writes at most `BURST` lines at once, and then `LINES_PER_S` lines per second. Not thread-safe.

    Args:
        log: A structlog logger.
        clock: Monotonic seconds.
    """

    def __init__(self, log: Any, clock: Clock) -> None:  # Any, because the loggers of structlog have no common type
        self._log = log
        self._clock = clock
        self._allowance = float(BURST)
        self._looked_at = clock()
        self._suppressed = 0

    def warning(self, event: str, **fields: object) -> None:
        """Log a warning, or suppress it. The next written line has the number of suppressed lines, as `suppressed`."""
        now = self._clock()
        self._allowance = min(BURST, self._allowance + (now - self._looked_at) * LINES_PER_S)
        self._looked_at = now
        if self._allowance < 1:
            self._suppressed += 1
            return
        self._allowance -= 1
        if self._suppressed:
            fields["suppressed"] = self._suppressed
            self._suppressed = 0
        self._log.warning(event, **fields)
