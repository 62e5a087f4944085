"""Defines the message type for output topics, and reads records of the Kafka client."""

from __future__ import annotations

from operator import methodcaller
from typing import Any, Final, NamedTuple

from consumer.types import Receipt, Record

# The original timestamp in Unix milliseconds. Dead letters and replayed frames have this header, because they are
# written with the current time.
ORIGINAL_TIMESTAMP: Final = "sluice-original-timestamp-ms"

HeaderList = list[tuple[str, bytes | None]]
# Not `message.headers()`. After that line has run a few times, CPython calls it on a fast path. The fast path does not
# check whether the client library has set an error besides its result. The error then appears at a later line, outside
# the `try`.
_headers_of: Final = methodcaller("headers")


class Message(NamedTuple):
    """A record to write, without its topic.

    Attributes:
        key: The key.
        value: The value.
        headers: (name, value) pairs, in order.
        timestamp_ms: Unix milliseconds. None: the client sets the time of writing.
    """

    key: bytes | None
    value: bytes | None
    headers: HeaderList
    timestamp_ms: int | None


def record_id(receipt: Receipt) -> str:
    """Return `<topic>/<partition>/<offset>`, the ID of all outcomes of a record. With it, readers can drop repeats."""
    (topic, partition), offset, _ = receipt
    return f"{topic}/{partition}/{offset}"


def read_record(message: Any) -> Record:
    """Convert a message of the Kafka client to a record. Reads its headers exactly once.

    If a header name is not UTF-8, `headers()` of confluent-kafka raises SystemError. A second call would return a list
    with a hole, which crashes the interpreter. Everyone who may write to a topic can send a name of this kind, so it
    must not end the consumer. The headers are lost then, and `Record.headers_lost` is true.

    Args:
        message: A `confluent_kafka.Message`.
    """
    kind, timestamp_ms = message.timestamp()
    headers, lost = (), False
    try:
        headers = tuple(_headers_of(message) or ())
    except (SystemError, UnicodeDecodeError):
        lost = True
    return Record(message.key(), message.value(), headers, timestamp_ms if kind else None, lost)


def utf8(text: str) -> bytes:
    """Encode as UTF-8; never fails. A lone surrogate, for example from a file name, becomes `?`."""
    return text.encode("utf-8", "replace")
