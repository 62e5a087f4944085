"""Who owned which partition, as the members' logs say. Pure."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from history import Outcome, Rebalance


class Tenure(NamedTuple):
    """One assignment of one input partition to one writer."""

    began_ms: float
    writer: str


class Tenures:
    """Who owned what, as the members themselves saw it."""

    def __init__(self, rebalances: Iterable[Rebalance]) -> None:
        self._began: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._ended: dict[tuple[str, int], list[tuple[float, str]]] = defaultdict(list)
        for each in rebalances:
            for partition in each.partitions:
                if each.event == "assigned":
                    self._began[each.writer, partition].append(each.at_ms)
                else:
                    self._ended[each.writer, partition].append((each.at_ms, each.event))

    def of(self, outcome: Outcome) -> Tenure | None:
        """The tenure that an outcome was published in: its writer's last assignment of the partition before it."""
        began = self._began.get((outcome.writer, outcome.id.partition), [])
        # A millisecond of slack: the message says whole milliseconds, rounded down.
        n = bisect.bisect_right(began, outcome.published_ms + 1)
        return Tenure(began[n - 1], outcome.writer) if n else None

    def end(self, tenure: Tenure, partition: int) -> tuple[float, str] | None:
        """When and how the writer noticed the end of its tenure; None if it never did."""
        ended = self._ended.get((tenure.writer, partition), [])
        return next((each for each in ended if each[0] >= tenure.began_ms), None)
