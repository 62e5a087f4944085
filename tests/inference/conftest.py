"""A worker with a fake detector that reads a number back from the pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from consumer.concurrency import Stop
from consumer.config import BatchingConfig, DecodeConfig
from consumer.inference import Worker
from consumer.types import Clock
from fake_detector import FakeDetector
from worker_runs import Start


@pytest.fixture
def detector() -> FakeDetector:
    return FakeDetector()


@pytest.fixture
def start(detector: FakeDetector) -> Iterator[Start]:
    """`start(max_batch_size=4, ...)`: a worker with `detector`, closed after the test."""
    workers: list[Worker] = []

    def make(clock: Clock = time.monotonic, **options: Any) -> Worker:
        worker = Worker(
            lambda: detector,
            BatchingConfig(**{"max_batch_size": 4, **options}),
            DecodeConfig(threads=2, workers="threads"),
            clock=clock,
            wall_clock_ms=lambda: round(time.time() * 1000),
        )
        workers.append(worker)
        assert worker.start(Stop(time.monotonic))
        return worker

    yield make
    detector.let_go()
    assert all(worker.close(10) for worker in workers)
