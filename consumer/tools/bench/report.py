"""What a person and a script get: the figures of each run, and whether they meet the requirements."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from consumer import __version__
from consumer.tools.bench.figures import Run
from consumer.tools.bench.plan import DEFAULT_ENGINE, MEMORY_FRAMES

Runs = Mapping[str, Run]

_LIBRARIES: Final = (
    "confluent-kafka", "numpy", "opencv-python-headless", "simplejpeg", "msgpack", "torch",
    "ultralytics-opencv-headless",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requirement:
    """`measure` computes the figure from the runs; KeyError or None where they do not have it."""

    run: str
    what: str
    unit: str
    at_least: bool
    limit: float
    measure: Callable[[Runs], float | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One requirement, measured."""

    run: str
    what: str
    unit: str
    target: str
    measured: float
    met: bool


def _latency(run: str, percentile: str, limit_ms: float) -> Requirement:
    def measure(runs: Runs) -> float | None:
        found = runs[run]
        return found.latency_ms[percentile] if found.latency_ms and found.engine == DEFAULT_ENGINE else None

    return Requirement(run, percentile, "ms", at_least=False, limit=limit_ms, measure=measure)


def _per_decoding(runs: Runs, figure: str) -> float | None:
    """The median of the ratios: decoding alone was measured around each repeat, on the machine as it was then."""
    ratios = [
        getattr(run, figure) / getattr(run.decode_only, figure)
        for run in runs["zero_cost"].repeats or (runs["zero_cost"],)
        if getattr(run, figure) is not None and run.decode_only is not None
    ]
    return statistics.median(ratios) if ratios else None


def _memory(runs: Runs, which: str) -> float | None:
    few, many = (runs[f"memory_{count}"].resident_mb for count in MEMORY_FRAMES)
    return many[which] / few[which] if few and many else None


def _speed(runs: Runs, run: str, other: str) -> float:
    return runs[run].frames_per_second / runs[other].frames_per_second


def _later(runs: Runs, run: str, other: str) -> float | None:
    mine, theirs = runs[run].latency_ms, runs[other].latency_ms
    return mine["p99"] - theirs["p99"] if mine and theirs else None


REQUIREMENTS: Final = (
    Requirement("saturated", "share of the engine's limit", "", at_least=True, limit=0.99,
                measure=lambda runs: runs["saturated"].share_of_engine_limit),
    Requirement("saturated", "times the plain loop", "x", at_least=True, limit=6.0,
                measure=lambda runs: _speed(runs, "saturated", "plain_loop")),
    Requirement("zero_cost", "frames/s of decoding alone", "x", at_least=True, limit=0.85,
                measure=lambda runs: _per_decoding(runs, "frames_per_second")),
    Requirement("zero_cost", "CPU a frame of decoding alone", "x", at_least=False, limit=1.15,
                measure=lambda runs: _per_decoding(runs, "cpu_ms_per_frame")),
    _latency("latency_80", "p50", 10), _latency("latency_80", "p99", 15),
    _latency("latency_400", "p50", 19), _latency("latency_400", "p99", 35),
    _latency("latency_640", "p50", 34), _latency("latency_640", "p99", 55),
    Requirement("saturated_exactly_once", "times at_least_once", "x", at_least=True, limit=0.95,
                measure=lambda runs: _speed(runs, "saturated_exactly_once", "saturated")),
    Requirement("seen_400_exactly_once", "p99 above at_least_once", "ms", at_least=False, limit=40,
                measure=lambda runs: _later(runs, "seen_400_exactly_once", "seen_400")),
    Requirement(f"memory_{MEMORY_FRAMES[1]}", "resident at the end, of the short run's", "x", at_least=False,
                limit=1.05, measure=lambda runs: _memory(runs, "end")),
)  # fmt: skip


def verdicts(runs: Runs) -> Iterator[Verdict]:
    """Every requirement that these runs can tell about."""
    for need in REQUIREMENTS:
        try:
            measured = need.measure(runs)
        except KeyError:
            continue
        if measured is not None:
            met = measured >= need.limit if need.at_least else measured <= need.limit
            target = f"{'>=' if need.at_least else '<='} {need.limit:g}"
            yield Verdict(need.run, need.what, need.unit, target, measured, met)


def machine() -> dict[str, Any]:
    """What the figures were measured on. `load_average` of the last minute at the start: of others, if not near 0."""
    import confluent_kafka

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {**_versions(), "librdkafka": confluent_kafka.libversion()[0]},
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }


def as_json(runs: Runs, where: Mapping[str, Any], images: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The content of the file that `--json` writes: one entry a run, each with all that its figures depend on."""
    found = [asdict(verdict) for verdict in verdicts(runs)]
    return [
        {
            **run.as_dict(),
            "requirements": [verdict for verdict in found if verdict["run"] == run.name],
            "images": dict(images),
            "machine": dict(where),
        }
        for run in runs.values()
    ]


def tables(runs: Runs) -> RenderableType:
    """For the terminal."""
    parts: list[RenderableType] = [_figures(runs)]
    if found := list(verdicts(runs)):
        parts.append(_requirements(found))
    return Group(*parts)


def engines(runs: Runs) -> str:
    """Which engine each run had. A simulated one shows as such: its name begins so."""
    names: dict[str, list[str]] = {}
    for run in runs.values():
        names.setdefault(run.engine, []).append(run.name)
    return "\n".join(f"{engine}: {', '.join(of)}" for engine, of in names.items() if engine != "none")


def _figures(runs: Runs) -> Table:
    table = Table(caption=f"engine {engines(runs)}", caption_justify="left")
    table.add_column("run", no_wrap=True)
    for heading in ("frames/s", "limit", "busy", "CPU ms", "p50/95/99 ms", "in=out"):
        table.add_column(heading, justify="right")
    for run in runs.values():
        waits = run.latency_ms
        sound = "-" if run.integrity is None else f"{run.integrity.frames_in}" if run.sound else _wrong(run)
        table.add_row(
            run.name,
            f"{run.frames_per_second:.0f}",
            _percent(run.share_of_engine_limit),
            _percent(run.engine_busy_share),
            f"{run.cpu_ms_per_frame:.2f}" if run.cpu_ms_per_frame is not None else "-",
            f"{waits['p50']:.0f}/{waits['p95']:.0f}/{waits['p99']:.0f}" if waits else "-",
            sound,
        )
    return table


def _requirements(found: list[Verdict]) -> Table:
    table = Table()
    for heading in ("run", "figure", "target", "measured", ""):
        table.add_column(heading)
    for v in found:
        met = "[green]met[/green]" if v.met else "[red]missed[/red]"
        table.add_row(v.run, v.what, f"{v.target} {v.unit}", f"{v.measured:.3g} {v.unit}", met)
    return table


def _wrong(run: Run) -> str:
    wrong = {key: n for key, n in asdict(run.integrity).items() if n} if run.integrity is not None else {}
    return "[red]" + ", ".join(f"{key} {n}" for key, n in wrong.items()) + "[/red]"


def _percent(share: float | None) -> str:
    return f"{share:.1%}" if share is not None else "-"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _versions() -> dict[str, str]:
    installed = {"sluice": __version__}
    for name in _LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
