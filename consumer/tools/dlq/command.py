"""The options of `sluice dlq list`, `show` and `replay`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from consumer.errors import ConfigError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.dlq import formatting
from consumer.tools.dlq.dead_letters import Filter, Selection, parse_since, read_letter
from consumer.tools.dlq.terminal import SHOWN, print_status, terminal_width, tolerate_closed_pipe, warn_unknown_reasons
from consumer.tools.signals import stop_on_signals

app = typer.Typer(
    help="Inspect the dead letters, and replay them after the cause is fixed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Topic = Annotated[str | None, typer.Option(help="The dead-letter topic. Default: dead_letter.topic.")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="R", help="Only with this reason. Can be repeated.")
]
Stages = Annotated[
    list[str] | None,
    typer.Option("--stage", metavar="S", help="Only from parse, decode, infer or publish. Can be repeated."),
]
Sources = Annotated[
    list[str] | None, typer.Option("--source", metavar="ID", help="Only from this source. Can be repeated.")
]
InputTopics = Annotated[
    list[str] | None, typer.Option("--input-topic", metavar="T", help="Only from this input topic. Can be repeated.")
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Only rejected since: 30m, 2h, 7d, or 2026-01-31T22:00."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
To = Annotated[
    str | None, typer.Option("--to", metavar="TOPIC", help="Destination. Default: the input topic of each record.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be sent. Writes nothing.")]
ReplayLimit = Annotated[int | None, typer.Option(min=1, help="End after so many. The next run continues there.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Group = Annotated[str, typer.Option(help="Consumer group that records what was replayed.")]
MaxReplays = Annotated[int, typer.Option(min=1, help="Skip records that were replayed so often.")]
IncludeTruncated = Annotated[
    bool, typer.Option("--include-truncated", help="Also send truncated records, which differ from the originals.")
]
AtLeastOnce = Annotated[
    bool, typer.Option("--at-least-once", help="Write without transactions. A crash repeats up to one batch.")
]
Batch = Annotated[int, typer.Option(min=1, max=10_000, help="Records per transaction.")]


@app.command("list")
def list_(
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    topic: Topic = None,
    reason: Reasons = None,
    stage: Stages = None,
    source: Sources = None,
    input_topic: InputTopics = None,
    since: Since = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"Number of newest rows to show; 0: all. Default: {SHOWN}, with --json all."),
    ] = None,
    as_json: Json = False,
    setting: clients.Settings = None,
) -> None:
    """Print the dead letters, newest last, and how many there are of each reason.

    Reads the topic up to its current end, joins no group and commits nothing. With --json, prints one object per line.
    """
    from consumer.tools.dlq.lookup import NewestRows, open_dead_letters

    chosen = _filter(reason, stage, source, input_topic, since)
    most = limit if limit is not None else (0 if as_json else SHOWN)
    reasons, seen, foreign, others = Counter[str](), Counter[str](), 0, 0
    stop = stop_on_signals()
    connection = clients.connection(config, bootstrap_servers, setting)
    with open_dead_letters(connection, stop) as reader:
        newest = NewestRows(most)
        for found in reader.scan_all(topic or connection.config.dead_letter.topic):
            letter = read_letter(*found)
            if letter is None:
                foreign += 1
                newest.add(found.record.timestamp_ms, found[:2], formatting.foreign_row(*found))
                continue
            seen[letter.dead.reason] += 1
            if chosen.matches(letter):
                reasons[letter.dead.reason] += 1
                newest.add(letter.rejected_at_ms, found[:2], formatting.row_of(letter))
            else:
                others += 1
    _print_rows(newest.rows(), reasons, foreign, others, as_json=as_json)
    warn_unknown_reasons(chosen, seen)
    if stop.is_set():
        print_status("stopped before the end")


@app.command()
def show(
    which: Annotated[
        str,
        typer.Argument(
            metavar="PARTITION@OFFSET|ID",
            help="Its position in the dead-letter topic, or the ID of its input record.",
        ),
    ],
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    topic: Topic = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the record's value to this file, byte for byte.")
    ] = None,
    as_json: Json = False,
    setting: clients.Settings = None,
) -> None:
    """Print all that is known about one dead letter. Its image is not decoded, because it may be malicious."""
    from consumer.tools.dlq.lookup import find, open_dead_letters, save_value

    connection = clients.connection(config, bootstrap_servers, setting)
    stop = stop_on_signals()
    with open_dead_letters(connection, stop) as reader:
        letter, positions = find(reader, topic or connection.config.dead_letter.topic, which)
    if len(positions) > 1:
        print_status(f"{len(positions)} dead letters have this ID, at {', '.join(positions)}; this is the last")
    with tolerate_closed_pipe():
        if as_json:
            print(formatting.as_json(formatting.details(letter)))
        else:
            for line in formatting.letter_lines(letter):
                print(line)
    if save is not None:
        print_status(save_value(letter, save))


@app.command()
def replay(
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    topic: Topic = None,
    reason: Reasons = None,
    stage: Stages = None,
    source: Sources = None,
    input_topic: InputTopics = None,
    since: Since = None,
    to: To = None,
    dry_run: DryRun = False,
    limit: ReplayLimit = None,
    yes: Yes = False,
    group: Group = "sluice-dlq-replay",
    max_replays: MaxReplays = 3,
    include_truncated: IncludeTruncated = False,
    at_least_once: AtLeastOnce = False,
    batch: Batch = 100,
    as_json: Json = False,
    setting: clients.Settings = None,
) -> None:
    """Write the original records to their input topics, with headers for the replay count and the original timestamp.

    Each record is sent once. After any failure, run it again, with the same or other filters: it continues where it
    stopped.
    """
    from consumer.tools.dlq.replay_job import ReplayJob

    connection = clients.connection(config, bootstrap_servers, setting)
    if {"transactional.id", "group.id"} & connection.settings.keys():
        raise ConfigError("-X transactional.id, group.id: use --group")
    chosen = _filter(reason, stage, source, input_topic, since)
    if not (dry_run or yes) and not sys.stdin.isatty():
        raise ConfigError("no terminal to ask on: use --yes to write, or --dry-run to see what would be sent")
    job = ReplayJob(
        connection,
        topic or connection.config.dead_letter.topic,
        Selection(chosen, to, include_truncated, max_replays),
        group=group,
        limit=limit,
        batch=batch,
        at_least_once=at_least_once,
        as_json=as_json,
        stop=stop_on_signals(),
    )
    if dry_run:
        job.show()
    elif yes or job.confirmed():
        job.send()
    else:
        print_status("nothing was sent")


def _print_rows(rows: list[formatting.Row], reasons: Counter[str], foreign: int, others: int, *, as_json: bool) -> None:
    with tolerate_closed_pipe():
        lines = map(formatting.as_json, rows) if as_json else formatting.table(rows, terminal_width()) if rows else ()
        for line in lines:
            print(line)
        shown = sum(row["dead_letter"] for row in rows)
        for line in formatting.summary(reasons, foreign, others, shown):
            print(line, file=sys.stderr if as_json else sys.stdout)


def _filter(
    reason: list[str] | None,
    stage: list[str] | None,
    source: list[str] | None,
    input_topic: list[str] | None,
    since: str | None,
) -> Filter:
    for name in stage or ():
        if name not in ("parse", "decode", "infer", "publish"):
            raise ConfigError(f"--stage {printable(name)}: expected parse, decode, infer or publish")
    since_ms = parse_since(since, time.time_ns() // 1_000_000)
    return Filter(
        reasons=frozenset(reason or ()),
        stages=frozenset(stage or ()),
        sources=frozenset(source or ()),
        topics=frozenset(input_topic or ()),
        since_ms=since_ms,
    )
