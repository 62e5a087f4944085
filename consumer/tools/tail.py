"""`sluice tail`: what the detector says, a line per frame. Joins no group and commits nothing."""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any, Final

import numpy as np
import typer

from consumer.errors import KafkaError
from consumer.messages import decode_result, read_dead_letter, read_record
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.types import Record

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_SCORES_SHOWN: Final = 5  # of one class in one frame
Place = tuple[str, int | None, int | None]  # topic, partition, offset


def tail(
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    topic: Annotated[str | None, typer.Option(help="Topic to read from. Default: output.topic.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Begin with the oldest message instead of the next one.")
    ] = False,
    frames: Annotated[int | None, typer.Option(min=1, help="End after so many messages. Default: never.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", metavar="NAME", help="Only this source. Can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each message whole, as JSON, one per line.")] = False,
    setting: clients.Settings = None,
) -> None:
    """Print detection messages as they come: time, source, frame, batch size, latency, and what was seen.

    Latency is from capture to publishing. What is no such message is reported on stderr. Ctrl-C ends it.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    there = clients.connection(config, bootstrap_servers, setting)
    records = read(
        there.bootstrap_servers,
        topic or there.config.output.topic,
        from_beginning=from_beginning,
        settings=there.settings,
        stop=stop,
    )
    show = Printer(frozenset(source or ()), as_json=as_json)
    try:
        for place, record in records:
            show(place, record)
            if show.printed == frames:
                break
    except BrokenPipeError:  # `sluice tail | head` is done with us; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        records.close()


def read(
    bootstrap_servers: str, topic: str, *, from_beginning: bool, settings: Mapping[str, Any], stop: threading.Event
) -> Generator[tuple[Place, Record]]:
    """Records of all partitions, until `stop` is set. Partitions that are added later are not seen.

    Raises KafkaError where the topic cannot be read.
    """
    from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, TopicPartition

    defaults = {
        "group.id": f"sluice-tail-{uuid.uuid4()}",  # the client asks for one; no broker hears of it
        "enable.auto.commit": "false",
        "auto.offset.reset": "earliest" if from_beginning else "latest",
        "fetch.wait.max.ms": "100",
    }
    client = clients.consumer(bootstrap_servers, {**defaults, **settings})
    try:
        offset = OFFSET_BEGINNING if from_beginning else OFFSET_END
        client.assign([TopicPartition(topic, number, offset) for number in clients.partitions_of(client, topic)])
        while not stop.is_set():
            message = client.poll(0.2)
            if message is None:
                continue
            if (error := message.error()) is not None:
                if clients.is_permanent(error):
                    raise KafkaError(f"topic {printable(topic)}: {printable(error.str())}")
                continue
            yield (topic, message.partition(), message.offset()), read_record(message)
    finally:
        client.close()


@dataclass(slots=True)
class Printer:
    """Prints records: results on stdout, what is none on stderr. Counts what it printed on stdout."""

    sources: frozenset[str]
    as_json: bool
    printed: int = 0
    zone: tzinfo | None = None  # None: local time
    out: Callable[[str], None] = lambda line: print(line, flush=True)
    complain: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def __call__(self, place: Place, record: Record) -> None:
        try:
            body = decode_result(record.value or b"")
            if self.sources and body.get("source_id") not in self.sources:
                return
            line = json_line(body) if self.as_json else result_line(body, self.zone)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            self._no_result(place, record, error)
            return
        self.out(line)
        self.printed += 1

    def _no_result(self, place: Place, record: Record, error: Exception) -> None:
        topic, partition, offset = place
        where = printable(f"{topic}[{partition}]@{offset}")
        if (letter := read_dead_letter(record)) is None:
            what = str(error) if type(error) is ValueError else f"malformed: {type(error).__name__} {error}"
        else:
            what = f"dead letter of {letter.id}: {letter.stage}, {letter.reason}: {letter.detail}"
        self.complain(f"{where}: {printable(what)}")


def result_line(body: dict[str, Any], zone: tzinfo | None = None) -> str:
    """One readable line, safe to print. Raises ValueError, TypeError or KeyError where the message is malformed."""
    published, captured = body["published_at_ms"], body["captured_at_ms"]
    time = (_EPOCH + timedelta(milliseconds=published)).astimezone(zone)
    latency = "-" if captured is None else f"{published - captured:d} ms"
    if "skipped" in body:
        skipped = body["skipped"]
        batch, what = "-", f"skipped: {skipped['reason']}, {skipped['age_ms']:.0f} ms old"
    else:
        batch, what = f"{body['batch_size']:d}", _seen(body["detections"])
    columns = (
        time.strftime("%H:%M:%S.") + f"{time.microsecond // 1000:03d}",
        f"{body['source_id']:<12}",
        f"{body['frame_id']:<10}",
        f"batch {batch:>3}",
        f"{latency:>8}",
        what,
    )
    return printable("  ".join(columns))


def _seen(detections: list[dict[str, Any]]) -> str:
    """`2 car 0.91 0.88, 1 person 0.77`: classes in the order of their best score."""
    scores: dict[str, list[float]] = {}
    for found in detections:
        scores.setdefault(found["label"], []).append(found["score"])
    parts = []
    for label, values in scores.items():
        shown = " ".join(f"{value:.2f}" for value in values[:_SCORES_SHOWN])
        parts.append(f"{len(values)} {label} {shown}{' ...' if len(values) > _SCORES_SHOWN else ''}")
    return ", ".join(parts) or "nothing"


def json_line(body: dict[str, Any]) -> str:
    """The message as one line of ASCII JSON: what is unprintable is escaped by JSON's own rules.

    A float32 is written with the digits that name it, 0.91 rather than 0.9100000262260437; binary as base64 text.
    Raises ValueError where a number is NaN or infinite.
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
        raise ValueError("not a Sluice message: a number of it is not finite")
    if abs(number) > _FLOAT32_MAX or float(np.float32(number)) != number:
        return number
    return float(str(np.float32(number)))
