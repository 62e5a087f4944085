"""Figures that compare two runs of one bench, such as the program with the plain loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from consumer.tools.bench.figures import Run
from consumer.tools.bench.plan import MEMORY_FRAMES

Runs = Mapping[str, Run]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure of `run` that depends on another run. `unit` is "x" for a ratio, "ms" for a difference."""

    run: str
    what: str
    unit: str
    measured: float


def _per_decoding(runs: Runs, figure: str) -> float | None:
    """The median of the ratios. Each repeat is divided by decoding as it was measured around that repeat."""
    ratios = [
        getattr(run, figure) / getattr(run.decode_only, figure)
        for run in runs["zero_cost"].repeats or (runs["zero_cost"],)
        if getattr(run, figure) is not None and run.decode_only is not None
    ]
    return statistics.median(ratios) if ratios else None


def _memory(runs: Runs) -> float | None:
    few, many = (runs[f"memory_{count}"].resident_mb for count in MEMORY_FRAMES)
    return many["end"] / few["end"] if few and many else None


def _speed(runs: Runs, run: str, other: str) -> float:
    return runs[run].frames_per_second / runs[other].frames_per_second


def _later(runs: Runs, run: str, other: str) -> float | None:
    one, two = runs[run].latency_ms, runs[other].latency_ms
    return one["p99"] - two["p99"] if one and two else None


# Each function raises KeyError if a run is missing, and returns None if a run lacks the figure.
_COMPARISONS: Final[tuple[tuple[str, str, str, Callable[[Runs], float | None]], ...]] = (
    ("saturated", "times the plain loop", "x", lambda runs: _speed(runs, "saturated", "plain_loop")),
    ("zero_cost", "frames/s of decoding alone", "x", lambda runs: _per_decoding(runs, "frames_per_second")),
    ("zero_cost", "CPU a frame of decoding alone", "x", lambda runs: _per_decoding(runs, "cpu_ms_per_frame")),
    ("saturated_exactly_once", "times at_least_once", "x",
     lambda runs: _speed(runs, "saturated_exactly_once", "saturated")),
    ("seen_400_exactly_once", "p99 above at_least_once", "ms",
     lambda runs: _later(runs, "seen_400_exactly_once", "seen_400")),
    (f"memory_{MEMORY_FRAMES[1]}", "resident at the end, of the short run's", "x", _memory),
)  # fmt: skip


def comparisons(runs: Runs) -> Iterator[Comparison]:
    """Every comparison that these runs allow."""
    for run, what, unit, measure in _COMPARISONS:
        try:
            measured = measure(runs)
        except KeyError:
            continue
        if measured is not None:
            yield Comparison(run, what, unit, measured)
