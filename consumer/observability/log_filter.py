"""Keeps librdkafka from filling the log: of a broker that is away it says the same twenty times a second, for hours."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

QUIET_S: Final = 30.0
_REMEMBERED: Final = 1000  # texts; addresses and client names are in them, so there are few
_KAFKA: Final = "kafka"  # the event under which we pass on what librdkafka told us


class Repeats(logging.Filter):
    """For a handler or a logger. Lets each text of librdkafka through once in `QUIET_S`, and says how many it held.

    Several threads may call it at once; then a count may be one too low, or a text come twice.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}
        self._held: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False for what was said just now."""
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
    """What librdkafka said, without the time that it took; None for all other records."""
    if isinstance(record.msg, dict):  # from structlog
        said = str(record.msg.get("text", "")) if record.msg.get("event") == _KAFKA else None
    else:
        said = record.getMessage() if record.name.startswith("librdkafka") else None
    return said.partition(" (after ")[0] if said is not None else None
