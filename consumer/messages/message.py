"""What goes to a topic, and the name of what came from one."""

from __future__ import annotations

from operator import methodcaller
from typing import Any, Final, NamedTuple

from consumer.types import Receipt, Record

# Unix milliseconds. Dead letters and replayed frames are written with the present time and keep the first one in this.
ORIGINAL_TIMESTAMP: Final = "sluice-original-timestamp-ms"

HeaderList = list[tuple[str, bytes | None]]
# Not `message.headers()`: once that line has run a few times, CPython's fast call no longer checks whether the client
# library reports an error beside its result, and the error appears at a later line, outside of the `try`.
_headers_of: Final = methodcaller("headers")


class Message(NamedTuple):
    """A record to write, without its topic. `timestamp_ms` None: the client puts the time of writing."""

    key: bytes | None
    value: bytes | None
    headers: HeaderList
    timestamp_ms: int | None


def record_id(receipt: Receipt) -> str:
    """`<topic>/<partition>/<offset>`: one name for all outcomes of one input record, so repeats can be dropped."""
    (topic, partition), offset, _ = receipt
    return f"{topic}/{partition}/{offset}"


def read_record(message: Any) -> Record:
    """A message of the client library as a record, with its headers read once.

    A header name that is not UTF-8 makes `headers()` of confluent-kafka raise SystemError; asked again it would hand
    out a list with a hole that crashes the interpreter. Anyone who may write to a topic can send such a name, so it
    must not end a consumer: the headers are lost, and the record says so.
    """
    kind, timestamp_ms = message.timestamp()
    headers, lost = (), False
    try:
        headers = tuple(_headers_of(message) or ())
    except (SystemError, UnicodeDecodeError):
        lost = True
    return Record(message.key(), message.value(), headers, timestamp_ms if kind else None, lost)


def utf8(text: str) -> bytes:
    """UTF-8 that always succeeds: what has no encoding (half a surrogate pair, from a file name) becomes `?`."""
    return text.encode("utf-8", "replace")
