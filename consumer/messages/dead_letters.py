"""Encodes rejected frames as dead letters, and decodes dead letters for tools.

A dead letter is the original record, byte for byte, with the headers of Sluice after its own headers. See
`schemas/dead-letter.schema.json`.

A dead letter can always be written. What would exceed the limit of the broker is truncated, and headers report what
was truncated.

The timestamp of a dead letter is the time of the rejection. With the timestamp of the frame, the broker could refuse
the dead letter (too far ahead), or retention could delete it at once.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from consumer.messages.message import ORIGINAL_TIMESTAMP, HeaderList, Message, record_id, utf8
from consumer.types import Frame, Headers, Record, Rejected

ERRORS: Final = "__connect.errors."  # the header prefix of Kafka Connect, whose tools can therefore read dead letters
MIN_BYTES: Final = 4096  # always enough for the headers of Sluice

_STAGES: Final = {
    "parse": "consumer.wire",
    "decode": "consumer.decoder",
    "infer": "consumer.detectors",
    "publish": "consumer.publisher",
}
_TRUNCATED: Final = "sluice-truncated"
_ORIGINAL_BYTES: Final = "sluice-original-bytes"
_ORIGINAL_SHA256: Final = "sluice-original-sha256"
_ORIGINAL_KEY_BYTES: Final = "sluice-original-key-bytes"
_DROPPED_HEADERS: Final = "sluice-dropped-headers"
# The headers that report a truncation, with the form of their values.
_NOTES: Final = {
    _TRUNCATED: re.compile(rb"true"),
    _ORIGINAL_BYTES: re.compile(rb"[0-9]{1,20}"),
    _ORIGINAL_SHA256: re.compile(rb"[0-9a-f]{64}"),
    _ORIGINAL_KEY_BYTES: re.compile(rb"[0-9]{1,20}"),
    _DROPPED_HEADERS: re.compile(rb"[0-9]{1,20}"),
}
_REJECTED_AT: Final = "sluice-rejected-at-ms"
_STAMP: Final = re.compile(rb"[0-9]{1,19}")
ORIGINAL_KEY: Final = (
    "sluice-original-key"  # "none": the input record has no key, but the dead-letter topic requires one
)
_NO_KEY: Final = re.compile(rb"none")
_ID: Final = re.compile(rb".+", re.DOTALL)
_OFFSET: Final = ERRORS + "offset"
_ERROR_NAMES: Final = tuple(
    ERRORS + name
    for name in (
        "topic",
        "partition",
        "offset",
        "connector.name",
        "stage",
        "class.name",
        "exception.class.name",
        "exception.message",
    )
)
_OURS: Final = frozenset((*_ERROR_NAMES, _REJECTED_AT))

_MAX_DETAIL: Final = 1024  # bytes
_MAX_SOURCE: Final = 256  # bytes
_KEPT_KEY: Final = 512  # bytes; a source ID has at most this size
_BATCH_OVERHEAD: Final = 512  # bytes around a lone record in a produce request: batch header, varints, topic name
_HEADER_OVERHEAD: Final = 10  # bytes around one header: two varints of at most 5
_NOTES_BYTES: Final = sum(len(name) + 64 + _HEADER_OVERHEAD for name in _NOTES)

_Parts = tuple[bytes | None, bytes | None, HeaderList, HeaderList]  # key, value, headers, notes of what was cut


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A decoded dead letter.

    Attributes:
        id: The ID of the original record, `<topic>/<partition>/<offset>`.
        topic: The input topic.
        partition: The input partition.
        offset: The input offset.
        stage: The stage that rejected the frame; see `Rejected.stage`.
        reason: The reason; see `Rejected.reason`.
        detail: An explanation for a person.
        truncated: Whether the dead letter does not hold the whole original record. A replay of it repairs nothing.
        record: The original record, which a replay writes back.
    """

    id: str
    topic: str
    partition: int
    offset: int
    stage: str
    reason: str
    detail: str
    truncated: bool
    record: Record


