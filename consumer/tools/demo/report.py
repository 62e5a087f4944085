"""What a person sees of a demo: the steps as they are made, a line that moves, and the table at the end."""

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


class Progressing:
    """The steps, each with its time, and below them a line that moves. Off a terminal: the steps alone."""

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

    def __enter__(self) -> Progressing:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def step(self, text: str) -> None:
        """Print what begins now."""
        self._console.print(Text.assemble(("- ", "cyan"), printable(text)), soft_wrap=True)
        self._live.update(self._task, description="", detail="", total=None, completed=0)

    def detail(self, text: str) -> None:
        """How far the step is."""
        self._live.update(self._task, description=text, detail="")

    def flow(self, sent: int, received: int, total: int, per_second: float) -> None:
        """How the frames flow."""
        self._live.update(
            self._task,
            description=f"sent {sent}, results {received} of {total}",
            detail=f"{per_second:.0f} frames/s",
            completed=received,
            total=total,
        )


def table(summary: Summary) -> RenderableType:
    """The figures of a run: accounts, speed, what was seen, and how large the batches were."""
    sides = Table.grid(padding=(0, 4))
    sides.add_row(Group(_accounts(summary), "", _speed(summary)), Group(_objects(summary), "", _batches(summary)))
    return Padding(Group(_headline(summary), "", sides, *_remarks(summary)), (1, 2))


def _headline(summary: Summary) -> Text:
    engine = summary.engine
    name = engine.model if engine.simulated else Path(engine.model).name
    text = Text.assemble((f"{summary.frames_in} frames", "bold"), " of ", (", ".join(summary.sources), "bold"))
    text.append(f"\nengine: {printable(name)} on {engine.device or 'an unknown device'}", "dim")
    return text


def _figures(title: str) -> Table:
    grid = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    return grid


def _accounts(summary: Summary) -> Table:
    grid = _figures("Accounts")
    grid.add_row("frames in", f"{summary.frames_in}")
    grid.add_row("detection messages out", f"{summary.detections_out}")
    grid.add_row("dead letters", f"{summary.dead_letters}")
    grid.add_row("skipped as too old", f"{summary.skipped}")
    for name in ("lost", "duplicates", "out_of_order", "unexpected", "uncommitted"):
        count = getattr(summary, name)
        # Zero is the promise: the first three always show it, the other two speak up when there is something to say.
        if count or name in ("lost", "duplicates", "out_of_order"):
            grid.add_row(name.replace("_", " "), Text(f"{count}", "bold red" if count else "bold green"))
    return grid


def _speed(summary: Summary) -> Table:
    grid = _figures("Speed")
    grid.add_row("frames a second", f"{summary.frames_per_second:.1f}")
    for name, value in summary.latency_ms.items():
        grid.add_row(f"camera to result, {name}", "-" if value is None else f"{value:.0f} ms")
    grid.add_row("engine busy", f"{summary.engine.busy_share:.0%}")
    return grid


def _objects(summary: Summary) -> Table:
    rows = list(summary.objects.items())
    shown = dict(rows[:_MOST_ROWS])
    if rest := sum(count for _, count in rows[_MOST_ROWS:]):
        shown["others"] = rest
    return _histogram("Objects seen", {printable(name): count for name, count in shown.items()}, "green")


def _batches(summary: Summary) -> Table:
    """Sizes beyond a handful are put together, so that the table stays short."""
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
    if summary.engine.simulated:
        remarks.append(Text("\nThe engine was simulated: it slept, and looked at nothing.", "yellow"))
    elif summary.engine.busy_share > _BUSY:
        remarks.append(
            Text("\nThe engine was busy all the time, so frames waited for it: try a lower --fps.", "yellow")
        )
    return remarks
