"""Suppresses repeated log lines of librdkafka.

If a broker is unreachable, librdkafka logs the same line twenty times a second, for hours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

QUIET_S: Final = 30.0
_REMEMBERED: Final = 1000  # texts; there are few, because they vary only by address and client name
_KAFKA: Final = "kafka"  # the event name of the log lines of librdkafka


class Repeats(logging.Filter):
    """A filter for a handler or a logger. It passes each text of librdkafka once in `QUIET_S` seconds.

    The next line with the same text reports the number of suppressed lines.

    Several threads may call it at the same time. Then a count may be one too low, or a text may appear twice.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}
        self._held: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False if the same text was logged less than `QUIET_S` seconds ago."""
        text = _text(record)
        if text is None:
            return True
        key, now = (record.name, text), self._clock()
        if now - self._said.get(key, -QUIET_S) < QUIET_S:
            self._held[key] = self._held.get(key, 0) + 1
            return False
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
            self._held.clear()
        self._said[key] = now
        if held := self._held.pop(key, 0):
            if isinstance(record.msg, dict):
                record.msg["suppressed"] = held
            else:
                record.msg, record.args = f"{record.getMessage()} ({held} like it suppressed)", None
        return True


def _text(record: logging.LogRecord) -> str | None:
    """Return the text of librdkafka without the duration in it, or None for a record from elsewhere."""
    if isinstance(record.msg, dict):  # from structlog
        said = str(record.msg.get("text", "")) if record.msg.get("event") == _KAFKA else None
    else:
        said = record.getMessage() if record.name.startswith("librdkafka") else None
    return said.partition(" (after ")[0] if said is not None else None
