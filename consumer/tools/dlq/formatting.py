"""Renders dead letters as text and as JSON. Pure. Text from producers is escaped before it reaches a terminal."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

from consumer.observability.logging import printable
from consumer.tools.dlq.dead_letters import DeadLetterRecord
from consumer.types import REASONS, Record

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VALUE_SHOWN: Final = 200  # characters of one header
_COLUMNS: Final = (("REJECTED", 19), ("PLACE", 8), ("INPUT", 18), ("SOURCE", 12), ("STAGE", 7), ("REASON", 18))

Row = dict[str, Any]


def row_of(letter: DeadLetterRecord) -> Row:
    """The object that `list --json` prints for a dead letter."""
    dead = letter.dead
    return {
        "place": letter.position,
        "dead_letter": True,
        "id": dead.id,
        "rejected_at_ms": letter.rejected_at_ms,
        "input": {"topic": dead.topic, "partition": dead.partition, "offset": dead.offset},
        "source_id": letter.frame.source_id,
        "stage": dead.stage,
        "reason": dead.reason,
        "detail": dead.detail,
        "bytes": len(dead.record.value or b""),
        "truncated": dead.truncated,
        "replays": letter.replays,
    }


def as_json(body: Row) -> str:
    """One line of ASCII without control characters. JSON itself does not escape DEL."""
    return json.dumps(body).replace("\x7f", "\\u007f")


def foreign_row(partition: int, offset: int, record: Record) -> Row:
    """The object that `list --json` prints for a record that is not a dead letter."""
    return {"place": f"{partition}@{offset}", "dead_letter": False, "bytes": len(record.value or b"")}


def table(rows: Iterable[Row], width: int, zone: tzinfo | None = None) -> Iterator[str]:
    """Yield a heading and one line per row, cut to `width` characters (0: not cut)."""
    names = "  ".join(f"{name:<{size}}" for name, size in _COLUMNS)
    yield _shortened(f"{names}  {'SIZE':>8}  DETAIL", width)
    for row in rows:
        yield _shortened(_line(row, zone), width)


def _line(row: Row, zone: tzinfo | None) -> str:
    if not row["dead_letter"]:
        return f"{'-':<19}  {row['place']:<8}  not a dead letter: {size(row['bytes'])}"
    source = row["input"]
    values = (
        moment(row["rejected_at_ms"], zone),
        row["place"],
        f"{source['topic']}[{source['partition']}]@{source['offset']}",
        row["source_id"] or "-",
        row["stage"],
        row["reason"],
    )
    cells = "  ".join(f"{printable(str(v)):<{w}}" for v, (_, w) in zip(values, _COLUMNS, strict=True))
    notes = "truncated; " * row["truncated"] + f"replayed {row['replays']}x; " * bool(row["replays"])
    return f"{cells}  {size(row['bytes']):>8}  {notes}{printable(row['detail'])}"


def _shortened(line: str, width: int) -> str:
    line = line.rstrip()
    return line if not width or len(line) <= width else line[: max(0, width - 1)] + "…"


def summary(reasons: Counter[str], foreign: int, others: int, shown: int) -> Iterator[str]:
    """Yield the counts by reason, then what is not shown and what is not a dead letter."""
    total = reasons.total()
    parts = ", ".join(f"{printable(reason) or '(no reason)'} {count}" for reason, count in reasons.most_common())
    yield f"{_letters(total)}{': ' if parts else ''}{parts}"
    if shown < total:
        yield f"shown: the newest {shown}; --limit 0 for all"
    if others:
        yield f"{others} more do not match"
    if foreign:
        yield f"{foreign} {'record is not a dead letter' if foreign == 1 else 'records are not dead letters'} of Sluice"


def _letters(count: int) -> str:
    return f"{count} dead letter{'s' * (count != 1)}"


def unknown_reasons(asked: Iterable[str], seen: Counter[str]) -> str | None:
    """A hint if a filter names a reason that neither Sluice nor any dead letter has: most likely a typing error."""
    if not (missing := sorted(set(asked) - seen.keys() - set(REASONS))):
        return None
    there = ", ".join(sorted(map(printable, seen))) or "none"
    return f"no dead letter has the reason {', '.join(map(printable, missing))}; there are: {there}"


def moment(ms: int | None, zone: tzinfo | None = None) -> str:
    """A time to the second, in local time unless a zone is given."""
    if ms is None:
        return "-"
    try:
        return f"{(_EPOCH + timedelta(milliseconds=ms)).astimezone(zone):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"


def size(count: int) -> str:
    """`512 B`, `16.2 kB`, `3.4 MB`."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


