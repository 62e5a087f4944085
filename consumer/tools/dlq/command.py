"""The options of `sluice dlq list`, `show` and `replay`."""

from __future__ import annotations

import heapq
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from consumer.errors import ConfigError, KafkaError
from consumer.tools import clients
from consumer.tools.clients import printable
from consumer.tools.dlq import text
from consumer.tools.dlq.letters import Filter, Letter, Selection, parse_place, parse_since, read_letter

_SHOWN: Final = 100  # rows of a table, unless asked for otherwise

app = typer.Typer(
    help="Look into the dead letters, and send them back once their cause is mended.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Topic = Annotated[str, typer.Option(help="The dead-letter topic.")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="R", help="Only with this reason. Can be repeated.")
]
Stages = Annotated[
    list[str] | None,
    typer.Option("--stage", metavar="S", help="Only from parse, decode, infer or publish. Can be repeated."),
]
Sources = Annotated[
    list[str] | None, typer.Option("--source", metavar="ID", help="Only of this source. Can be repeated.")
]
InputTopics = Annotated[
    list[str] | None, typer.Option("--input-topic", metavar="T", help="Only from this input topic. Can be repeated.")
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Only rejected since then: 30m, 2h, 7d, or 2026-01-31T22:00."),
]
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]


@app.command("list")
def list_(
    *,
    bootstrap_servers: clients.BootstrapServers = "localhost:9092",
    topic: Topic = "frames-dead",
    reason: Reasons = None,
    stage: Stages = None,
    source: Sources = None,
    input_topic: InputTopics = None,
    since: Since = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"Show the newest so many; 0: all. Default: {_SHOWN}, with --json all."),
    ] = None,
    as_json: Json = False,
    setting: clients.Settings = None,
) -> None:
    """Print what is in the dead-letter topic, newest last, and how many there are of each reason.

    Reads up to where the topic ends now, joins no group and commits nothing. With --json an object per line.
    """
    from consumer.tools.dlq.reading import reader, scan_all

    chosen = _filter(reason, stage, source, input_topic, since)
    most = limit if limit is not None else (0 if as_json else _SHOWN)
    reasons, seen, strays, others = Counter[str](), Counter[str](), 0, 0
    stop = _stop_on_signals()
    with reader(bootstrap_servers, clients.settings_from(setting or ())) as client:
        newest = _Newest(most)
        for found in scan_all(client, topic, stop):
            letter = read_letter(*found)
            if letter is None:
                strays += 1
                newest.add(found.record.timestamp_ms, found[:2], text.stray_row(*found))
                continue
            seen[letter.dead.reason] += 1
            if chosen.matches(letter):
                reasons[letter.dead.reason] += 1
                newest.add(letter.rejected_at_ms, found[:2], text.row_of(letter))
            else:
                others += 1
    rows = newest.rows()
    with _pipe():
        lines = map(json.dumps, rows) if as_json else text.table(rows, _width()) if rows else ()
        for line in lines:
            print(line)
        shown = sum(row["dead_letter"] for row in rows)
        for line in text.summary(reasons, strays, others, shown):
            print(line, file=sys.stderr if as_json else sys.stdout)
    _hint(chosen, seen)
    if stop.is_set():
        _say("stopped before the end")


@app.command()
def show(
    which: Annotated[
        str,
        typer.Argument(
            metavar="PARTITION@OFFSET|ID", help="Its place in the dead-letter topic, or the ID of its input."
        ),
    ],
    *,
    bootstrap_servers: clients.BootstrapServers = "localhost:9092",
    topic: Topic = "frames-dead",
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the record's value there, byte for byte.")
    ] = None,
    as_json: Json = False,
    setting: clients.Settings = None,
) -> None:
    """Print all that is known of one dead letter. Its image is not decoded: it may be there to do harm."""
    letter = _find(which, bootstrap_servers, topic, clients.settings_from(setting or ()))
    with _pipe():
        if as_json:
            print(json.dumps(text.details(letter)))
        else:
            for line in text.show(letter):
                print(line)
    if save is not None:
        _save(letter, save)


