"""Outcomes of several batches are published together: which batches the worker waits for, and how long."""

from __future__ import annotations

import threading
import time

from consumer.inference.slots import Work
from fake_detector import FakeDetector
from made_frames import VirtualClock
from waiting import wait_until
from worker_runs import Start, collect, numbered, sizes


class Stepwise:
    """Batches of one frame. The detector ends each one on command, or when the previous one is taken out.

    `clock` advances only on command of the test; each taking out advances it by `taken_out_s`.
    """

    def __init__(self, start: Start, detector: FakeDetector, *, taken_out_s: float = 0.0) -> None:
        self.clock = VirtualClock()
        self.may_end = [threading.Event() for _ in range(6)]
        detector.judge = lambda numbers: self._end(numbers[0])
        self.engine_s = 0.0  # seconds on the clock per batch
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
        """Return the sizes of batches that come together. The wait must end by what is known, not after a minute."""
        began = time.monotonic()
        results = self.worker.results(10, gather_s)
        assert time.monotonic() - began < 30
        return sizes(results)

    def _end(self, number: int) -> None:
        assert self.may_end[number].wait(30)
        self.clock.advance(self.engine_s)


class TestGathering:
    """Outcomes of several batches are published together if more batches are coming."""

    def test_it_waits_for_up_to_four_batches_and_frees_the_slots_of_each(
        self, start: Start, detector: FakeDetector
    ) -> None:
        """Catches outcomes that are published batch by batch, and a detector that waits for these slots."""
        made = Stepwise(start, detector)
        made.last_to_follow = 3
        made.worker.admit(numbered(0, 6))
        made.may_end[0].set()
        assert made.gathered(60) == [1, 1, 1, 1]
        made.may_end[4].set()
        made.may_end[5].set()
        assert sum(sizes(collect(made.worker, 2))) == 2

    def test_the_time_counts_from_the_first_batch(self, start: Start, detector: FakeDetector) -> None:
        """Catches a wait that starts again with each batch."""
        made = Stepwise(start, detector, taken_out_s=40.0)  # the time of the second batch in the detector
        made.worker.admit(numbered(0, 3))
        made.last_to_follow = 1
        made.may_end[0].set()
        wait_until(lambda: len(detector.calls) == 2, 10, "the second batch in the engine")
        assert made.gathered(100) == [1, 1]
        made.may_end[2].set()
        assert sizes(collect(made.worker, 1)) == [1]

    def test_it_does_not_wait_if_no_batch_is_coming(self, start: Start, detector: FakeDetector) -> None:
        """Catches outcomes that are held for a batch that does not exist."""
        made = Stepwise(start, detector)
        made.worker.admit(numbered(0))
        made.may_end[0].set()
        wait_until(lambda: detector.calls and made.worker.busy_since is None, 10, "the engine to be idle")
        assert made.gathered(60) == [1]

    def test_it_does_not_wait_if_the_detector_needs_longer(self, start: Start, detector: FakeDetector) -> None:
        """Catches a useless wait in every iteration with a slow detector."""
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