def details(letter: DeadLetterRecord) -> Row:
    """The object that `show --json` prints: the row, all headers, and the fields of the frame."""
    frame, record = letter.frame, letter.dead.record
    body = row_of(letter)
    body["timestamp_ms"] = record.timestamp_ms
    body["key"] = None if record.key is None else _bytes(record.key)
    body["headers"] = [[name, None if value is None else _bytes(value)] for name, value in letter.raw.headers]
    body["frame"] = {
        "form": "envelope" if _is_envelope(letter) else "image",
        "frame_id": frame.frame_id,
        "captured_at_ms": frame.captured_at_ms,
        "traceparent": frame.traceparent,
        "image_bytes": len(frame.payload),
        "image": image(frame.payload) if frame.verdict is None else None,
    }
    return body


def letter_lines(letter: DeadLetterRecord, zone: tzinfo | None = None) -> Iterator[str]:
    """Yield all that is known about one dead letter, one line each."""
    dead, record, frame = letter.dead, letter.dead.record, letter.frame
    yield f"place       {letter.position}"
    yield f"input       {printable(dead.topic)}[{dead.partition}]@{dead.offset}  (id {printable(dead.id)})"
    yield f"rejected    {moment(letter.rejected_at_ms, zone)}"
    yield f"reason      {printable(dead.reason)}  (stage {printable(dead.stage)})"
    yield f"detail      {printable(dead.detail)}"
    yield f"source      {printable(frame.source_id) or '-'}"
    yield f"key         {'none' if record.key is None else _text(record.key)}"
    yield f"timestamp   {moment(record.timestamp_ms, zone)}"
    yield f"value       {'none' if record.value is None else f'{len(record.value):,} bytes'}"
    yield f"truncated   {'yes: the value, the key or headers were cut; see the headers' if dead.truncated else 'no'}"
    yield f"replayed    {letter.replays} times"
    if frame.verdict is None:
        yield from _frame_lines(letter, zone)
    yield "headers"
    for name, value in letter.raw.headers:
        yield f"  {printable(name)} = {'(null)' if value is None else _text(value)}"


def _frame_lines(letter: DeadLetterRecord, zone: tzinfo | None) -> Iterator[str]:
    frame = letter.frame
    yield f"form        {'msgpack envelope' if _is_envelope(letter) else 'image with headers'}"
    yield f"frame       {printable(frame.frame_id)}, captured {moment(frame.captured_at_ms, zone)}"
    found = image(frame.payload)
    if "refused" in found:
        yield f"image       {len(frame.payload):,} bytes; header not readable: {printable(found['refused'])}"
    else:
        claim = f"{found['format']}, {found['width']}x{found['height']}"
        yield f"image       {len(frame.payload):,} bytes; {claim} according to its header"


def image(payload: bytes) -> Row:
    """The format and size in the header of an image. Nothing is decoded, because the image may be malicious."""
    from consumer.decoding.headers import Refused, read_header

    try:
        header = read_header(payload)
    except Refused as refused:
        return {"refused": str(refused)}
    return {"format": header.format, "width": header.width, "height": header.height, "scans": header.scans}


def _is_envelope(letter: DeadLetterRecord) -> bool:
    return letter.frame.verdict is None and letter.frame.payload != letter.dead.record.value


def _bytes(value: bytes) -> str | Row:
    """Text if the bytes are UTF-8, else base64."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _text(value: bytes) -> str:
    head = value[: 4 * _VALUE_SHOWN].decode("utf-8", "backslashreplace")
    shown = printable(head)[:_VALUE_SHOWN]
    return shown if len(value) <= 4 * _VALUE_SHOWN and shown == printable(head) else f"{shown}… ({len(value):,} bytes)"


LEFT_STATUSES: Final = ("no_match", "already_replayed", "truncated", "too_often", "no_dead_letter")
_WHY: Final = {
    "already_replayed": "replayed before",
    "truncated": "truncated, so not the original (--include-truncated sends them)",
    "too_often": "replayed too often (--max-replays)",
    "no_match": "not selected",
    "no_dead_letter": "not a dead letter of Sluice",
}


def replay_summary(counts: Any, *, dry: bool) -> Iterator[str]:
    """Yield what a replay sent or would send, and what it skipped."""
    where = ", ".join(f"{count} to {printable(topic)}" for topic, count in sorted(counts.to.items()))
    why = ", ".join(f"{printable(reason)} {count}" for reason, count in counts.reasons.most_common())
    yield f"{'would replay' if dry else 'replayed'} {counts.replayed}{f': {where}  ({why})' if where else ''}"
    for status in LEFT_STATUSES:
        if count := counts.left[status]:
            yield f"  left {count}: {_WHY[status]}; the first is {counts.first[status]}"
    if counts.ended != "end":
        ended = "ended at --limit" if counts.ended == "limit" else "stopped"
        yield f"{ended}; the next run continues from there"