@app.command()
def replay(
    *,
    bootstrap_servers: clients.BootstrapServers = "localhost:9092",
    topic: Topic = "frames-dead",
    reason: Reasons = None,
    stage: Stages = None,
    source: Sources = None,
    input_topic: InputTopics = None,
    since: Since = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TOPIC", help="Where to. Default: the topic that each came from.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent. Writes nothing.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many. The next run goes on there.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    group: Annotated[
        str, typer.Option(help="Under this name it is remembered what was replayed.")
    ] = "sluice-dlq-replay",
    max_replays: Annotated[int, typer.Option(min=1, help="Leave what came back so often.")] = 3,
    include_truncated: Annotated[
        bool, typer.Option("--include-truncated", help="Send also what was cut, which is not what was sent once.")
    ] = False,
    at_least_once: Annotated[
        bool, typer.Option("--at-least-once", help="Without transactions. A crash repeats up to one batch.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Records per transaction.")] = 100,
    as_json: Json = False,
    setting: clients.Settings = None,
) -> None:
    """Write the original records back: key, value, headers, timestamp, and a header that counts the replays.

    Each once: run it again after whatever went wrong, with the same filters or others. It goes on where it stopped.
    """
    from consumer.tools.dlq.outbox import AtLeastOnce, Outbox, Transactions
    from consumer.tools.dlq.reading import reader
    from consumer.tools.dlq.replay import Replay

    settings = clients.settings_from(setting or ())
    if "transactional.id" in settings or "group.id" in settings:
        raise ConfigError("-X transactional.id, group.id: use --group")
    selection = Selection(_filter(reason, stage, source, input_topic, since), to, include_truncated, max_replays)
    if not (dry_run or yes) and not sys.stdin.isatty():
        raise ConfigError("nobody is there to be asked: say --yes to write, or --dry-run to see what would be sent")
    stop = _stop_on_signals()
    with reader(bootstrap_servers, settings, group) as client:

        def connect() -> Outbox:
            if at_least_once:
                return AtLeastOnce(bootstrap_servers, settings, client)
            return Transactions(bootstrap_servers, settings, f"{group}/{topic}", client)

        def run(*, dry: bool, on_letter: Any = lambda _: None) -> None:
            job = Replay(
                client,
                topic,
                selection,
                make_outbox=None if dry else connect,
                limit=limit,
                batch=batch,
                stop=stop,
                on_letter=on_letter,
            )
            try:
                job.run()
            finally:
                with _pipe():
                    _report(job.tally, dry=dry, as_json=as_json and (dry_run or not dry), group=group)
            _hint(selection.filter, job.tally.seen_reasons)

        rows = _Newest(0 if limit else _SHOWN)
        if dry_run:
            run(dry=True, on_letter=lambda letter: rows.add(0, (letter.partition, letter.offset), text.row_of(letter)))
            if not as_json and rows.rows():
                with _pipe():
                    print(*text.table(rows.rows(), _width()), sep="\n")
            return
        if not yes:
            run(dry=True)
            if stop.is_set() or not typer.confirm("Send them?", err=True):
                _say("nothing was sent")
                return
        run(dry=False)


class _Newest:
    """Keeps the newest rows, `most` of them; 0: all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, tuple[int, int], text.Row]] = []

    def add(self, at_ms: int | None, place: tuple[int, int], row: text.Row) -> None:
        """`place` is unique, so rows are never compared."""
        entry = (at_ms or 0, place, row)
        if self._most and len(self._heap) == self._most:
            heapq.heappushpop(self._heap, entry)
        else:
            heapq.heappush(self._heap, entry)

    def rows(self) -> list[text.Row]:
        """Oldest first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2])]


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


def _find(which: str, bootstrap_servers: str, topic: str, settings: dict[str, str]) -> Letter:
    from consumer.tools.dlq.reading import Found, reader, record_at, scan_all

    stop = _stop_on_signals()
    with reader(bootstrap_servers, settings) as client:
        if (place := parse_place(which)) is not None:
            record = record_at(client, topic, *place)
            if record is None:
                raise KafkaError(
                    f"topic {printable(topic)} has no record at {which}; `sluice dlq list` shows the places"
                )
            letter = read_letter(*Found(*place, record))
            if letter is None:
                raise KafkaError(
                    f"the record at {which} is no dead letter of Sluice: {text.size(len(record.value or b''))}"
                )
            return letter
        matching = (letter for found in scan_all(client, topic, stop) if (letter := read_letter(*found)) is not None)
        places: list[str] = []
        last: Letter | None = None
        for letter in matching:
            if letter.dead.id == which:
                places.append(letter.place)
                last = letter
    if last is None:
        raise KafkaError(
            f"no dead letter has the ID {printable(which)}; expected PARTITION@OFFSET or topic/partition/offset"
        )
    if len(places) > 1:
        _say(f"{len(places)} dead letters have this ID, at {', '.join(places)}; this is the last")
    return last


def _save(letter: Letter, path: Path) -> None:
    value = letter.dead.record.value
    if value is None:
        raise ConfigError(f"--save: dead letter {letter.place} has no value")
    try:
        with path.open("xb") as file:
            file.write(value)
    except FileExistsError:
        raise ConfigError(f"--save {printable(str(path))}: there is such a file already") from None
    except OSError as error:
        raise ConfigError(f"--save {printable(str(path))}: {error.strerror}") from None
    cut = ", of a value that was cut" if letter.dead.truncated else ""
    _say(f"{len(value):,} bytes written to {printable(str(path))}{cut}")


def _report(tally: Any, *, dry: bool, as_json: bool, group: str) -> None:
    if as_json:
        left = {fate: tally.left[fate] for fate in text.FATES}
        body = {"dry_run": dry, "group": group, "replayed": tally.replayed, "ended": tally.ended}
        print(json.dumps({**body, "to": dict(tally.to), "reasons": dict(tally.reasons), "left": left}))
        return
    for line in text.outcome(tally, dry=dry):
        print(line, flush=True)


def _hint(chosen: Filter, seen: Counter[str]) -> None:
    if (hint := text.unknown_reasons(chosen.reasons, seen)) is not None:
        _say(hint)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _width() -> int:
    """Of the terminal; 0 where there is none, so that a file or a pipe gets whole lines."""
    return shutil.get_terminal_size(fallback=(0, 0)).columns


def _stop_on_signals() -> threading.Event:
    """An event that the first SIGINT or SIGTERM sets; the second one ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


@contextmanager
def _pipe() -> Iterator[None]:
    """`| head` may be done with us at any time; Python would complain once more at exit."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
