"""The worker: batches in, results out, in order, each frame with its own outcome, and every buffer comes back.

The engine is a fake that reads a number back from the pixels, so that a slot given to the wrong frame shows.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from consumer.batcher import WAITING_BATCHES
from consumer.config import BatchingConfig, DecodeConfig
from consumer.deadline import Stop
from consumer.errors import EngineError, ModelError
from consumer.types import BatchResult, Clock, Detected, DeviceMemory, Frame, Outcome, Rejected, Skipped
from consumer.worker import BUFFERS, Worker
from consumer.worker.assembly import Work
from fake_detector import NUMBERS, FakeDetector, number_of, numbered_jpeg
from made_frames import P0, P1, REJECTED, VirtualClock, frame, offsets
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


@pytest.fixture
def detector() -> FakeDetector:
    return FakeDetector()


@pytest.fixture
def start(detector: FakeDetector) -> Iterator[Start]:
    """`start(max_batch_size=4, ...)`: a worker around `detector` that is closed after the test."""
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


class TestAlignment:
    @pytest.mark.parametrize(
        ("policy", "preferred"), [("dynamic", []), ("dynamic", [2, 5]), ("window", []), ("static", [3, 7])]
    )
    def test_each_frame_gets_what_was_seen_in_its_own_pixels(
        self, start: Start, policy: str, preferred: list[int]
    ) -> None:
        """Catches a slot off by one after a rejected frame, a split buffer, or a buffer used too early; and leaks."""
        worker = start(policy=policy, preferred_batch_sizes=preferred, max_batch_size=8, max_queue_delay_ms=1)
        chance = random.Random(f"{policy}{preferred}")
        results: list[BatchResult] = []
        sent: list[Frame] = []

        def feed() -> bool:
            """A burst of every size, with frames in it that the decoder refuses or that have their verdict."""
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
        assert worker._assembly._ring.free == BUFFERS

    def test_a_batch_of_rejected_frames_never_reaches_the_engine(self, start: Start, detector: FakeDetector) -> None:
        worker = start()
        stale = Skipped("stale", 1.0)
        worker.admit([frame(0, payload=b"?"), frame(1, payload=b"", verdict=REJECTED), frame(2, verdict=stale)])
        outcomes = [outcome for item in collect(worker, 3) for outcome in item.outcomes]
        assert [seen(outcome) for outcome in outcomes] == ["unsupported_format", "damaged", "stale"]
        assert detector.calls == []

    def test_a_frame_that_the_engine_refuses_is_rejected_alone(self, start: Start, detector: FakeDetector) -> None:
        """Catches failing the neighbours in the worker after the policy had isolated the frame."""

        def judge(numbers: list[int]) -> None:
            if 2 in numbers:
                raise RuntimeError("no")

        detector.judge = judge
        worker = start(policy="static")
        worker.admit([*numbered(0, 2), frame(9, payload=b"?"), numbered(2)[0]])
        (done,) = collect(worker, 4)
        assert [seen(outcome) for outcome in done.outcomes] == [0, 1, "unsupported_format", "engine"]


class TestBatching:
    def test_an_idle_engine_takes_one_frame_at_once(self, start: Start) -> None:
        """Catches waiting for company: the delay here is a minute."""
        worker = start(max_queue_delay_ms=60_000)
        worker.admit(numbered(0))
        (done,) = collect(worker, 1)
        assert done.batch.closed_by == "idle_engine"

    def test_a_busy_engine_lets_the_next_batch_grow(self, start: Start, detector: FakeDetector) -> None:
        """Catches handing over small batches that queue up behind the engine."""
        detector.hold()
        worker = start(max_batch_size=8)
        worker.admit(numbered(0))
        wait_until(lambda: detector.calls, 10, "the engine to take the first frame")
        for n in range(1, 8):
            worker.admit(numbered(n))
        detector.let_go()
        assert sizes(collect(worker, 8)) == [1, 7]

    def test_the_next_batch_is_decoded_while_one_is_in_the_engine(self, start: Start, detector: FakeDetector) -> None:
        """Catches decoding on the inference thread, or only once the batch was taken."""
        detector.hold()
        worker = start(max_batch_size=1)
        worker.admit(numbered(7))
        wait_until(lambda: detector.calls, 10, "the engine to take the first frame")
        worker.admit(numbered(1234))
        wait_until(
            lambda: 1234 in [number_of(slot) for buffer in detector.memory for slot in buffer], 10, "the second decoded"
        )
        assert detector.calls == [[7]]

    def test_frames_wait_without_a_buffer_and_go_on_in_order(self, start: Start, detector: FakeDetector) -> None:
        """Catches a lost wake-up, or frames dropped, when the ring was empty."""
        detector.hold()
        worker = start(max_batch_size=2)
        count = (BUFFERS + WAITING_BATCHES) * 2
        worker.admit(numbered(0, count))
        assert worker.room == 0
        detector.let_go()
        done = collect(worker, count)
        assert [offset for item in done for offset in offsets(item.batch.frames)] == list(range(count))
        assert worker._assembly._ring.free == BUFFERS

    def test_a_backlog_is_decoded_in_long_jobs_and_a_few_frames_by_all_threads(
        self, start: Start, detector: FakeDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches threads that idle while one decodes, and jobs of a few frames where there are hundreds."""
        detector.hold()
        worker = start(max_batch_size=8, policy="static")
        assert worker._pool is not None
        submit, jobs = worker._pool.submit, []

        def counted(frames: Sequence[Frame], *rest: Any) -> Any:
            jobs.append(len(frames))
            return submit(frames, *rest)

        monkeypatch.setattr(worker._pool, "submit", counted)
        worker.admit(numbered(0, 16))
        assert jobs == [4, 4, 4, 4]  # the engine waits for the first, and nothing waits behind the second
        wait_until(lambda: detector.calls, 10, "the engine to take the first batch")
        worker.admit(numbered(16, 24))
        assert jobs[4:] == [8, 8]  # and no buffer is left for the last
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

    def test_draining_waits_for_nobody(self, start: Start) -> None:
        """Catches a shutdown that waits for frames that will not come."""
        worker = start(policy="static")
        worker.admit(numbered(0, 3))
        assert worker.results(0.05) == []  # the engine waits: it must be woken
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