def encode_dead_letter(
    frame: Frame, rejected: Rejected, *, source: str, max_bytes: int, now_ms: int, keyed: bool = False
) -> Message:
    """Encode the dead letter of one frame. It never exceeds `max_bytes`.

    If a replayed dead letter fails again, it keeps its original headers and timestamp, and the other headers of Sluice
    are replaced. So it does not grow.

    Args:
        frame: The rejected frame.
        rejected: The reason for the rejection.
        source: The name of this consumer, for a header.
        max_bytes: The maximum size of a message on the broker. A value below 4096 counts as 4096.
        now_ms: The current Unix time in milliseconds.
        keyed: Whether the topic refuses records without a key, as a compacted topic does. Then a record without a key
            gets its ID as the key, and the header `sluice-original-key` marks it.
    """
    record = _original(frame.record)
    original, notes = _original_headers(record.headers)
    if record.headers_lost:
        notes = list(_notes(record).items())
    ours = _our_headers(frame, rejected, source, now_ms)
    if record.timestamp_ms is not None and record.timestamp_ms >= 0:
        ours.insert(0, (ORIGINAL_TIMESTAMP, b"%d" % record.timestamp_ms))
    if keyed and record.key is None:
        ours.insert(0, (ORIGINAL_KEY, b"none"))
        record = record._replace(key=utf8(record_id(frame.receipt)))
    limit = max(max_bytes, MIN_BYTES)
    key, value, headers = record.key, record.value, original
    if _size(key, value, [*original, *notes, *ours]) > limit:
        key, value, headers, notes = _fit(record, original, notes, limit - _size(None, None, ours))
    return Message(key, value, [*headers, *notes, *ours], now_ms)


