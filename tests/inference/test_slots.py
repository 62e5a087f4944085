"""Frames into batches and batches into slots, with decoding as fast or as slow as a test chooses. No threads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from consumer.config import BatchingConfig
from consumer.inference import BATCHES
from consumer.inference.batcher import Batcher
from consumer.inference.ring_buffer import Ring
from consumer.inference.slots import Assembly, Work
from consumer.types import Frame
from made_frames import VirtualClock, frame, offsets

SIZE = 8


class Pool:
    """A decode pool of two threads. `end` ends a job, which writes the offset of each frame as its result."""

    threads = 2

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[float], Sequence[Frame], list[Any], int]] = []

    def submit(self, frames: Sequence[Frame], slots: Any, verdicts: list[Any], first: int) -> Future[float]:
        assert verdicts[first : first + len(frames)] == [None] * len(frames), "what older frames left behind"
        job: Future[float] = Future()
        self.jobs.append((job, frames, verdicts, first))
        return job

    def end(self, index: int) -> None:
        job, frames, verdicts, first = self.jobs.pop(index)
        verdicts[first : first + len(frames)] = offsets(frames)
        job.set_result(0.0)

    @property
    def writes(self) -> set[int]:
        """The slots that jobs may still write to."""
        return {first + place for _, frames, _, first in self.jobs for place in range(len(frames))}


class Made:
    """An assembly with its pool, and the frames that were offered and came out."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.preferred = options.get("preferred_batch_sizes", [])
        config = BatchingConfig(**{"max_batch_size": SIZE, **options})
        self.pool = Pool()
        self.assembly = Assembly(
            Batcher(config, clock=self.clock, wall_clock_ms=self.clock.unix_ms),
            Ring(np.zeros((BATCHES * SIZE, 1), np.uint8), SIZE),
            self.pool,  # type: ignore[arg-type]
        )
        self.admitted = 0

    def admit(self, count: int) -> None:
        self.assembly.admit([frame(self.admitted + n, at=self.clock.now) for n in range(count)])
        self.admitted += count

    def next(self) -> list[int] | None:
        work = self.assembly.next()
        return None if work is None else offsets(work.batch.frames)


def test_an_idle_detector_takes_decoded_frames_and_the_rest_stay() -> None:
    """Catches a detector that idles until the last frame is decoded, although all others are ready."""
    made = Made()
    made.admit(1)
    made.admit(1)
    made.admit(1)
    made.pool.end(0)
    made.pool.end(0)
    work = made.assembly.next()
    assert work is not None
    assert offsets(work.batch.frames) == [0, 1]
    assert all(chunk.job.done() for chunk in work.decoding), "it would wait for a job that is not its own"
    made.pool.end(0)
    assert made.assembly.verdicts[:3] == [0, 1, 2]
    assert made.next() == [2]


def test_a_burst_goes_together() -> None:
    """Catches cameras that send at the same moment, of which the last few wait for a whole batch of the detector."""
    made = Made()
    made.admit(3)  # jobs of two frames and one
    made.admit(4)  # two jobs of two frames
    for _ in range(3):
        made.pool.end(0)
    assert made.next() == list(range(7))


def test_a_burst_stays_behind_together() -> None:
    made = Made()
    made.admit(5)  # jobs of three frames and two
    made.admit(2)  # two jobs of one frame
    for _ in range(3):
        made.pool.end(0)
    assert made.next() == list(range(5))
    assert made.next() == [5, 6]


def test_a_decoded_frame_waits_for_an_earlier_one_that_is_not() -> None:
    """Catches batches that do not consist of the first frames: order, and slots in one piece, would be lost."""
    made = Made()
    for _ in range(6):
        made.admit(1)
    for index in (0, 0, 0, 0, 1):
        made.pool.end(index)  # all except 4
    assert made.next() == [0, 1, 2, 3]
    assert made.next() == [4, 5]


def test_frames_left_over_from_a_preferred_size_wait_for_more() -> None:
    """Catches remaining frames that count as a full batch: they would go alone, at once, in a size that is not
    preferred."""
    made = Made(preferred_batch_sizes=[2])
    made.admit(3)
    assert made.next() == [0, 1]
    assert made.next() is None
    made.admit(1)
    assert made.next() == [2, 3]


def test_all_frames_go_together_if_the_rest_would_be_one_batch_too_many() -> None:
    """Catches more batches in flight than a drain may have to finish."""
    made = Made()
    for offset in range(BATCHES - 1):
        made.admit(1)
        made.pool.end(0)
        assert made.next() == [offset]  # not given back
    for _ in range(3):
        made.admit(1)
    made.pool.end(0)
    made.pool.end(0)
    assert made.next() == [BATCHES - 1, BATCHES, BATCHES + 1]


