"""The figures of a run, and the median of several runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from consumer.tools.bench.analysis import Integrity

_COUNTS: Final = {"frames", "batch_sizes", "integrity", "repeats"}


@dataclass(frozen=True, slots=True)
class DecodeOnly:
    """The figures of decoding by itself."""

    frames_per_second: float
    cpu_ms_per_frame: float


@dataclass(frozen=True, slots=True)
class Run:
    """One entry of the JSON file. A figure that does not apply is null; a repeated run has medians.

    Attributes:
        name: The name of the run.
        engine: The model, or the URL of a simulated one.
        broker: The broker.
        frames: Frames in.
        seconds: Duration of the steady part, which the following figures describe.
        frames_per_second: Frames with a result.
        engine_limit: Frames/s of the detector by itself, on full batches.
        share_of_engine_limit: `frames_per_second` divided by `engine_limit`.
        engine_busy_share: Share of the time in which the detector worked.
        cpu_ms_per_frame: CPU time of the program, all its processes and threads.
        broker_cpu_ms_per_frame: CPU time of an embedded broker.
        decode_only: The figures of decoding by itself, measured before or around the run.
        latency_ms: From input record to output record: p50, p95, p99.
        batch_sizes: Batch size to number of batches.
        resident_mb: Resident memory in MiB, at the "end" and at its "peak".
        integrity: Frames in, results out, and what is wrong with them.
        repeats: The runs that the medians are of.
    """

    name: str
    engine: str
    broker: str
    frames: int
    seconds: float
    frames_per_second: float
    engine_limit: float | None = None
    share_of_engine_limit: float | None = None
    engine_busy_share: float | None = None
    cpu_ms_per_frame: float | None = None
    broker_cpu_ms_per_frame: float | None = None
    decode_only: DecodeOnly | None = None
    latency_ms: dict[str, float] | None = None
    batch_sizes: dict[int, int] = field(default_factory=dict)
    resident_mb: dict[str, float] | None = None
    integrity: Integrity | None = None
    repeats: tuple[Run, ...] = ()

    @property
    def sound(self) -> bool:
        """No frame was lost, duplicated or out of order, in any of the repeats."""
        return (
            all(run.sound for run in self.repeats) if self.repeats else self.integrity is None or self.integrity.sound
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def median(runs: Sequence[Run]) -> Run:
    """Combine repeats of a run: the median of every figure, the sum of every count. Keeps the runs as `repeats`."""
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
    if isinstance(first, DecodeOnly):
        return DecodeOnly(**_median([asdict(value) for value in values]))
    return statistics.median(values) if isinstance(first, int | float) else first
