"""`sluice demo`: options, output and exit code."""

from __future__ import annotations

import contextlib
import importlib.util
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
    from consumer.tools.demo.run import RunOptions

LOG: Final = "consumer.log"
_MANIFEST: Final = ".sluice-demo"  # lists the files of a demo, so that the next demo removes only these
_INTERRUPTED: Final = 130
# By the suffix of a model file: the extra that installs its backend, and the packages that the backend imports.
_BACKENDS: Final = {".pt": ("torch", ("torch", "torchvision", "ultralytics")), ".onnx": ("onnx", ("onnxruntime",))}


def demo(
    *,
    frames: Annotated[int, typer.Option(min=1, max=10_000_000, help="Frames to send, all cameras together.")] = 600,
    sources: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Cameras. Default: 3 streets, or one per --video.")
    ] = None,
    fps: Annotated[float, typer.Option(min=0, max=1000, help="Frames/s of each camera; 0: as fast as possible.")] = 8.0,
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
            help="A .pt or .onnx file, or simulated://6.667ms@1,40ms@32. Default: the small model of the package.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let Ultralytics download a --model of its own, such as yolo26n.pt.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")] = Path("demo-out"),
    pictures: Annotated[int, typer.Option(min=1, max=1000, help="Pictures to draw per camera.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the overview picture at the end.")] = False,
    bootstrap_servers: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="An existing broker. Default: one in memory.")
    ] = None,
    setting: clients.Settings = None,
) -> None:
    """Run broker, cameras and consumer on this machine, and draw the detections. Needs no Kafka.

    Exits with 0 if every frame has exactly one outcome, in order, and is committed.
    """
    from consumer.tools.demo.run import RunOptions

    videos = tuple(video or ())
    options = RunOptions(
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
    _run_and_report(options, json_file, open_overview=not no_open)


def _run_and_report(options: RunOptions, json_file: Path | None, *, open_overview: bool) -> None:
    from consumer.tools.demo import overview, report
    from consumer.tools.demo import run as running

    console = Console(file=sys.stdout, highlight=False)
    _prepare_folder(options.out)
    with _ended_by_signals(), report.TerminalProgress(console) as progress:
        finished = running.run(options, progress, options.out / LOG)
        progress.step(f"drawing {len(finished.drawn)} pictures")
        names = overview.write_pictures(finished.drawn, finished.summary, options.out)
    _write_manifest(options.out, [*names, LOG])
    if json_file is not None:
        json_file.write_text(json.dumps(finished.summary.as_json(), indent=2) + "\n", encoding="utf-8")
    console.print(report.table(finished.summary))
    console.print(f"  pictures: {options.out / overview.NAME} and {len(names) - 1} more", soft_wrap=True)
    if finished.problems:
        raise _failure(console, finished.problems, finished.log)
    if open_overview and console.is_terminal and not os.environ.get("CI"):
        _open(options.out / overview.NAME)


def _checked_model(model: str | None, *, download: bool) -> str:
    """The model, if it exists or may be downloaded. Called before anything starts.

    Raises:
        ConfigError: It does not exist.
    """
    if model is None:
        if not MODEL.is_file():
            raise ConfigError(f"the demo's own model is missing ({MODEL}): give one with --model FILE")
        _check_backend("the demo's own model", MODEL.suffix, extra="demo")
        return str(MODEL)
    if model.startswith("simulated://"):
        return model
    if Path(model).expanduser().is_file() or download:
        _check_backend(f"--model {printable(model)}", Path(model).suffix.lower())
        return model
    raise ConfigError(
        f"--model {printable(model)}: there is no such file. "
        "--download fetches a model of Ultralytics, such as yolo26n.pt"
    )


def _check_backend(model: str, suffix: str, extra: str | None = None) -> None:
    """Check that the packages for this kind of model are installed. The check does not import them.

    Args:
        model: What the error calls the model.
        suffix: Suffix of the model file. A suffix without a backend passes; the loader refuses the file.
        extra: The extra to recommend. Default: the one that installs the backend alone.

    Raises:
        ConfigError: A package is missing. The message names the extra that installs it.
    """
    backend, packages = _BACKENDS.get(suffix, ("", ()))
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        extra = extra or backend
        raise ConfigError(
            f"{model} needs {', '.join(missing)}: install the extra `{extra}` (pip install '.[{extra}]' in Sluice's "
            "folder). Without a backend the demo runs with --model simulated://6.667ms@1,40ms@32"
        )


def _checked_videos(videos: Sequence[Path]) -> tuple[Path, ...]:
    for path in videos:
        if not path.is_file():
            raise ConfigError(f"--video {printable(str(path))}: there is no such file")
    return tuple(videos)


def _checked_settings(setting: list[str] | None, bootstrap_servers: str | None) -> dict[str, str]:
    if setting and bootstrap_servers is None:
        raise ConfigError("-X applies to an existing broker: it needs --bootstrap-servers")
    return clients.settings_from(setting or ())


def _prepare_folder(out: Path) -> None:
    """Create the folder, and remove the files of an earlier demo from it. Keeps all other files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        listed = (out / _MANIFEST).read_text(encoding="utf-8").splitlines() if (out / _MANIFEST).is_file() else []
        for name in listed:
            if name == Path(name).name:
                (out / name).unlink(missing_ok=True)
        _write_manifest(out, [LOG])
    except OSError as error:
        raise ConfigError(f"--out {printable(str(out))}: {error.strerror}") from None


def _write_manifest(out: Path, names: Sequence[str]) -> None:
    (out / _MANIFEST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does: through the `with` blocks, which end all child processes."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("sluice: interrupted; all processes of the demo have ended\n")
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
    """Open the picture in the image viewer of the desktop. Does nothing if there is no desktop."""
    if sys.platform == "darwin":
        opener = "/usr/bin/open"
    elif os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        opener = "xdg-open"
    else:
        return
    with contextlib.suppress(OSError):
        subprocess.Popen(  # noqa: S603 - a fixed program, without a shell; it continues after the demo
            [opener, str(picture.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
