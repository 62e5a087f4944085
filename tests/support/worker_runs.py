"""Frames for a worker around a `FakeDetector`, and what comes out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from consumer.inference import Worker
from consumer.types import BatchResult, Detected, Frame, Outcome
from fake_detector import NUMBERS, numbered_jpeg
from made_frames import frame
from waiting import wait_until

Start = Callable[..., Worker]


def numbered(first: int, count: int = 1, source_id: str = "cam-1", **fields: Any) -> list[Frame]:
    """Frames whose picture shows their offset."""
    return [
        frame(n, source_id, payload=numbered_jpeg(n % NUMBERS), at=time.monotonic(), **fields)
        for n in range(first, first + count)
    ]


def seen(outcome: Outcome) -> int | str:
    if isinstance(outcome, Detected):
        return int(outcome.detections.class_ids[0])
    return outcome.reason


def collect(worker: Worker, frames: int) -> list[BatchResult]:
    """Results until so many frames are out."""
    results: list[BatchResult] = []

    def enough() -> bool:
        results.extend(worker.results(0.05))
        return sum(len(item.batch.frames) for item in results) >= frames

    wait_until(enough, 20, f"{frames} frames out of the worker", interval=0)
    assert sum(len(item.batch.frames) for item in results) == frames
    return results


def sizes(results: Sequence[BatchResult]) -> list[int]:
    return [len(item.batch.frames) for item in results]
