"""`sluice produce`: sends frames from files, folders, cameras and streams to a topic."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from consumer.errors import ConfigError, KafkaError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.frame_sender import Summary, send_frames
from consumer.tools.images import Encoding, ImageSource, parse_source
from consumer.tools.signals import stop_on_signals

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def produce(
    *,
    source: Annotated[
        list[str],
        typer.Option(
            "--source", metavar="NAME=PLACE", help="Video or image file, folder, URL or camera number. Can be repeated."
        ),
    ],
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    topic: Annotated[str | None, typer.Option(help="Topic to write to. Default: the first of input.topics.")] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0, max=100_000, help="Frames/s of each source; 0: no limit. Default: the rate of the source."),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of each source. Default: all.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Restart each source at its end.")] = False,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of encoded frames.")] = 90,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Resize to this size in pixels. Default: unchanged.")
    ] = None,
    envelope: Annotated[
        bool, typer.Option("--envelope", help="Send msgpack maps instead of images with headers.")
    ] = False,
    setting: clients.Settings = None,
) -> None:
    """Send frames to a topic, keyed by the name of their source.

    Image files are sent unchanged; videos, cameras and streams are encoded as JPEG. Ctrl-C stops and prints a summary.
    Exits with 0 if all replicas acknowledged every frame.
    """
    connection = clients.connection(config, bootstrap_servers, setting)
    encoding = Encoding(quality, _parse_size(size))
    sources = [parse_source(text, encoding) for text in source]
    stop = stop_on_signals()
    with _progress(sources, frames) as show:
        summary = send_frames(
            [each.looped() for each in sources] if loop else sources,
            bootstrap_servers=connection.bootstrap_servers,
            topic=topic or connection.config.input.topics[0],
            fps=fps,
            frames=frames,
            envelope=envelope,
            settings=connection.settings,
            stop=stop,
            on_progress=show,
        )
    typer.echo(str(summary))
    if summary.missing:
        reason = next((tally.error for tally in summary.counts_by_source if tally.error), "no delivery report in time")
        raise KafkaError(f"{summary.missing} of {summary.total('sent')} frames were not acknowledged: {reason}")


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if (match := _SIZE.fullmatch(text)) is None:
        raise ConfigError(f"--size {printable(text)}: expected WIDTHxHEIGHT, for example 640x480")
    return int(match[1]), int(match[2])


def _progress(
    sources: Sequence[ImageSource], frames: int | None
) -> AbstractContextManager[Callable[[Summary], None] | None]:
    """One progress bar per source on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext()
    return _Bars(sources, frames)


class _Bars:
    def __init__(self, sources: Sequence[ImageSource], frames: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._tasks = [self._progress.add_task(source.name, total=frames, rate="") for source in sources]

    def __enter__(self) -> Callable[[Summary], None]:
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, summary: Summary) -> None:
        for task, tally in zip(self._tasks, summary.counts_by_source, strict=True):
            rate = f"{tally.acknowledged / max(summary.seconds, 1e-9):.1f}/s"
            self._progress.update(task, completed=tally.acknowledged, rate=rate)
