"""Parses input records into frames.

`schemas/README.md` has the rules. The code has the same order as the rules.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgpack

from consumer.messages.message import ORIGINAL_TIMESTAMP
from consumer.types import Frame, Receipt, Record, Rejected

MAX_SOURCE_ID: Final = 128  # characters
MAX_FRAME_ID: Final = 256  # characters
MAX_FIELDS: Final = 64  # of an envelope, with the unknown ones
MAX_TEXT_BYTES: Final = 4096  # of one field name or text of an envelope
MAX_TIMESTAMP_MS: Final = 2**53  # every JSON reader can represent integers up to this exactly

_HEADERS: Final = {
    name: name.replace("-", "_")
    for name in ("source-id", "frame-id", "captured-at-ms", "traceparent", ORIGINAL_TIMESTAMP)
}
_ORIGINAL: Final = _HEADERS[ORIGINAL_TIMESTAMP]
_MSGPACK_TYPES: Final = frozenset((b"application/msgpack", b"application/vnd.msgpack", b"application/x-msgpack"))
_DIGITS: Final = re.compile(rb"[0-9]{1,16}")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# The fields of an envelope, with the kinds of msgpack values that each may have.
_FIELDS: Final = {
    "source_id": ("text",),
    "frame_id": ("text", "an integer"),
    "captured_at_ms": ("an integer",),
    "content_type": ("text",),
    "traceparent": ("text",),
    "data": ("binary",),
}
_SPELLINGS: Final = {spelling: name for name in _FIELDS for spelling in (name, name.replace("_", "-"))}


def _kind_of(first: int) -> str:
    """Return the kind of a msgpack value, which its first byte determines."""
    if first <= 0x7F or first >= 0xE0 or 0xCC <= first <= 0xD3:
        return "an integer"
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        return "a map"
    if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        return "an array"
    if 0xA0 <= first <= 0xBF or 0xD9 <= first <= 0xDB:
        return "text"
    names = {0xC0: "nil", 0xC1: "invalid", 0xC2: "a boolean", 0xC3: "a boolean", 0xCA: "a float", 0xCB: "a float"}
    return names.get(first, "binary" if 0xC4 <= first <= 0xC6 else "an extension")


_KIND: Final = tuple(_kind_of(first) for first in range(256))


class _Unfit(Exception):  # noqa: N818 - not an error: `parse_frame` turns it into an outcome
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.verdict = Rejected("parse", reason, detail)


def parse_frame(record: Record, receipt: Receipt, received_at: float) -> Frame:
    """Parse one input record. Never raises.

    Args:
        record: The input record.
        receipt: Its input position and assignment.
        received_at: When the Kafka consumer returned it, in seconds on the injected clock.

    Returns:
        The frame. If the record is invalid, `Frame.verdict` is a `Rejected`, and the frame takes its place in a batch
        like any other.
    """
    given: dict[str, Any] = {"source_id": record.key}
    content_type = _read_headers(record, given)
    outer_id = given["source_id"]
    frame_id, captured_at_ms, traceparent, payload, verdict = (
        _default_id(receipt),
        _stamp(record, given),
        None,
        b"",
        None,
    )
    try:
        payload = _payload(record, content_type, given)
        frame_id = _frame_id(given.get("frame_id"), frame_id)
        captured_at_ms = _captured_at(given.get("captured_at_ms"), captured_at_ms)
        traceparent = _trace(given.get("traceparent"))
        source_id = _source_id(given["source_id"])
    except _Unfit as unfit:
        payload, verdict = b"", unfit.verdict
        source_id = _best_source_id(given["source_id"], outer_id, record.key)
    return Frame(
        source_id=source_id,
        frame_id=frame_id,
        captured_at_ms=captured_at_ms,
        payload=payload,
        received_at=received_at,
        receipt=receipt,
        record=record,
        traceparent=traceparent,
        verdict=verdict,
        copied_bytes=0 if payload is record.value else len(payload),
    )


def encode_envelope(
    data: bytes,
    *,
    source_id: str,
    frame_id: str | int | None = None,
    captured_at_ms: int | None = None,
    content_type: str | None = None,
    traceparent: str | None = None,
) -> bytes:
    """Encode a frame as one msgpack map, for producers that cannot set headers. Fields that are None are omitted.

    Args:
        data: The encoded image.
        source_id: The ID of the source; see `is_source_id`.
        frame_id: The ID of the frame.
        captured_at_ms: The capture time, as Unix time in milliseconds.
        content_type: The media type of the image.
        traceparent: The W3C trace context.
    """
    fields = {
        "source_id": source_id,
        "frame_id": frame_id,
        "captured_at_ms": captured_at_ms,
        "content_type": content_type,
        "traceparent": traceparent,
        "data": data,
    }
    packed: bytes = msgpack.packb({name: value for name, value in fields.items() if value is not None})
    return packed


def is_source_id(text: str) -> bool:
    """Return whether this is a valid source ID: 1 to 128 printable characters without a space at either end."""
    return _text(text, MAX_SOURCE_ID) is not None


def _read_headers(record: Record, given: dict[str, Any]) -> bytes | None:
    """Store the known headers in `given`, and return the content type.

    The last header of a name wins. Headers without a value are ignored.
    """
    content_type = None
    for name, value in record.headers:
        if value is None:
            continue
        if name in _HEADERS:
            given[_HEADERS[name]] = value
        elif name == "content-type":
            content_type = value
    return content_type


def _payload(record: Record, content_type: bytes | None, given: dict[str, Any]) -> bytes:
    """Return the encoded image. The fields of an envelope are stored in `given`; they override headers and key."""
    if record.headers_lost:  # the source ID may have been one of them
        raise _Unfit("unreadable_headers", "a header name of it is not UTF-8, so none of its headers can be read")
    value = record.value
    if not value:
        raise _Unfit("empty", "the record has no value")
    if not _is_envelope(value, content_type):
        return value
    _read_envelope(value, given)
    data: bytes | None = given.get("data")
    if data is None:
        raise _Unfit("bad_envelope", "the envelope has no field data")
    if not data:
        raise _Unfit("empty", "the field data of the envelope has no bytes")
    return data


def _is_envelope(value: bytes, content_type: bytes | None) -> bool:
    if content_type is not None and content_type.partition(b";")[0].strip().lower() in _MSGPACK_TYPES:
        return True
    # A PNG begins like a msgpack map of nine fields, so the complete image signatures are checked first.
    if value.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (value[:4] == b"RIFF" and value[8:12] == b"WEBP"):
        return False
    return _KIND[value[0]] == "a map"


def _read_envelope(value: bytes, given: dict[str, Any]) -> None:
    """Read the known fields one by one, and skip the others without building their values.

    If the values were built, a message of 16 MB with empty maps could cost a gigabyte. Skipping them costs neither
    memory nor time.
    """
    if _KIND[value[0]] != "a map":
        raise _Unfit("bad_envelope", f"content-type says msgpack; the value is {_KIND[value[0]]}, not a map")
    unpacker = msgpack.Unpacker(
        max_buffer_size=len(value),
        max_str_len=MAX_TEXT_BYTES,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
        unicode_errors="surrogateescape",  # text that is not UTF-8 then fails as not printable, with its own reason
    )
    unpacker.feed(value)
    try:
        count = unpacker.read_map_header()
        if count > MAX_FIELDS:
            raise _Unfit("bad_envelope", f"the envelope claims {count} fields; the limit is {MAX_FIELDS}")
        seen: set[str] = set()
        for _ in range(count):
            _read_field(value, unpacker, given, seen)
        trailing = len(value) - unpacker.tell()
    except msgpack.OutOfData:
        raise _Unfit("bad_envelope", f"the envelope ends too early, after {len(value)} bytes") from None
    except (msgpack.UnpackException, ValueError) as error:
        # The messages of these errors name limits and positions, never content. Some have no text.
        detail = f"the envelope is not valid msgpack: {str(error) or type(error).__name__}"
        raise _Unfit("bad_envelope", detail) from None
    if trailing:
        raise _Unfit("bad_envelope", f"{trailing} bytes follow the envelope")


def _read_field(value: bytes, unpacker: Any, given: dict[str, Any], seen: set[str]) -> None:
    if _next_kind(value, unpacker) != "text":
        raise _Unfit("bad_envelope", f"a field name of the envelope is {_next_kind(value, unpacker)}, not text")
    name = _SPELLINGS.get(unpacker.unpack())
    if name is None:
        unpacker.skip()
        return
    if name in seen:
        raise _Unfit("bad_envelope", f"the field {name} occurs twice in the envelope")
    seen.add(name)
    kind = _next_kind(value, unpacker)
    if kind in _FIELDS[name]:
        given[name] = unpacker.unpack()
        return
    unpacker.skip()
    if kind != "nil" and name != "traceparent":  # many serializers write nil for an unset field
        raise _Unfit(
            "bad_envelope", f"the field {name} of the envelope must be {' or '.join(_FIELDS[name])}, is {kind}"
        )


def _next_kind(value: bytes, unpacker: Any) -> str:
    position: int = unpacker.tell()
    if position >= len(value):
        raise msgpack.OutOfData
    return _KIND[value[position]]


def _text(value: bytes | str | None, limit: int) -> str | None:
    """Return the text if it is short enough and safe to print, to log and to use as a label; else None."""
    if isinstance(value, bytes):
        if len(value) > 4 * limit:
            return None
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if not value or len(value) > limit or not value.isprintable() or value[0] == " " or value[-1] == " ":
        return None
    return value


def _source_id(value: bytes | str | None) -> str:
    text = _text(value, MAX_SOURCE_ID)
    if text is not None:
        return text
    if not value:
        raise _Unfit("bad_source_id", "the frame has no source ID: set the record key or the header source-id")
    detail = f"the source ID must be 1 to {MAX_SOURCE_ID} printable UTF-8 characters without a space at either end"
    raise _Unfit(
        "bad_source_id", f"{detail}; it has {len(value)} {'bytes' if isinstance(value, bytes) else 'characters'}"
    )


def _best_source_id(*candidates: bytes | str | None) -> str:
    return next((text for value in candidates if (text := _text(value, MAX_SOURCE_ID)) is not None), "")


def _default_id(receipt: Receipt) -> str:
    return f"{receipt.partition.partition}-{receipt.offset}"


def _frame_id(value: bytes | str | int | None, default: str) -> str:
    if value is None:
        return default
    text = str(value) if isinstance(value, int) else _text(value, MAX_FRAME_ID)
    if text is None:
        limit = f"1 to {MAX_FRAME_ID} printable UTF-8 characters without a space at either end, or an integer"
        raise _Unfit("bad_envelope", f"the frame ID must be {limit}")
    return text


def _stamp(record: Record, given: dict[str, Any]) -> int | None:
    """Return the timestamp of the record, or of the original record if this one was replayed."""
    stamp = record.timestamp_ms
    if (first := given.get(_ORIGINAL)) is not None and _DIGITS.fullmatch(first):
        stamp = int(first)
    return stamp if stamp is not None and 0 <= stamp <= MAX_TIMESTAMP_MS else None


def _captured_at(value: bytes | int | None, default: int | None) -> int | None:
    if value is None:
        return default
    if isinstance(value, bytes):
        value = int(value) if _DIGITS.fullmatch(value) else -1
    if not 0 <= value <= MAX_TIMESTAMP_MS:
        raise _Unfit(
            "bad_envelope", f"captured_at_ms must be Unix milliseconds, an integer from 0 to {MAX_TIMESTAMP_MS}"
        )
    return value


def _trace(value: bytes | str | None) -> str | None:
    """Return the trace context, or None if it is malformed, as the W3C requires: tracing must not cost a frame."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return value if value and _TRACEPARENT.fullmatch(value) else None
