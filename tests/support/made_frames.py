"""Frames, results and clocks for the tests of the core: nothing here knows Kafka, and no clock here moves by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from consumer.types import (
    Batch,
    BatchResult,
    Detected,
    Detections,
    Frame,
    Outcome,
    Receipt,
    Record,
    Rejected,
    Skipped,
    StageTimings,
    TopicPartition,
)

P0, P1, P2, P3 = (TopicPartition("frames", number) for number in range(4))
REJECTED = Rejected("decode", "damaged", "the JPEG ends too early")


class VirtualClock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def unix_ms(self) -> int:
        """The same time as Unix milliseconds."""
        return round(self.now * 1000)


def frame(
    offset: int = 0,
    source_id: str = "cam-1",
    partition: TopicPartition = P0,
    epoch: int = 1,
    *,
    payload: bytes = b"x" * 10,
    at: float = 1000.0,
    captured_at_ms: int | None = None,
    verdict: Rejected | Skipped | None = None,
) -> Frame:
    return Frame(
        source_id=source_id,
        frame_id=str(offset),
        captured_at_ms=captured_at_ms,
        payload=payload,
        received_at=at,
        receipt=Receipt(partition, offset, epoch),
        record=Record(source_id.encode(), payload, (), None),
        verdict=verdict,
    )


def detected() -> Detected:
    return Detected(Detections.none(), 64, 48)


def seen_on(item: Frame) -> Detected:
    """What an engine sees on this frame and on no other: the size and the box name the frame's partition and offset."""
    partition, offset, _ = item.receipt
    width, height = 64 + partition.partition, 48 + offset
    boxes = np.array([[0, 0, width, height]], np.float32)
    return Detected(Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int32)), width, height)


def check_belongs(item: Frame, outcome: Outcome, expected: Outcome) -> None:
    """The outcome of the frame is of the expected kind, and says what `expected` says. Raises AssertionError."""
    said = f"{item.receipt.partition}: {item.receipt.offset} is {outcome}, not {expected}"
    if not (isinstance(outcome, Detected) and isinstance(expected, Detected)):
        assert outcome == expected, said
        return
    assert outcome[1:] == expected[1:], said
    assert np.array_equal(outcome.detections.boxes, expected.detections.boxes), said


def result(frames: Iterable[Frame], outcomes: Sequence[Outcome] | None = None, taken_at: float = 1000.0) -> BatchResult:
    """What the worker says of these frames; by default that nothing was seen on them."""
    batch = Batch(tuple(frames), "size")
    return BatchResult(batch, outcomes or [detected() for _ in batch.frames], StageTimings(0.0, 1.0), taken_at)


def offsets(frames: Iterable[Frame]) -> list[int]:
    return [item.receipt.offset for item in frames]
