"""The worker: results come in order, each frame gets its own outcome, and every slot is freed.

The detector is a fake that reads a number back from the pixels, so that a slot of the wrong frame is detected.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from consumer.inference import BATCHES
from consumer.inference.batcher import WAITING_BATCHES
from consumer.types import BatchResult, DeviceMemory, Frame, Skipped
from fake_detector import NUMBERS, FakeDetector, number_of, numbered_jpeg
from made_frames import P0, P1, REJECTED, frame, offsets
from waiting import wait_until
from worker_runs import Start, collect, numbered, seen, sizes


class TestAlignment:
    @pytest.mark.parametrize(
        ("policy", "preferred"), [("dynamic", []), ("dynamic", [2, 5]), ("window", []), ("static", [3, 7])]
    )
    def test_each_frame_gets_the_result_of_its_own_pixels(
        self, start: Start, policy: str, preferred: list[int]
    ) -> None:
        """Catches a slot off by one after a rejected frame, divided batches, slots that are reused too early, and
        leaks."""
        worker = start(policy=policy, preferred_batch_sizes=preferred, max_batch_size=8, max_queue_delay_ms=1)
        chance = random.Random(f"{policy}{preferred}")
        results: list[BatchResult] = []
        sent: list[Frame] = []

        def feed() -> bool:
            """Admit bursts of every size, with frames that the decoder refuses or whose outcome is known before."""
            for _ in range(min(worker.room, chance.randrange(1, 13))):
                item = numbered(len(sent), source_id=chance.choice("abc"))[0]
                kind = chance.random()
                if kind < 0.1:
                    item = frame(len(sent), item.source_id, payload=b"not an image", at=time.monotonic())
                elif kind < 0.15:
                    item = frame(len(sent), item.source_id, payload=b"", verdict=REJECTED, at=time.monotonic())
                sent.append(item)
                worker.admit([item])
            results.extend(worker.results(0.0 if worker.room else 0.05))
            return len(sent) >= 1500

        wait_until(feed, 30, "all frames in the worker", interval=0)
        worker.drain(draining=True)
        results += collect(worker, len(sent) - sum(sizes(results)))

        done = [pair for item in results for pair in zip(item.batch.frames, item.outcomes, strict=True)]
        assert sorted(f.receipt.offset for f, _ in done) == list(range(len(sent)))
        for item, outcome in done:
            expected: int | str = item.receipt.offset % NUMBERS
            if item.verdict is not None:
                expected = "damaged"
            elif item.payload == b"not an image":
                expected = "unsupported_format"
            assert seen(outcome) == expected
        for source_id in "abc":
            order = [f.receipt.offset for f, _ in done if f.source_id == source_id]
            assert order == sorted(order)
        assert worker.in_flight == 0
        assert worker._assembly._ring.free == BATCHES

    def test_a_batch_of_rejected_frames_never_reaches_the_detector(self, start: Start, detector: FakeDetector) -> None:
        worker = start()
        stale = Skipped("stale", 1.0)
        worker.admit([frame(0, payload=b"?"), frame(1, payload=b"", verdict=REJECTED), frame(2, verdict=stale)])
        outcomes = [outcome for item in collect(worker, 3) for outcome in item.outcomes]
        assert [seen(outcome) for outcome in outcomes] == ["unsupported_format", "damaged", "stale"]
        assert detector.calls == []

    def test_a_frame_that_the_detector_refuses_is_rejected_alone(self, start: Start, detector: FakeDetector) -> None:
        """Catches a worker that fails the other frames after the frame was isolated."""

        def judge(numbers: list[int]) -> None:
            if 2 in numbers:
                raise RuntimeError("no")

        detector.judge = judge
        worker = start(policy="static")
        worker.admit([*numbered(0, 2), frame(9, payload=b"?"), numbered(2)[0]])
        (done,) = collect(worker, 4)
        assert [seen(outcome) for outcome in done.outcomes] == [0, 1, "unsupported_format", "engine"]


class TestBatching:
    def test_an_idle_detector_takes_a_single_frame_immediately(self, start: Start) -> None:
        """Catches a wait for more frames: the delay here is a minute."""
        worker = start(max_queue_delay_ms=60_000)
        worker.admit(numbered(0))
        (done,) = collect(worker, 1)
        assert done.batch.closed_by == "idle_engine"

    def test_a_busy_detector_lets_the_next_batch_grow(self, start: Start, detector: FakeDetector) -> None:
        """Catches small batches that are queued behind the detector."""
        detector.hold()
        worker = start(max_batch_size=8)
        worker.admit(numbered(0))
        wait_until(lambda: detector.calls, 10, "the engine to take the first frame")
        for n in range(1, 8):
            worker.admit(numbered(n))
        detector.let_go()
        assert sizes(collect(worker, 8)) == [1, 7]

    def test_the_next_batch_is_decoded_while_the_detector_is_busy(self, start: Start, detector: FakeDetector) -> None:
        """Catches decoding on the inference thread, or only after the batch was taken."""
        detector.hold()
        worker = start(max_batch_size=1)
        worker.admit(numbered(7))
        wait_until(lambda: detector.calls, 10, "the engine to take the first frame")
        worker.admit(numbered(1234))
        wait_until(lambda: 1234 in map(number_of, detector.memory), 10, "the second decoded")
        assert detector.calls == [[7]]

    def test_a_slow_frame_does_not_delay_the_frames_before_it(
        self, start: Start, detector: FakeDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches a detector that idles with three frames ready until a fourth is decoded."""
        detector.hold()
        worker = start(max_batch_size=8)
        assert worker._pool is not None
        decode, may = worker._pool._decoder.decode, threading.Event()

        def slow(payload: bytes, slot: Any) -> Any:
            assert payload != numbered_jpeg(4) or may.wait(30)
            return decode(payload, slot)

        monkeypatch.setattr(worker._pool._decoder, "decode", slow)
        worker.admit(numbered(0))
        wait_until(lambda: detector.calls, 10, "the engine to take the first frame")
        worker.admit(numbered(1, 3))
        opened = worker._assembly._open
        assert opened is not None
        wait_until(lambda: all(chunk.job.done() for chunk in opened.decoding), 10, "the three to be decoded")
        worker.admit(numbered(4))
        detector.let_go()
        assert sizes(collect(worker, 4)) == [1, 3]
        may.set()
        assert sizes(collect(worker, 1)) == [1]

    def test_frames_without_slots_wait_and_continue_in_order(self, start: Start, detector: FakeDetector) -> None:
        """Catches a lost wake-up, or dropped frames, when the ring buffer was full."""
        detector.hold()
        worker = start(max_batch_size=2)
        count = (BATCHES + WAITING_BATCHES) * 2
        worker.admit(numbered(0, count))
        assert worker.room == 0
        detector.let_go()
        done = collect(worker, count)
        assert [offset for item in done for offset in offsets(item.batch.frames)] == list(range(count))
        assert worker._assembly._ring.free == BATCHES

    def test_a_backlog_is_decoded_in_long_jobs_and_a_few_frames_by_all_threads(
        self, start: Start, detector: FakeDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches threads that idle while one decodes, and jobs of a few frames if hundreds of frames wait."""
        detector.hold()
        worker = start(max_batch_size=8, policy="static")
        assert worker._pool is not None
        submit, jobs = worker._pool.submit, []

        def counted(frames: Sequence[Frame], *rest: Any) -> Any:
            jobs.append(len(frames))
            return submit(frames, *rest)

        monkeypatch.setattr(worker._pool, "submit", counted)
        worker.admit(numbered(0, 16))
        assert jobs == [4, 4, 4, 4]  # the detector waits for the first batch, and no frame waits behind the second
        wait_until(lambda: detector.calls, 10, "the engine to take the first batch")
        worker.admit(numbered(16, 24))
        assert jobs[4:] == [8, 8]  # no slots are left for the last frames
        detector.let_go()
        assert sum(sizes(collect(worker, 40))) == 40

    def test_static_waits_for_a_full_batch(self, start: Start) -> None:
        worker = start(policy="static", max_queue_delay_ms=0)
        worker.admit(numbered(0, 3))
        assert worker.results(0.05) == []
        worker.admit(numbered(3))
        assert sizes(collect(worker, 4)) == [4]

    def test_window_closes_after_the_delay(self, start: Start) -> None:
        worker = start(policy="window", max_queue_delay_ms=30)
        worker.admit(numbered(0, 3))
        (done,) = collect(worker, 3)
        assert done.batch.closed_by == "delay"
        assert done.taken_at - done.batch.frames[0].received_at >= 0.03

    def test_draining_does_not_wait_for_more_frames(self, start: Start) -> None:
        """Catches a shutdown that waits for frames that will not come."""
        worker = start(policy="static")
        worker.admit(numbered(0, 3))
        assert worker.results(0.05) == []  # the inference thread waits, and must be woken
        worker.drain(draining=True)
        (done,) = collect(worker, 3)
        assert done.batch.closed_by == "drain"
        worker.drain(draining=False)
        worker.admit(numbered(3, 3))
        assert worker.results(0.05) == []

    def test_batches_are_as_small_as_the_model_needs(self, start: Start, detector: FakeDetector) -> None:
        detector.max_batch_size = 3
        worker = start(policy="static", max_batch_size=8, preferred_batch_sizes=[2, 8])
        worker.admit(numbered(0, 6))
        worker.drain(draining=True)
        assert max(sizes(collect(worker, 6))) <= 3
        assert detector.warmed_up_at == 3


class TestMeasuring:
    def test_decoding_is_counted_once_if_two_batches_share_a_job(self, start: Start, detector: FakeDetector) -> None:
        """Catches a decode share above the capacity of the threads: a job of eight frames that two batches wait for."""
        detector.hold()
        worker = start(max_batch_size=8, preferred_batch_sizes=[4, 8])
        spent = []
        assert worker._pool is not None
        decode = worker._pool._decode

        def timed(*job: Any) -> float:
            spent.append(decode(*job))
            return spent[-1]

        worker._pool._decode = timed  # type: ignore[method-assign]
        worker.admit(numbered(0, 4))
        wait_until(lambda: detector.calls, 10, "the first batch in the engine")
        worker.admit(numbered(4, 6))
        worker.drain(draining=True)
        detector.let_go()
        counted = sum(item.timings.decode_ms for item in collect(worker, 10))
        assert counted == pytest.approx(1000 * sum(spent))

    def test_the_memory_of_the_device_is_known_from_the_start(self, start: Start, detector: FakeDetector) -> None:
        detector.used = DeviceMemory(3, 10)
        assert start().device_memory == (3, 10)


class TestDiscard:
    def test_waiting_frames_are_dropped_and_the_rest_is_finished(self, start: Start, detector: FakeDetector) -> None:
        """Catches frames that are removed from slots in use, and a count that never returns to 0."""
        detector.hold()
        worker = start(max_batch_size=1)
        worker.admit(numbered(0, 5))
        worker.admit(numbered(5, 3, "cam-2", partition=P1))
        assert worker.in_flight == 8
        dropped = worker.discard([P0], overtaken=True)
        assert offsets(dropped) == [4]  # the others have slots
        detector.let_go()
        done = [offset for item in collect(worker, 7) for offset in offsets(item.batch.frames)]
        assert sorted(done) == [0, 1, 2, 3, 5, 6, 7]
        assert worker.in_flight == 0
