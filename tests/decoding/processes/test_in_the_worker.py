"""Decoding processes in the worker: batches continue, outcomes stay with their frames, faults end the process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumer.config import BatchingConfig, DecodeConfig
from consumer.decoding.processes import process
from consumer.errors import EngineError
from consumer.inference import Worker
from consumer.types import BatchResult, Detected, Rejected
from fake_detector import FakeDetector, numbered_jpeg
from made_frames import frame
from waiting import wait_until

CHILD = Path(__file__).resolve().parents[2] / "support" / "hostile_child.py"


@pytest.fixture
def replaced() -> list[int]:
    return []


@pytest.fixture(params=["none", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    """`decode.isolation`. With `none`, the processes write into the ring buffer."""
    return str(request.param)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, replaced: list[int], isolation: Any) -> Iterator[Worker]:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, str(CHILD)))
    made = Worker(
        FakeDetector,
        BatchingConfig(max_batch_size=8),
        DecodeConfig(threads=2, workers="processes", isolation=isolation, timeout_s=1, memory_limit_bytes=128 * 2**20),
        clock=time.monotonic,
        wall_clock_ms=lambda: 0,
        on_decoder_replaced=lambda: replaced.append(1),
    )
    assert made.start(threading.Event())
    yield made
    made.close(10)
    assert not _decoders()


def _decoders() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if str(CHILD) in child.cmdline()]


def test_a_frame_that_kills_its_decoder_is_rejected_alone(worker: Worker, replaced: list[int], isolation: str) -> None:
    """Catches a chunk that is lost with the process, a slot that another frame gets, and a detector that stops."""
    bad = {2: b"ABORT", 7: b"SEGV"} | ({11: b"HANG", 12: b"HOARD"} if isolation == "process" else {})
    worker.admit([frame(n, payload=bad.get(n, numbered_jpeg(n)), at=time.monotonic()) for n in range(20)])
    results: list[BatchResult] = []

    def all_out() -> bool:
        results.extend(worker.results(0.05))
        return sum(len(result.batch.frames) for result in results) == 20

    wait_until(all_out, 40, "20 frames out of the worker", interval=0)
    for result in results:
        for item, outcome in zip(result.batch.frames, result.outcomes, strict=True):
            number = item.receipt.offset
            if number in bad:
                assert isinstance(outcome, Rejected)
                assert outcome.reason.startswith("decoder_")
            else:
                assert isinstance(outcome, Detected)
                assert outcome.detections.class_ids[0] == number
    # Twice for each frame, and once more if a whole chunk was lost with the process.
    assert 2 * len(bad) <= len(replaced) <= (2 if isolation == "process" else 3) * len(bad)
    assert len(_decoders()) == 2


def test_decoders_that_cannot_be_replaced_reject_no_frame(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a broken machine that sends every frame to the dead letters as damaged."""
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    worker.admit([frame(0, payload=b"ABORT", at=time.monotonic())])
    with pytest.raises(EngineError, match="a decoding process cannot start"):
        worker.results(60)
