"""`sluice demo`: the options, what is printed, and the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from consumer.errors import ConfigError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.assets import MODEL

if TYPE_CHECKING:
    from consumer.tools.demo.run import Plan

LOG: Final = "consumer.log"
_OURS: Final = ".sluice-demo"  # lists the files that a demo wrote, so that the next one removes those and no others
_INTERRUPTED: Final = 130


def demo(
    *,
    frames: Annotated[int, typer.Option(min=1, max=10_000_000, help="Frames to send, of all cameras together.")] = 600,
    sources: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Cameras. Default: 3 streets, or one per --video.")
    ] = None,
    fps: Annotated[
        float, typer.Option(min=0, max=1000, help="Frames a second of each camera; 0: as fast as it goes.")
    ] = 8.0,
    video: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Play this video instead of the clips of streets. Can be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--engine",
            metavar="FILE",
            help="A .pt or .onnx file, or simulated://6.667ms@1,40ms@32. Default: the small model that comes along.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let Ultralytics fetch a --model of its own, such as yolo26n.pt.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("demo-out"),
    pictures: Annotated[int, typer.Option(min=1, max=1000, help="Pictures to draw per camera.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the overview picture at the end.")] = False,
    bootstrap_servers: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A broker that is there. Default: one in memory.")
    ] = None,
    setting: clients.Settings = None,
) -> None:
    """Show everything on this machine: broker, cameras, consumer, and pictures of what it saw. Needs no Kafka.

    Exits 0 where every frame was answered exactly once, in order, and committed.
    """
    from consumer.tools.demo.run import Plan

    videos = tuple(video or ())
    plan = Plan(
        model=_checked_model(model, download=download),
        out=out,
        sources=min(sources or len(videos) or 3, frames),
        frames=frames,
        fps=fps,
        videos=_checked_videos(videos),
        pictures=pictures,
        download=download,
        bootstrap_servers=bootstrap_servers,
        client=_checked_settings(setting, bootstrap_servers),
    )
    _show(plan, json_file, open_overview=not no_open)


def _show(plan: Plan, json_file: Path | None, *, open_overview: bool) -> None:
    from consumer.tools.demo import overview, report
    from consumer.tools.demo import run as running

    console = Console(file=sys.stdout, highlight=False)
    _empty(plan.out)
    with _ended_by_signals(), report.Progressing(console) as show:
        ran = running.run(plan, show, plan.out / LOG)
        show.step(f"drawing {len(ran.shots)} pictures")
        names = overview.write_pictures(ran.shots, ran.summary, plan.out)
    _note(plan.out, [*names, LOG])
    if json_file is not None:
        json_file.write_text(json.dumps(ran.summary.as_json(), indent=2) + "\n", encoding="utf-8")
    console.print(report.table(ran.summary))
    console.print(f"  pictures: {plan.out / overview.NAME} and {len(names) - 1} more", soft_wrap=True)
    if ran.problems:
        raise _failure(console, ran.problems, ran.log)
    if open_overview and console.is_terminal and not os.environ.get("CI"):
        _open(plan.out / overview.NAME)


def _checked_model(model: str | None, *, download: bool) -> str:
    """Before anything is started: the model must be there, or be allowed to come."""
    if model is None:
        if not MODEL.is_file():
            raise ConfigError(f"the demo's own model is missing ({MODEL}): give one with --model FILE")
        return str(MODEL)
    if model.startswith("simulated://") or Path(model).expanduser().is_file() or download:
        return model
    raise ConfigError(
        f"--model {printable(model)}: there is no such file. "
        "One of Ultralytics' own models, such as yolo26n.pt, is fetched with --download"
    )


def _checked_videos(videos: Sequence[Path]) -> tuple[Path, ...]:
    for path in videos:
        if not path.is_file():
            raise ConfigError(f"--video {printable(str(path))}: there is no such file")
    return tuple(videos)


def _checked_settings(setting: list[str] | None, bootstrap_servers: str | None) -> dict[str, str]:
    if setting and bootstrap_servers is None:
        raise ConfigError("-X is for a broker of yours: it needs --bootstrap-servers")
    return clients.settings_from(setting or ())


def _empty(out: Path) -> None:
    """Make the folder, without the files of an earlier demo; whatever else is in it stays."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        listed = (out / _OURS).read_text(encoding="utf-8").splitlines() if (out / _OURS).is_file() else []
        for name in listed:
            if name == Path(name).name:
                (out / name).unlink(missing_ok=True)
        _note(out, [LOG])
    except OSError as error:
        raise ConfigError(f"--out {printable(str(out))}: {error.strerror}") from None


def _note(out: Path, names: Sequence[str]) -> None:
    (out / _OURS).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: through the `with` blocks, which end what was started."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("sluice: interrupted; everything that the demo started has been ended\n")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _failure(console: Console, problems: Sequence[str], log: str) -> typer.Exit:
    console.print()
    for problem in problems:
        console.print(Text(f"  FAILED: {problem}", "bold red"), soft_wrap=True)
    console.print(Text(f"\n  the end of the consumer's log:\n{log}", "dim"), soft_wrap=True)
    return typer.Exit(1)


def _open(picture: Path) -> None:
    """Show the picture with what the desktop has for that; where there is no desktop, do nothing."""
    if sys.platform == "darwin":
        opener = "/usr/bin/open"
    elif os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        opener = "xdg-open"
    else:
        return
    with contextlib.suppress(OSError):
        subprocess.Popen(  # noqa: S603 - a fixed program, without a shell; it outlives the demo on purpose
            [opener, str(picture.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