class Stepwise:
    """Batches of one frame, each of which the engine ends only when it is told, or when the one before is taken out.

    `clock` moves only where a test moves it; `taken_out_s` is how much each taking out does.
    """

    def __init__(self, start: Start, detector: FakeDetector, *, taken_out_s: float = 0.0) -> None:
        self.clock = VirtualClock()
        self.may_end = [threading.Event() for _ in range(6)]
        detector.judge = lambda numbers: self._end(numbers[0])
        self.engine_s = 0.0  # by the clock, of each batch
        self.worker = start(clock=self.clock, max_batch_size=1)
        release = self.worker._assembly.release
        self.last_to_follow = len(self.may_end) - 1

        def taken_out(work: Work) -> None:
            release(work)
            self.clock.advance(taken_out_s)
            following = work.batch.frames[0].receipt.offset + 1
            if following <= self.last_to_follow:
                self.may_end[following].set()

        self.worker._assembly.release = taken_out  # type: ignore[method-assign]

    def gathered(self, gather_s: float) -> list[int]:
        """The sizes of batches that come together; the wait must end because of what is known, not of a minute."""
        began = time.monotonic()
        results = self.worker.results(10, gather_s)
        assert time.monotonic() - began < 30
        return sizes(results)

    def _end(self, number: int) -> None:
        assert self.may_end[number].wait(30)
        self.clock.advance(self.engine_s)


class TestGathering:
    """Outcomes of several batches are written together, where others are on their way."""

    def test_up_to_four_batches_are_waited_for_and_each_gives_its_buffer_back_as_it_comes(
        self, start: Start, detector: FakeDetector
    ) -> None:
        """Catches outcomes that are written batch by batch, and an engine that waits for the buffers of these."""
        made = Stepwise(start, detector)
        made.last_to_follow = 3
        made.worker.admit(numbered(0, 6))
        made.may_end[0].set()
        assert made.gathered(60) == [1, 1, 1, 1]
        made.may_end[4].set()
        made.may_end[5].set()
        assert sum(sizes(collect(made.worker, 2))) == 2

    def test_the_time_counts_from_the_first(self, start: Start, detector: FakeDetector) -> None:
        """Catches a wait that begins anew with each batch."""
        made = Stepwise(start, detector, taken_out_s=40.0)  # so long the second was in the engine
        made.worker.admit(numbered(0, 3))
        made.last_to_follow = 1
        made.may_end[0].set()
        wait_until(lambda: len(detector.calls) == 2, 10, "the second batch in the engine")
        assert made.gathered(100) == [1, 1]
        made.may_end[2].set()
        assert sizes(collect(made.worker, 1)) == [1]

    def test_what_is_not_on_its_way_is_not_waited_for(self, start: Start, detector: FakeDetector) -> None:
        """Catches outcomes that are held for a batch that nobody has."""
        made = Stepwise(start, detector)
        made.worker.admit(numbered(0))
        made.may_end[0].set()
        wait_until(lambda: detector.calls and made.worker.busy_since is None, 10, "the engine to be idle")
        assert made.gathered(60) == [1]

    def test_nor_what_takes_the_engine_longer_than_is_left(self, start: Start, detector: FakeDetector) -> None:
        """Catches a wait in vain in every turn with a slow engine."""
        made = Stepwise(start, detector)
        made.engine_s, made.last_to_follow = 60.0, 0
        made.worker.admit(numbered(0, 2))
        made.may_end[0].set()
        assert made.gathered(60) == [1]
        made.may_end[1].set()
        assert sizes(collect(made.worker, 1)) == [1]

    def test_a_wait_ends_when_its_time_is_over(self, start: Start, detector: FakeDetector) -> None:
        made = Stepwise(start, detector)
        made.last_to_follow = 0
        made.worker.admit(numbered(0, 2))
        made.may_end[0].set()
        assert made.gathered(0.1) == [1]
        made.may_end[1].set()
        assert sizes(collect(made.worker, 1)) == [1]


