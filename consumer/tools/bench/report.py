"""The output of a bench: tables for the terminal, and the entries of the JSON file."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from consumer import __version__
from consumer.tools.bench.comparisons import Comparison, Runs, comparisons
from consumer.tools.bench.figures import Run

_LIBRARIES: Final = (
    "confluent-kafka", "numpy", "opencv-python-headless", "simplejpeg", "msgpack", "torch",
    "ultralytics-opencv-headless",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """The machine and the library versions. `load_average` (last minute, at the start) shows the load of others."""
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
    """The content of the `--json` file: one entry per run, with everything that its figures depend on.

    Args:
        runs: Run by name.
        where: The machine, as `machine` returns it.
        images: Number, size in pixels and mean size in bytes of the frames.
    """
    found = [asdict(comparison) for comparison in comparisons(runs)]
    return [
        {
            **run.as_dict(),
            "comparisons": [comparison for comparison in found if comparison["run"] == run.name],
            "images": dict(images),
            "machine": dict(where),
        }
        for run in runs.values()
    ]


def tables(runs: Runs) -> RenderableType:
    """The figures of the runs, and the comparisons between them."""
    parts: list[RenderableType] = [_figures(runs)]
    if found := list(comparisons(runs)):
        parts.append(_comparisons(found))
    return Group(*parts)


def engines(runs: Runs) -> str:
    """The model of each run. The URL of a simulated one starts with `simulated:`."""
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


def _comparisons(found: list[Comparison]) -> Table:
    table = Table()
    for heading in ("run", "compared", "figure"):
        table.add_column(heading)
    for each in found:
        table.add_row(each.run, each.what, f"{each.measured:.3g} {each.unit}")
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
