"""The worker if its detector or decoder fails, hangs, or does not start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from consumer.concurrency import Stop
from consumer.config import BatchingConfig, DecodeConfig
from consumer.errors import EngineError, ModelError
from consumer.inference import Worker
from consumer.types import Rejected
from fake_detector import FakeDetector, number_of, numbered_jpeg
from waiting import wait_until
from worker_runs import Start, collect, numbered, sizes


class TestEngineTrouble:
    def test_start_raises_what_loading_raised(self) -> None:
        def load() -> FakeDetector:
            raise ModelError("no such file")

        worker = _worker(load)
        with pytest.raises(ModelError, match="no such file"):
            worker.start(Stop(time.monotonic))
        assert worker.close(10)

    def test_start_raises_what_warming_up_raised_and_closes_the_detector(self) -> None:
        """Catches device memory that stays allocated while the process reports its error."""

        class Cold(FakeDetector):
            def warm_up(self, batch_size: int) -> None:
                raise RuntimeError("no kernel image")

        detector = Cold()
        worker = _worker(lambda: detector)
        with pytest.raises(EngineError, match="no kernel image"):
            worker.start(Stop(time.monotonic))
        assert worker.close(10)
        assert detector.closed == 1

    def test_start_returns_when_the_stop_event_is_set(self) -> None:
        """Catches a pod that cannot be stopped while it loads its model."""
        loading = threading.Event()
        stop = Stop(time.monotonic)
        stop.set()
        worker = _worker(lambda: (loading.wait(30), FakeDetector())[1])
        assert worker.start(stop) is False
        loading.set()
        assert worker.close(10)

    def test_results_that_were_ready_come_before_the_error_and_the_error_stays(
        self, start: Start, detector: FakeDetector
    ) -> None:
        """Catches finished work that is lost with the error, and a dead worker that appears idle."""

        def judge(numbers: list[int]) -> None:
            if numbers == [1]:
                raise EngineError("device lost")

        detector.judge = judge
        worker = start(max_batch_size=1)
        worker.admit(numbered(0, 2))
        worker._thread.join(10)
        assert sizes(worker.results()) == [1]
        for _ in range(2):
            with pytest.raises(EngineError, match="device lost"):
                worker.results(1.0)
        assert detector.closed == 1

    def test_a_decoder_without_memory_ends_the_worker_and_rejects_nothing(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches an exception in the decode pool that is never reported."""
        worker = start()

        def decode(*_: object) -> Rejected:
            raise MemoryError("host")

        assert worker._pool is not None
        monkeypatch.setattr(worker._pool._decoder, "decode", decode)
        worker.admit(numbered(0))
        with pytest.raises(EngineError, match="MemoryError"):
            worker.results(10)

    def test_slow_frames_are_not_a_hang_but_a_hung_frame_is(
        self, start: Start, detector: FakeDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches a watchdog that ends the process over a batch whose frames need seconds each. Also catches one that
        is satisfied as long as frames of other batches are decoded."""
        monkeypatch.setattr("consumer.inference.worker._LOOK_EVERY_S", 0.02)
        worker = start()
        may = threading.Semaphore(0)
        assert worker._pool is not None
        decode = worker._pool._decoder.decode

        def slow(payload: bytes, slot: Any) -> Any:
            assert payload not in {numbered_jpeg(0), numbered_jpeg(1)} or may.acquire(timeout=30)
            return decode(payload, slot)

        monkeypatch.setattr(worker._pool._decoder, "decode", slow)
        worker.admit(numbered(0, 4))  # two jobs of two frames: the first is slow
        taken_at = wait_until(lambda: worker.busy_since, 10, "the engine to wait for its frames")
        may.release()
        alive_at = wait_until(lambda: (worker.busy_since or 0) > taken_at and worker.busy_since, 10, "a sign of life")
        worker.admit(numbered(1234, 1))
        wait_until(lambda: 1234 in map(number_of, detector.memory), 10, "its decoding")
        assert worker.results(0.1) == []
        assert worker.busy_since == alive_at
        may.release()
        assert sum(sizes(collect(worker, 5))) == 5

    def test_close_returns_in_time_if_the_detector_hangs(self, start: Start, detector: FakeDetector) -> None:
        detector.hold()
        worker = start()
        worker.admit(numbered(0))
        wait_until(lambda: detector.calls, 10, "the engine to hang")
        assert worker.busy_since is not None
        before = time.monotonic()
        assert worker.close(0.05) is False
        assert time.monotonic() - before < 5

    def test_one_thread_builds_uses_and_closes_the_detector(self, start: Start, detector: FakeDetector) -> None:
        """Catches a CUDA context that is used or freed by a thread that did not create it."""
        worker = start()
        worker.admit(numbered(0))
        collect(worker, 1)
        assert worker.busy_since is None
        assert worker.close(10)
        assert detector.closed == 1
        assert detector.threads == {worker._thread.ident}


def _worker(load: Callable[[], FakeDetector]) -> Worker:
    return Worker(
        load,
        BatchingConfig(),
        DecodeConfig(threads=1, workers="threads"),
        clock=time.monotonic,
        wall_clock_ms=lambda: 0,
    )
