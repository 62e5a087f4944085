"""Records and frames that the wire tests share."""

from __future__ import annotations

from consumer import wire
from consumer.types import Frame, Headers, Receipt, Record, Rejected, TopicPartition

RECEIPT = Receipt(TopicPartition("frames", 3), 42, 1)
JPEG = b"\xff\xd8\xff\xe0" + b"image" * 20
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def parse(
    value: bytes | None = JPEG, *, key: bytes | None = b"cam-1", headers: Headers = (), at: int | None = 7
) -> Frame:
    return wire.parse_frame(Record(key, value, headers, at), RECEIPT, 1.25)


def reason(frame: Frame) -> str | None:
    return frame.verdict.reason if isinstance(frame.verdict, Rejected) else None
