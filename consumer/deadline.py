"""When to end, and by when."""

from __future__ import annotations

import math

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


class Stop:
    """Tells the loop to end, and remembers since when. A signal handler may set it: it has no lock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.at = math.inf  # on that clock

    def set(self) -> None:
        """End. Only the first time counts."""
        self.at = min(self.at, self._clock())

    def is_set(self) -> bool:
        """Whether to end."""
        return self.at < math.inf
