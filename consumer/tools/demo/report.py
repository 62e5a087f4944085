"""The terminal output of a demo: the steps, a progress line, and the table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from consumer.observability.logging import printable
from consumer.tools.demo.summary import Summary

_BAR: Final = 20
_MOST_ROWS: Final = 8
_BUSY: Final = 0.9


class TerminalProgress:
    """Prints each step, and a progress line below the last one. Without a terminal, prints only the steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}"),
            BarColumn(_BAR),
            TextColumn("{task.fields[detail]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("", total=None, detail="")

    def __enter__(self) -> TerminalProgress:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def step(self, text: str) -> None:
        """Print the new step."""
        self._console.print(Text.assemble(("- ", "cyan"), printable(text)), soft_wrap=True)
        self._live.update(self._task, description="", detail="", total=None, completed=0)

    def detail(self, text: str) -> None:
        """Show the state within the step."""
        self._live.update(self._task, description=text, detail="")

    def flow(self, sent: int, received: int, total: int, per_second: float) -> None:
        """Show the number of frames sent and of outcomes received."""
        self._live.update(
            self._task,
            description=f"sent {sent}, results {received} of {total}",
            detail=f"{per_second:.0f} frames/s",
            completed=received,
            total=total,
        )


def table(summary: Summary) -> RenderableType:
    """The figures of a run: completeness, speed, objects and batch sizes."""
    sides = Table.grid(padding=(0, 4))
    sides.add_row(Group(_completeness(summary), "", _speed(summary)), Group(_objects(summary), "", _batches(summary)))
    return Padding(Group(_headline(summary), "", sides, *_remarks(summary)), (1, 2))


def _headline(summary: Summary) -> Text:
    detector = summary.detector
    name = detector.model if detector.simulated else Path(detector.model).name
    text = Text.assemble((f"{summary.frames_in} frames", "bold"), " of ", (", ".join(summary.sources), "bold"))
    text.append(f"\ndetector: {printable(name)} on {detector.device or 'an unknown device'}", "dim")
    return text


def _figures(title: str) -> Table:
    grid = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    return grid


def _completeness(summary: Summary) -> Table:
    grid = _figures("Completeness")
    grid.add_row("frames in", f"{summary.frames_in}")
    grid.add_row("detection messages out", f"{summary.detections_out}")
    grid.add_row("dead letters", f"{summary.dead_letters}")
    grid.add_row("skipped as too old", f"{summary.skipped}")
    for name in ("lost", "duplicates", "out_of_order", "unexpected", "uncommitted"):
        count = getattr(summary, name)
        # The first three show that they are zero; the other two are shown only if they are not.
        if count or name in ("lost", "duplicates", "out_of_order"):
            grid.add_row(name.replace("_", " "), Text(f"{count}", "bold red" if count else "bold green"))
    return grid


def _speed(summary: Summary) -> Table:
    grid = _figures("Speed")
    grid.add_row("frames/s", f"{summary.frames_per_second:.1f}")
    for name, value in summary.latency_ms.items():
        grid.add_row(f"camera to result, {name}", "-" if value is None else f"{value:.0f} ms")
    grid.add_row("detector busy", f"{summary.detector.busy_share:.0%}")
    return grid


def _objects(summary: Summary) -> Table:
    rows = list(summary.objects.items())
    shown = dict(rows[:_MOST_ROWS])
    if others := sum(count for _, count in rows[_MOST_ROWS:]):
        shown["others"] = others
    return _histogram("Objects seen", {printable(name): count for name, count in shown.items()}, "green")


def _batches(summary: Summary) -> Table:
    """Groups sizes if there are many, so that the table stays short."""
    sizes = list(summary.batch_sizes.items())
    group = -(-len(sizes) // _MOST_ROWS) or 1
    rows: dict[str, int] = {}
    for start in range(0, len(sizes), group):
        part = sizes[start : start + group]
        name = f"{part[0][0]}" if len(part) == 1 else f"{part[0][0]}-{part[-1][0]}"
        rows[name] = sum(count for _, count in part)
    return _histogram("Batches by size", rows, "cyan")


def _histogram(title: str, counts: Mapping[str, int], style: str) -> Table:
    grid = _figures(title)
    grid.add_column()
    most = max(counts.values(), default=1)
    for name, count in counts.items():
        eighths = max(1, round(8 * _BAR * count / most))
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        grid.add_row(name, f"{count}", Text(bar, style))
    if not counts:
        grid.add_row("none", "", "")
    return grid


def _remarks(summary: Summary) -> list[RenderableType]:
    remarks: list[RenderableType] = []
    if summary.detector.simulated:
        remarks.append(Text("\nThe detector was simulated: it only waits, and processes no image.", "yellow"))
    elif summary.detector.busy_share > _BUSY:
        remarks.append(
            Text("\nThe detector was busy nearly all the time, so frames waited for it: try a lower --fps.", "yellow")
        )
    return remarks