class TestMeasuring:
    def test_decoding_is_counted_once_where_two_batches_share_a_job(self, start: Start, detector: FakeDetector) -> None:
        """Catches a decode share above what the threads can do: a job of eight frames that two batches wait for."""
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
    def test_drops_what_was_not_submitted_and_finishes_the_rest(self, start: Start, detector: FakeDetector) -> None:
        """Catches pulling frames out of a buffer that is in use, and a count that never returns to 0."""
        detector.hold()
        worker = start(max_batch_size=1)
        worker.admit(numbered(0, 5))
        worker.admit(numbered(5, 3, "cam-2", partition=P1))
        assert worker.in_flight == 8
        dropped = worker.discard([P0], overtaken=True)
        assert offsets(dropped) == [4]  # the others have a buffer
        detector.let_go()
        done = [offset for item in collect(worker, 7) for offset in offsets(item.batch.frames)]
        assert sorted(done) == [0, 1, 2, 3, 5, 6, 7]
        assert worker.in_flight == 0


class TestEngineTrouble:
    def test_start_raises_what_loading_raised(self) -> None:
        def load() -> FakeDetector:
            raise ModelError("no such file")

        worker = _worker(load)
        with pytest.raises(ModelError, match="no such file"):
            worker.start(Stop(time.monotonic))
        assert worker.close(10)

    def test_start_raises_what_warming_up_raised_and_closes_the_detector(self) -> None:
        """Catches device memory that stays taken while the process reports its error."""

        class Cold(FakeDetector):
            def warm_up(self, batch_size: int) -> None:
                raise RuntimeError("no kernel image")

        detector = Cold()
        worker = _worker(lambda: detector)
        with pytest.raises(EngineError, match="no kernel image"):
            worker.start(Stop(time.monotonic))
        assert worker.close(10)
        assert detector.closed == 1

    def test_start_gives_up_when_it_is_told_to_stop(self) -> None:
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
        """Catches throwing finished work away with the error, and a dead worker that looks idle."""

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

    def test_a_decoder_out_of_memory_ends_the_engine_and_rejects_nothing(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches an exception in the decode pool that nobody looks at."""
        worker = start()

        def decode(*_: object) -> Rejected:
            raise MemoryError("host")

        assert worker._pool is not None
        monkeypatch.setattr(worker._pool._decoder, "decode", decode)
        worker.admit(numbered(0))
        with pytest.raises(EngineError, match="MemoryError"):
            worker.results(10)

    def test_slow_frames_are_no_hang_and_a_hung_one_is(
        self, start: Start, detector: FakeDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches a watch that ends the process, time after time, over a batch whose frames cost seconds each; and one
        that is content as long as frames of other batches are decoded."""
        monkeypatch.setattr("consumer.worker.worker._LOOK_EVERY_S", 0.02)
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
        wait_until(lambda: 1234 in [number_of(slot) for part in detector.memory for slot in part], 10, "its decoding")
        assert worker.results(0.1) == []
        assert worker.busy_since == alive_at
        may.release()
        assert sum(sizes(collect(worker, 5))) == 5

    def test_close_returns_in_time_with_a_hung_engine(self, start: Start, detector: FakeDetector) -> None:
        detector.hold()
        worker = start()
        worker.admit(numbered(0))
        wait_until(lambda: detector.calls, 10, "the engine to hang")
        assert worker.busy_since is not None
        before = time.monotonic()
        assert worker.close(0.05) is False
        assert time.monotonic() - before < 5

    def test_one_thread_has_the_detector_from_its_birth_to_its_end(self, start: Start, detector: FakeDetector) -> None:
        """Catches a CUDA context that is used or freed by a thread that did not make it."""
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