def test_all_frames_go_together_if_the_rest_could_not_fill_a_batch() -> None:
    """Catches small batches at the end of the memory: frames that stay there have only the slots up to the end."""
    made = Made()
    works = []
    for _ in range(BATCHES - 1):
        made.admit(SIZE)
        while made.pool.jobs:
            made.pool.end(0)
        works.append(made.assembly.next())
    for work in works:
        assert work is not None
        made.assembly.release(work)
    made.admit(SIZE - 1)  # they are in the first slots, because no batch is held
    while made.pool.jobs:
        made.pool.end(0)
    first = made.assembly.next()
    assert first is not None
    assert (first.start, first.stop) == (0, SIZE - 1)
    for _ in range(2):
        made.admit(SIZE)
        while made.pool.jobs:
            made.pool.end(0)
        assert made.assembly.next() is not None
    made.assembly.release(first)
    at = 3 * SIZE - 1  # the start of the next batch; a full batch from there ends one slot before the last
    for _ in range(4):
        made.admit(1)
    for _ in range(3):
        made.pool.end(0)
    work = made.assembly.next()
    assert work is not None
    assert (work.start, work.stop) == (at, at + 4)


@pytest.mark.parametrize("preferred", [[], [3, 5]])
@pytest.mark.parametrize("policy", ["dynamic", "window", "static"])
def test_any_order_of_events_keeps_frames_in_order_and_no_slot_for_two(policy: str, preferred: list[int]) -> None:
    """Catches slots that are reused too early, jobs that no batch waits for, and frames that are lost or reordered."""
    chance = random.Random(f"{policy}{preferred}")
    for _ in range(60):
        made = Made(policy=policy, preferred_batch_sizes=preferred, max_queue_delay_ms=10)
        held: list[Work] = []
        out: list[int] = []
        for _ in range(120):
            made.clock.advance(chance.choice([0.0, 0.004, 0.02]))
            event = chance.random()
            if event < 0.4:
                made.admit(min(made.assembly.room, chance.randrange(1, 2 * SIZE)))
            elif event < 0.6 and made.pool.jobs:
                made.pool.end(chance.randrange(len(made.pool.jobs)))
            elif event < 0.8 and held and not _writes(made, held[0]):
                made.assembly.release(held.pop(0))
            elif (work := made.assembly.next()) is not None:
                held.append(work)
                out += offsets(work.batch.frames)
                assert 1 <= len(work.batch.frames) <= SIZE
            made.assembly.draining = chance.random() < 0.1
            _check(made, held)
        _finish(made, held, out)
        assert out == list(range(made.admitted))


def _writes(made: Made, work: Work) -> bool:
    return bool(made.pool.writes & set(range(work.start, work.stop)))


def _check(made: Made, held: Sequence[Work]) -> None:
    spans = [(work.start, work.stop) for work in (*held, *made.assembly._closed)]
    if (opened := made.assembly._open) is not None:
        spans.append((opened.start, opened.used))
    slots = [slot for span in spans for slot in range(*span)]
    assert len(slots) == len(set(slots)), "two batches share a slot"
    assert all(0 <= slot < BATCHES * SIZE for slot in slots)
    # Frames left over from a preferred size are a batch too, when the detector takes them.
    most = BATCHES if not made.preferred else BATCHES + SIZE // min(made.preferred)
    assert len(held) + len(made.assembly._closed) <= most, "a drain would wait for more batches than the ring is for"
    jobs = {id(job) for job, *_ in made.pool.jobs}
    for work in held:
        awaited = {id(chunk.job) for chunk in work.decoding}
        for job, frames, _, first in made.pool.jobs:
            if set(range(first, first + len(frames))) & set(range(work.start, work.stop)):
                assert id(job) in awaited & jobs, "the engine would look at slots that are still written to"
        if not _writes(made, work):
            assert made.assembly.verdicts[work.start : work.stop] == offsets(work.batch.frames)


def _finish(made: Made, held: list[Work], out: list[int]) -> None:
    made.assembly.draining = True
    while len(out) < made.admitted or held:
        while made.pool.jobs:
            made.pool.end(0)
        _check(made, held)
        if (work := made.assembly.next()) is not None:
            held.append(work)
            out += offsets(work.batch.frames)
        else:
            made.assembly.release(held.pop(0))
