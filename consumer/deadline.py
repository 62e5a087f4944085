"""When to end, and by when."""

from __future__ import annotations

import math
import threading

from consumer.types import Clock


class Deadline:
    """One budget of time that everything inside a rebalance or a shutdown shares."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._clock = clock
        self._at = clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._at - self._clock())


class Stop(threading.Event):
    """Tells the loop to end, and remembers when it was first set. For a signal handler."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.at = math.inf  # on that clock

    def set(self) -> None:
        self.at = min(self.at, self._clock())
        super().set()