def read_dead_letter(record: Record) -> DeadLetter | None:
    """Decode a dead letter. Return None if the record is not a dead letter of Sluice."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    partition, offset = headers.get(ERRORS + "partition", ""), headers.get(_OFFSET, "")
    if not (_is_number(partition) and _is_number(offset) and _REJECTED_AT in headers):
        return None
    restored = _original(record)
    original, notes = _original_headers(restored.headers)
    return DeadLetter(
        id=headers.get("ce_id", ""),
        topic=headers.get(ERRORS + "topic", ""),
        partition=int(partition),
        offset=int(offset),
        stage=headers.get(ERRORS + "stage", ""),
        reason=headers.get(ERRORS + "exception.class.name", ""),
        detail=headers.get(ERRORS + "exception.message", ""),
        truncated=bool(notes),
        record=restored._replace(headers=tuple(original)),
    )


def message_bytes(message: Message) -> int:
    """Return an upper bound of the size of a message in a produce request of its own, in bytes."""
    return _size(message.key, message.value, message.headers)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20


def _our_headers(frame: Frame, rejected: Rejected, source: str, now_ms: int) -> HeaderList:
    (topic, partition), offset, _ = frame.receipt
    values = (
        topic,
        str(partition),
        str(offset),
        _shorten(source, _MAX_SOURCE),
        rejected.stage,
        _STAGES[rejected.stage],
        rejected.reason,
        _shorten(rejected.detail, _MAX_DETAIL),
    )
    headers: HeaderList = [(name, utf8(value)) for name, value in zip(_ERROR_NAMES, values, strict=True)]
    return [*headers, (_REJECTED_AT, b"%d" % now_ms), ("ce_id", utf8(record_id(frame.receipt)))]


def _original(record: Record) -> Record:
    """Restore the key and the timestamp of the input record, and remove the two headers that keep them.

    `record` is an input record (which may be a replayed one) or a dead letter. A dead letter of an earlier version has
    the timestamp of the input record as its own timestamp, and no header for it.
    """
    stamp, at = _last(record.headers, ORIGINAL_TIMESTAMP, _STAMP)
    dead = _last(record.headers, _REJECTED_AT, _STAMP)[0]
    keyless, key_at = _last(record.headers, ORIGINAL_KEY, _NO_KEY) if dead is not None else (None, -1)
    if keyless is not None and record.key != _last(record.headers, "ce_id", _ID)[0]:
        keyless, key_at = None, -1  # a header of the producer with the same name
    timestamp = record.timestamp_ms
    if stamp is not None:
        timestamp = int(stamp)
    elif dead is not None and timestamp == int(dead):
        timestamp = None  # the input record had no timestamp
    if at < 0 and key_at < 0:
        return record._replace(timestamp_ms=timestamp)
    headers = tuple(header for n, header in enumerate(record.headers) if n not in (at, key_at))
    return record._replace(key=None if keyless else record.key, headers=headers, timestamp_ms=timestamp)


def _last(headers: Headers, name: str, form: re.Pattern[bytes]) -> tuple[bytes | None, int]:
    """Return the value and index of the last header with this name, or (None, -1) if its value has another form."""
    for n in reversed(range(len(headers))):
        if headers[n][0] == name:
            value = headers[n][1]
            return (value, n) if value is not None and form.fullmatch(value) else (None, -1)
    return None, -1


def _shorten(text: str, limit: int) -> str:
    return utf8(text)[:limit].decode("utf-8", "ignore")


def _original_headers(headers: Headers) -> tuple[HeaderList, HeaderList]:
    """Return the headers of the original record, and the headers that report an earlier truncation.

    A replayed dead letter still has the headers of Sluice. They are removed, and the last `ce_id` with them. A `ce_id`
    of the producer comes before it, and stays.
    """
    if not any(name == _REJECTED_AT for name, _ in headers):
        return [header for header in headers if header[0] not in _OURS], []
    last_id = max((n for n, (name, _) in enumerate(headers) if name == "ce_id"), default=-1)
    rest = [header for n, header in enumerate(headers) if header[0] not in _OURS and n != last_id]
    return [h for h in rest if not _is_note(h)], [h for h in rest if _is_note(h)]


def _is_note(header: tuple[str, bytes | None]) -> bool:
    """Return whether Sluice wrote this header to report a truncation, and not a producer under the same name."""
    name, value = header
    return name in _NOTES and value is not None and _NOTES[name].fullmatch(value) is not None


def _fit(record: Record, original: HeaderList, earlier: HeaderList, room: int) -> _Parts:
    """Truncate to `room` bytes: first the value, then a key that is too long for a source ID, then large headers."""
    # The notes of an earlier truncation describe the true original, so they win.
    notes = _notes(record) | dict(earlier)
    room -= _NOTES_BYTES
    key = record.key if record.key is None else record.key[: max(_KEPT_KEY, room - _headers_size(original))]
    if len(key or b"") < len(record.key or b""):
        notes.setdefault(_ORIGINAL_KEY_BYTES, b"%d" % len(record.key or b""))
    room -= len(key or b"")
    headers = _drop_largest(original, room)
    if dropped := len(original) - len(headers):
        notes[_DROPPED_HEADERS] = b"%d" % (dropped + int(notes.get(_DROPPED_HEADERS) or 0))
    room -= _headers_size(headers)
    value = record.value if record.value is None else record.value[:room]
    return key, value, headers, list(notes.items())


def _notes(record: Record) -> dict[str, bytes | None]:
    """Return the headers that report a truncation, and the size and hash of the original value."""
    return {
        _TRUNCATED: b"true",
        _ORIGINAL_BYTES: b"%d" % len(record.value or b""),
        _ORIGINAL_SHA256: hashlib.sha256(record.value or b"").hexdigest().encode(),
    }


def _drop_largest(headers: HeaderList, room: int) -> HeaderList:
    """Drop the largest headers until the rest fits; keep the order. There may be a million headers."""
    sizes = [_header_size(header) for header in headers]
    total, dropped = sum(sizes), set()
    for n in sorted(range(len(headers)), key=sizes.__getitem__, reverse=True):
        if total <= room:
            break
        dropped.add(n)
        total -= sizes[n]
    return [header for n, header in enumerate(headers) if n not in dropped]


def _header_size(header: tuple[str, bytes | None]) -> int:
    return len(utf8(header[0])) + len(header[1] or b"") + _HEADER_OVERHEAD


def _headers_size(headers: HeaderList) -> int:
    return sum(map(_header_size, headers))


def _size(key: bytes | None, value: bytes | None, headers: HeaderList) -> int:
    """Return an upper bound of the size of a record in a produce request, in bytes."""
    return len(key or b"") + len(value or b"") + _headers_size(headers) + _BATCH_OVERHEAD
