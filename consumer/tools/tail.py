"""`sluice tail`: prints the results, one line per frame. Joins no group and commits nothing."""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any, Final

import numpy as np
import typer

from consumer.messages import decode_result, read_dead_letter
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.kafka.reader import TopicRecord, open_reader
from consumer.tools.signals import stop_on_signals

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_SCORES_SHOWN: Final = 5  # of one class in one frame


def tail(
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    topic: Annotated[str | None, typer.Option(help="Topic to read from. Default: output.topic.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Start with the oldest message instead of the next one.")
    ] = False,
    frames: Annotated[
        int | None, typer.Option(min=1, help="End after so many messages. Default: run until Ctrl-C.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", metavar="NAME", help="Only this source. Can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each whole message as one line of JSON.")] = False,
    setting: clients.Settings = None,
) -> None:
    """Print detection messages as they arrive: time, source, frame, batch size, latency and detections.

    Latency is the time from capture to publishing. Other messages are reported on stderr. Ctrl-C ends it.
    """
    connection = clients.connection(config, bootstrap_servers, setting)
    topic = topic or connection.config.output.topic
    printer = Printer(topic, frozenset(source or ()), as_json=as_json)
    defaults = {"auto.offset.reset": "earliest" if from_beginning else "latest"}
    settings = defaults | connection.settings
    with open_reader(
        connection.bootstrap_servers, settings, stop_on_signals(), group=settings.get("group.id")
    ) as reader:
        try:
            for found in reader.follow(topic, from_beginning=from_beginning):
                printer(found)
                if printer.printed == frames:
                    break
        except BrokenPipeError:  # `sluice tail | head` has ended; Python would report the closed pipe again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(slots=True)
class Printer:
    """Prints results on stdout and other records on stderr. `printed` counts the results."""

    topic: str
    sources: frozenset[str]
    as_json: bool
    printed: int = 0
    zone: tzinfo | None = None  # None: local time
    out: Callable[[str], None] = lambda line: print(line, flush=True)
    complain: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def __call__(self, found: TopicRecord) -> None:
        try:
            body = decode_result(found.record.value or b"")
            if self.sources and body.get("source_id") not in self.sources:
                return
            line = json_line(body) if self.as_json else result_line(body, self.zone)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            self._report_other(found, error)
            return
        self.out(line)
        self.printed += 1

    def _report_other(self, found: TopicRecord, error: Exception) -> None:
        where = printable(f"{self.topic}[{found.partition}]@{found.offset}")
        if (letter := read_dead_letter(found.record)) is None:
            what = str(error) if type(error) is ValueError else f"malformed: {type(error).__name__} {error}"
        else:
            what = f"dead letter of {letter.id}: {letter.stage}, {letter.reason}: {letter.detail}"
        self.complain(f"{where}: {printable(what)}")


def result_line(body: dict[str, Any], zone: tzinfo | None = None) -> str:
    """One line of text that is safe to print. Raises ValueError, TypeError or KeyError for a malformed message."""
    published, captured = body["published_at_ms"], body["captured_at_ms"]
    time = (_EPOCH + timedelta(milliseconds=published)).astimezone(zone)
    latency = "-" if captured is None else f"{published - captured:d} ms"
    if "skipped" in body:
        skipped = body["skipped"]
        batch, what = "-", f"skipped: {skipped['reason']}, {skipped['age_ms']:.0f} ms old"
    else:
        batch, what = f"{body['batch_size']:d}", _detection_text(body["detections"])
    columns = (
        time.strftime("%H:%M:%S.") + f"{time.microsecond // 1000:03d}",
        f"{body['source_id']:<12}",
        f"{body['frame_id']:<10}",
        f"batch {batch:>3}",
        f"{latency:>8}",
        what,
    )
    return printable("  ".join(columns))


def _detection_text(detections: list[dict[str, Any]]) -> str:
    """`2 car 0.91 0.88, 1 person 0.77`: classes in the order of their best scores."""
    scores: dict[str, list[float]] = {}
    for found in detections:
        scores.setdefault(found["label"], []).append(found["score"])
    parts = []
    for label, values in scores.items():
        shown = " ".join(f"{value:.2f}" for value in values[:_SCORES_SHOWN])
        parts.append(f"{len(values)} {label} {shown}{' ...' if len(values) > _SCORES_SHOWN else ''}")
    return ", ".join(parts) or "nothing"


def json_line(body: dict[str, Any]) -> str:
    """The message as one line of ASCII JSON, with unprintable characters escaped as JSON does it.

    A float32 is written with the fewest digits that identify it: 0.91 instead of 0.9100000262260437. Binary data is
    written as base64 text.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(_plain(body))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return _shortest(value)
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, str | int) else str(value)


def _shortest(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("not a Sluice message: it contains a number that is not finite")
    if abs(number) > _FLOAT32_MAX or float(np.float32(number)) != number:
        return number
    return float(str(np.float32(number)))
