"""Records and frames that the wire tests share."""

from __future__ import annotations

from consumer import messages as wire
from consumer.types import REASONS, Frame, Headers, Receipt, Record, Rejected, TopicPartition

RECEIPT = Receipt(TopicPartition("frames", 3), 42, 1)
JPEG = b"\xff\xd8\xff\xe0" + b"image" * 20
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def parse(
    value: bytes | None = JPEG, *, key: bytes | None = b"cam-1", headers: Headers = (), at: int | None = 7
) -> Frame:
    return wire.parse_frame(Record(key, value, headers, at), RECEIPT, 1.25)


def reason(frame: Frame) -> str | None:
    return frame.verdict.reason if isinstance(frame.verdict, Rejected) else None


def check_frame(record: Record) -> Frame:
    """Parse a record and assert what holds for every frame, whatever the bytes were."""
    frame = wire.parse_frame(record, RECEIPT, 0.0)
    assert frame.record is record
    if frame.verdict is None:
        assert frame.payload
    else:
        assert isinstance(frame.verdict, Rejected)
        assert frame.payload == b""
        assert frame.verdict.stage == "parse"
        assert frame.verdict.reason in REASONS
        assert frame.verdict.detail.isprintable()
        assert len(frame.verdict.detail) < 300
    assert len(frame.source_id) <= 128
    assert frame.source_id.isprintable()
    assert frame.source_id or frame.verdict
    assert frame.frame_id.isprintable()
    assert 1 <= len(frame.frame_id) <= 256
    assert frame.captured_at_ms is None or 0 <= frame.captured_at_ms <= 2**53
    return frame
