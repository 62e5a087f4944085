"""The options of `sluice verify`, and its exit code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from consumer.errors import ConfigError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.signals import stop_on_signals

if TYPE_CHECKING:
    from consumer.tools.verify.request import Request
    from consumer.tools.verify.run import Progress
    from consumer.tools.verify.types import Report

_WHEN: Final = "An offset, 2h (ago), 2026-01-31T22:00, or Unix milliseconds."
_INTERRUPTED: Final = 130

Inputs = Annotated[
    list[str] | None, typer.Option("--input", metavar="TOPIC", help="Can be repeated. Default: input.topics.")
]
Output = Annotated[str | None, typer.Option(metavar="TOPIC", help="Topic of the results. Default: output.topic.")]
DeadLetter = Annotated[str | None, typer.Option(metavar="TOPIC", help="Default: dead_letter.topic.")]
Group = Annotated[str | None, typer.Option(help="The consumer group to check. Default: kafka.group_id.")]
Delivery = Annotated[
    str | None, typer.Option(metavar="at-least-once|exactly-once", help="The promised delivery. Default: delivery.")
]
Start = Annotated[
    str | None, typer.Option("--from", metavar="WHEN", help=f"First record. {_WHEN} Default: the oldest.")
]
End = Annotated[str | None, typer.Option("--to", metavar="WHEN", help="End before this record. Default: the newest.")]
OutcomesFrom = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="Start to read the output topics here, to save time. Default: the oldest."),
]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="List so many violations of each kind.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a report.")]


def verify(
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    input_topic: Inputs = None,
    output: Output = None,
    dead_letter: DeadLetter = None,
    group: Group = None,
    delivery: Delivery = None,
    start: Start = None,
    end: End = None,
    outcomes_from: OutcomesFrom = None,
    limit: Limit = 20,
    as_json: Json = False,
    setting: clients.Settings = None,
) -> None:
    """Check that every record has its outcome, once, in order per source, and that no commit was ahead of an outcome.

    Reads the topics between two offsets or times. Writes to no topic, joins no group, commits nothing. Exits with 0 if
    every promise was kept, 1 if one was broken, 2 for a wrong option, 4 if the brokers do not answer.
    """
    from consumer.tools.verify.request import Request, check_order, parse_bound

    connection = clients.connection(config, bootstrap_servers, setting)
    program, now_ms = connection.config, time.time_ns() // 1_000_000
    request = Request(
        inputs=tuple(dict.fromkeys(input_topic or program.input.topics)),
        output=output or program.output.topic,
        dead_letter=dead_letter or program.dead_letter.topic,
        group=group or program.kafka.group_id,
        exactly_once=_delivery(delivery or program.delivery) == "exactly_once",
        isolation=str(connection.consumer.get("isolation.level", "read_committed")),
        start=parse_bound("--from", start, now_ms),
        end=parse_bound("--to", end, now_ms),
        outcomes_from=parse_bound("--outcomes-from", outcomes_from, now_ms),
        keep=limit,
    )
    _check_topics(request)
    check_order(request.start, request.end)
    report = _run(connection, request, now_ms)
    _print(request, report, as_json=as_json)
    raise typer.Exit(0 if report.result.clean else 1)


def _run(connection: clients.Connection, request: Request, now_ms: int) -> Report:
    from consumer.tools.verify.brokers import Stopped
    from consumer.tools.verify.run import open_run

    with _progress() as progress:
        try:
            return open_run(connection, request, now_ms=now_ms, stop=stop_on_signals(), progress=progress)()
        except Stopped:
            print("stopped before the end, so nothing is judged", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None


def _print(request: Request, report: Report, *, as_json: bool) -> None:
    from rich.console import Console

    from consumer.tools.verify import report as text

    if as_json:
        print(json.dumps(text.as_json(request, report), indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(text.heading(request), markup=False)
    console.print(text.table(request, report))
    for line in text.lines(report):
        console.print(line, markup=False)


def _delivery(text: str) -> str:
    name = text.replace("-", "_")
    if name not in ("at_least_once", "exactly_once"):
        raise ConfigError(f"--delivery {printable(text)}: expected at-least-once or exactly-once")
    return name


def _check_topics(request: Request) -> None:
    topics = [*request.inputs, request.output, request.dead_letter]
    if len(set(topics)) < len(topics):
        raise ConfigError("--input, --output and --dead-letter: expected different topics")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a progress bar for each step on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<21}"), BarColumn(20), TextColumn("{task.percentage:>3.0f} %"))
    tasks: dict[str, TaskID] = {}
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:

        def passed(what: str, count: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], advance=count, total=total)

        yield passed
