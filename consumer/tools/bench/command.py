"""`sluice bench`: options and output."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from consumer.config import load_config
from consumer.errors import ConfigError
from consumer.tools.bench import frames as images
from consumer.tools.bench import report
from consumer.tools.bench.analysis import BenchError
from consumer.tools.bench.broker import broker_at
from consumer.tools.bench.environment import BenchEnv
from consumer.tools.bench.figures import Run
from consumer.tools.bench.plan import DEFAULT_ENGINE, RunPlan

_QUICK_S: Final = 2.0
_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure, on which broker and for how long.

    `seconds` is the duration of the steady part of each run, `warm_up_s` the duration of the load before it.
    """

    bootstrap_servers: str | None = None
    videos: Sequence[Path] = ()
    engine: str = DEFAULT_ENGINE
    device: str = "auto"
    seconds: float = _SECONDS
    warm_up_s: float = 3.0
    repeat: int = 5
    only: Sequence[str] = ()

    @classmethod
    def quick(cls) -> Settings:
        """Short runs without repeats. The figures are rough."""
        return cls(seconds=_QUICK_S, warm_up_s=1.0, repeat=1)


@contextlib.contextmanager
def planned(settings: Settings, console: Console) -> Iterator[tuple[RunPlan, dict[str, float]]]:
    """Set up frames, broker and plan for the block.

    Yields:
        The plan; and number, size in pixels and mean size in bytes of the frames.

    Raises:
        ConfigError: The system has no /proc, or a video cannot be read.
        KafkaError: The broker does not work.
    """
    if not Path("/proc/self/stat").exists():
        raise ConfigError("sluice bench measures processes through /proc: it needs Linux")
    config = load_config()  # the measured program inherits the SLUICE_* variables, so they count here, too
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        frames = images.cut_frames(settings.videos)
        about = {"count": len(frames), "width": images.WIDTH, "height": images.HEIGHT}
        with broker_at(settings.bootstrap_servers) as broker:
            env = BenchEnv(
                broker=broker,
                folder=Path(folder),
                frames=images.save(frames, Path(folder) / "frames.msgpack"),
                batch=config.batching.max_batch_size,
                threads=config.decode.thread_count,
                image_size=config.detector.image_size,
                device=settings.device,
                seconds=settings.seconds,
                warm_up_s=settings.warm_up_s,
            )
            plan = RunPlan(
                env,
                engine=settings.engine,
                repeat=settings.repeat,
                only=settings.only,
                on_start=lambda name: console.print(f"{name} on {broker.name} ..."),
            )
            yield plan, {**about, "mean_bytes": images.mean_size(frames)}


def bench(
    *,
    bootstrap_servers: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="An existing broker. Default: the embedded one.")
    ] = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(help="Cut the frames from this video. Can be repeated. Default: clips of streets."),
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="URL", help="Simulated service times of the detector.")
    ] = DEFAULT_ENGINE,
    model: Annotated[Path | None, typer.Option(help="Measure with this model instead of a simulated detector.")] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda or cuda:N.")] = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only runs with this prefix, such as saturated. Can be repeated."),
    ] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, help="Repeats of zero_cost and the latency runs, for medians. Default: 5.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=3600, help="Duration of the measured part of a run. Default: 10.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs without repeats: the figures are rough.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")] = None,
) -> None:
    """Measure throughput, CPU time and latency of `sluice run`, and compare them with the detector and decoding alone.

    Broker, producer and consumer run on this machine. The run `memory` takes minutes and needs --only memory.
    Exits with 1 if a frame was lost, duplicated or out of order.
    """
    base = Settings.quick() if quick else Settings()
    settings = replace(
        base,
        bootstrap_servers=bootstrap_servers,
        videos=tuple(video or ()),
        engine=str(model) if model is not None else engine,
        device=device,
        only=tuple(only or ()),
        repeat=repeat or base.repeat,
        seconds=seconds or base.seconds,
    )
    console = Console(file=sys.stdout)
    where = report.machine()
    runs: dict[str, Run] = {}
    with planned(settings, console) as (plan, about):
        for run in plan.runs():
            runs[run.name] = run
            if json_file is not None:  # after each run, so that a later failure does not lose it
                json_file.write_text(json.dumps(report.as_json(runs, where, about), indent=2) + "\n")
    if not runs:
        raise ConfigError(f"--only {' '.join(settings.only)}: no run has such a name")
    console.print(report.tables(runs))
    if unsound := [run.name for run in runs.values() if not run.sound]:
        raise BenchError(f"frames were lost, duplicated or out of order in these runs: {', '.join(unsound)}")
