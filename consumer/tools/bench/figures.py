"""The figures of a run, and the median of several."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from consumer.tools.bench.analysis import Integrity

_COUNTS: Final = {"frames", "batch_sizes", "integrity", "repeats"}


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding without anything else."""

    frames_per_second: float
    cpu_ms_per_frame: float


@dataclass(frozen=True, slots=True)
class Run:
    """What the JSON has for one run. Medians where it was repeated; null where a figure does not apply.

    frames_per_second, cpu_ms_per_frame (of the program, all its threads) and engine_busy_share are of the steady part
    of the run, of `seconds`; latency_ms is from input record to output record; batch_sizes is {frames: batches}.
    """

    name: str
    engine: str
    broker: str
    frames: int
    seconds: float
    frames_per_second: float
    engine_limit: float | None = None  # frames a second of the engine alone, on full batches
    share_of_engine_limit: float | None = None
    engine_busy_share: float | None = None
    cpu_ms_per_frame: float | None = None
    broker_cpu_ms_per_frame: float | None = None
    decode_only: Decoding | None = None
    latency_ms: dict[str, float] | None = None
    batch_sizes: dict[int, int] = field(default_factory=dict)
    resident_mb: dict[str, float] | None = None  # at the end and at most, MiB
    integrity: Integrity | None = None
    repeats: tuple[Run, ...] = ()

    @property
    def sound(self) -> bool:
        """Nothing was lost, doubled or out of order, in any of the repeats."""
        return (
            all(run.sound for run in self.repeats) if self.repeats else self.integrity is None or self.integrity.sound
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def median(runs: Sequence[Run]) -> Run:
    """One run out of several of the same: the median of every figure, the sum of all counts; they stay beside it."""
    if len(runs) == 1:
        return runs[0]
    figures = {f.name: _median([getattr(run, f.name) for run in runs]) for f in fields(Run) if f.name not in _COUNTS}
    sizes: Counter[int] = Counter()
    for run in runs:
        sizes.update(run.batch_sizes)
    counted = [asdict(run.integrity) for run in runs if run.integrity is not None]
    integrity = Integrity(**{key: sum(c[key] for c in counted) for key in counted[0]}) if counted else None
    return Run(
        **figures,
        frames=sum(run.frames for run in runs),
        batch_sizes=dict(sorted(sizes.items())),
        integrity=integrity,
        repeats=tuple(runs),
    )


def _median(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: statistics.median(value[key] for value in values) for key in first}
    if isinstance(first, Decoding):
        return Decoding(**_median([asdict(value) for value in values]))
    return statistics.median(values) if isinstance(first, int | float) else first
