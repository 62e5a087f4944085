"""What goes to a topic, and the name of what came from one."""

from __future__ import annotations

from typing import NamedTuple

from consumer.types import Receipt

HeaderList = list[tuple[str, bytes | None]]


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


def utf8(text: str) -> bytes:
    """UTF-8 that always succeeds: what has no encoding (half a surrogate pair, from a file name) becomes `?`."""
    return text.encode("utf-8", "replace")
