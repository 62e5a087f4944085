"""A log that one cause cannot flood: what is beyond its rate is counted, and the next line says how much that was."""

from __future__ import annotations

from typing import Any

from consumer.types import Clock

BURST = 10
LINES_PER_S = 1.0


class SparingLog:
    """Writes `BURST` lines at once, and `LINES_PER_S` for as long as more come. One thread's."""

    def __init__(self, log: Any, clock: Clock) -> None:  # Any: structlog's loggers have no common type
        self._log = log
        self._clock = clock
        self._allowance = float(BURST)
        self._looked_at = clock()
        self._suppressed = 0

    def warning(self, event: str, **fields: object) -> None:
        """As the log's own. `suppressed` is added where lines before this one were not written."""
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
