"""When a batch closes, with which frames, and in which order. Time is virtual."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.config import BatchingConfig
from consumer.inference.batcher import WAITING_BATCHES, Batcher, Due
from consumer.types import Batch, Frame, Skipped
from made_frames import P0, P1, REJECTED, VirtualClock, frame, offsets

DELAY_S = 1 / 64  # exact in binary, so that a clock can have exactly this value


class Bench:
    """A batcher with its clock. `offer` also admits, as the worker does while slots are free."""

    def __init__(self, slots: int = 64, **options: Any) -> None:
        self.clock = VirtualClock()
        self.config = BatchingConfig(**{"max_batch_size": 8, "max_queue_delay_ms": DELAY_S * 1000, **options})
        self.batcher = Batcher(self.config, clock=self.clock, wall_clock_ms=self.clock.unix_ms)
        self.slots = slots
        self.batcher.reserve(slots)
        self.next_offset = 0

    def offer(self, count: int = 1, source_id: str = "cam-1", **fields: Any) -> list[Frame]:
        for _ in range(count):
            self.batcher.offer(frame(self.next_offset, source_id, at=self.clock.now, **fields))
            self.next_offset += 1
        return self.batcher.admit()

    def due(self, *, idle: bool = True, draining: bool = False, decoded: int | None = None) -> Due | None:
        return self.batcher.due(idle=idle, draining=draining, decoded=decoded)

    def take(self, *, idle: bool = True, draining: bool = False) -> Batch:
        due = self.due(idle=idle, draining=draining)
        assert due is not None
        batch = self.batcher.take(due)
        self.batcher.reserve(self.slots)
        self.batcher.admit()
        return batch


class TestDynamic:
    def test_an_idle_detector_takes_the_frames_that_are_ready(self) -> None:
        """Catches the window policy: a single camera would wait the whole delay for no other frame."""
        bench = Bench()
        bench.offer(3)
        assert bench.due() == Due(3, "idle_engine")

    def test_a_busy_detector_lets_the_batch_grow_past_the_delay(self) -> None:
        """Catches small batches that are queued behind a busy detector."""
        bench = Bench()
        bench.offer(3)
        bench.clock.advance(60)
        assert bench.due(idle=False) is None
        bench.offer(5)
        assert bench.due(idle=False) == Due(8, "size")

    @pytest.mark.parametrize(("decoded", "taken"), [(9, 9), (7, 7), (6, 6), (5, 9), (0, 9)])
    def test_an_idle_detector_takes_the_decoded_frames_if_they_are_most(self, decoded: int, taken: int) -> None:
        """Catches a detector that idles until the last frames are decoded, and one that runs for the first one
        alone."""
        bench = Bench(max_batch_size=32)
        bench.offer(9)
        assert bench.due(decoded=decoded) == Due(taken, "idle_engine")
        assert bench.due(decoded=decoded, idle=False) is None

    def test_a_full_batch_and_a_drain_do_not_wait_for_decoding(self) -> None:
        """Catches a full batch, or the end of a drain, that goes in parts."""
        bench = Bench(max_batch_size=8)
        bench.offer(7)
        assert bench.due(draining=True, decoded=5) == Due(7, "drain")
        bench.offer(1)
        assert bench.due(decoded=5) == Due(8, "size")

    def test_an_empty_batch_is_never_due(self) -> None:
        assert Bench().due(draining=True) is None


class TestPreferredSizes:
    def test_the_largest_ready_size_closes_and_the_rest_stays_in_order(self) -> None:
        """Catches remaining frames that are dropped or reordered."""
        bench = Bench(max_batch_size=32, preferred_batch_sizes=[4, 16, 8])
        bench.offer(13)
        first = bench.take()
        assert (offsets(first.frames), first.closed_by) == (list(range(8)), "idle_engine")
        second = bench.take()
        assert offsets(second.frames) == [8, 9, 10, 11]
        assert bench.due() is None
        bench.offer(3)
        assert offsets(bench.take().frames) == [12, 13, 14, 15]

    def test_fewer_frames_than_the_smallest_size_wait_at_most_the_delay(self) -> None:
        """Catches an endless wait for a preferred size."""
        bench = Bench(max_batch_size=32, preferred_batch_sizes=[4])
        bench.offer(3)
        assert bench.due() is None
        assert bench.batcher.wake_in_s() == DELAY_S
        bench.clock.advance(DELAY_S)
        assert bench.batcher.wake_in_s() == 0
        assert bench.due() == Due(3, "delay")

    @pytest.mark.parametrize(
        ("preferred", "offered", "decoded", "taken"),
        [
            ([6, 8], 9, 7, 6),  # six is most of eight
            ([8], 9, 7, 8),  # seven is not a preferred size
            ([1, 8], 8, 7, 8),  # one is not most of eight
            ([4, 16], 20, 15, 16),
            ([1, 8], 7, 6, 1),  # what it would be with all of them too
        ],
    )
    def test_decoded_frames_close_at_a_preferred_size_if_they_are_most(
        self, preferred: list[int], offered: int, decoded: int, taken: int
    ) -> None:
        """Catches a size that is not preferred, and a run for one frame if one more frame gives the size of eight."""
        bench = Bench(max_batch_size=32, preferred_batch_sizes=preferred)
        bench.offer(offered)
        assert bench.due(decoded=decoded) == Due(taken, "idle_engine")

    def test_a_full_batch_closes_at_a_preferred_size_too(self) -> None:
        bench = Bench(max_batch_size=10, preferred_batch_sizes=[4])
        bench.offer(10)
        assert bench.due(idle=False) == Due(4, "size")


class TestWindow:
    def test_a_batch_closes_by_size_or_delay_whichever_comes_first(self) -> None:
        bench = Bench(policy="window")
        bench.offer(3)
        assert bench.due(idle=True) is None
        bench.clock.advance(DELAY_S)
        assert bench.due(idle=False) == Due(3, "delay")
        bench.offer(5)
        assert bench.due(idle=False) == Due(8, "size")

    def test_the_clock_starts_at_the_first_frame_of_the_batch(self) -> None:
        """Catches a clock that starts at the last flush: after an idle period the first frame would go alone."""
        bench = Bench(policy="window")
        bench.clock.advance(3600)
        bench.offer()
        assert bench.due() is None
        bench.clock.advance(DELAY_S * 0.75)
        bench.offer()
        assert bench.due() is None
        bench.clock.advance(DELAY_S * 0.25)
        assert bench.due() == Due(2, "delay")


class TestStatic:
    def test_waits_for_a_full_batch_until_it_is_drained(self) -> None:
        bench = Bench(policy="static")
        bench.offer(7)
        bench.clock.advance(3600)
        assert bench.due() is None
        assert bench.batcher.wake_in_s() is None
        assert bench.due(draining=True) == Due(7, "drain")
        bench.offer()
        assert bench.due() == Due(8, "size")


class TestBytes:
    def test_a_batch_closes_before_the_frame_that_would_exceed_the_limit(self) -> None:
        bench = Bench(max_batch_bytes=1024)
        bench.offer(4, payload=bytes(300))
        assert bench.batcher.open_size == 3
        assert bench.due(idle=False) == Due(3, "bytes")
        bench.take(idle=False)
        assert bench.batcher.open_size == 1
        assert bench.due(idle=False) is None

    def test_a_single_larger_frame_goes_alone(self) -> None:
        """Catches a frame over the limit that is never admitted: its partition would stop."""
        bench = Bench(max_batch_bytes=1024)
        bench.offer(1, payload=bytes(5000))
        bench.offer(1, payload=bytes(10))
        assert offsets(bench.take(idle=False).frames) == [0]
        assert offsets(bench.take().frames) == [1]

    def test_the_bytes_of_the_remaining_frames_still_count(self) -> None:
        """Catches a second batch over the limit, because the bytes of its first frames were not counted."""
        bench = Bench(max_batch_bytes=1024, preferred_batch_sizes=[2, 4])
        bench.offer(3, payload=bytes(300))
        assert len(bench.take().frames) == 2
        bench.offer(3, payload=bytes(300))
        assert bench.batcher.open_size == 3

    def test_preferred_sizes_respect_the_byte_limit_and_continue(self) -> None:
        """Catches a batch that stays full after some of its frames were taken."""
        bench = Bench(max_batch_size=8, max_batch_bytes=1024, preferred_batch_sizes=[2])
        bench.offer(6, payload=bytes(300))
        taken = [offsets(bench.take(idle=False).frames)]
        while bench.batcher.open_size:
            bench.clock.advance(1)
            taken.append(offsets(bench.take().frames))
        assert [offset for batch in taken for offset in batch] == list(range(6))
        assert all(len(batch) <= 3 for batch in taken)


class TestFairness:
    def test_no_source_takes_more_than_its_share_while_others_wait(self) -> None:
        """Catches first come, first served: a camera that sends a backlog would starve the others."""
        bench = Bench(slots=8)
        bench.offer(8, "busy")  # they fill the open batch, because no other source had frames
        bench.offer(20, "busy")
        for quiet in ("a", "b", "c"):
            bench.offer(2, quiet)
        bench.take(idle=False)
        second = bench.take(idle=False)
        assert sorted(f.source_id for f in second.frames) == sorted(["busy", "a", "b", "c"] * 2)

    def test_a_source_without_waiting_frames_costs_nothing(self) -> None:
        """Catches a queue for every source ID ever seen: everyone who may write can invent a million of them."""
        bench = Bench()
        for n in range(1000):
            bench.offer(1, f"cam-{n}")
            while bench.due() is not None:
                bench.take()
        assert bench.batcher._lines == {}
        assert len(bench.batcher._admitted) == 1

    def test_a_single_source_may_fill_the_batch(self) -> None:
        bench = Bench()
        assert len(bench.offer(8)) == 8

    def test_turns_continue_across_batches(self) -> None:
        """Catches batches that all start with the same source: with more sources than slots some would starve."""
        bench = Bench(slots=2, max_batch_size=2)
        bench.offer(2, "first")
        for source_id in ("a", "b", "c", "d"):
            bench.offer(2, source_id)
        bench.take(idle=False)
        turns = [f.source_id for _ in range(4) for f in bench.take(idle=False).frames]
        assert turns == ["a", "b", "c", "d"] * 2


class TestFreshness:
    def test_a_stale_frame_is_skipped_and_keeps_its_place(self) -> None:
        bench = Bench(max_frame_age_ms=500)
        now = bench.clock.unix_ms()
        old, fresh, unknown = (
            *bench.offer(captured_at_ms=now - 501),
            *bench.offer(captured_at_ms=now - 500),
            *bench.offer(),
        )
        assert old.verdict == Skipped("stale", 501.0)
        assert (fresh.verdict, unknown.verdict) == (None, None)
        assert offsets(bench.take().frames) == [0, 1, 2]

    def test_the_age_is_checked_before_work_is_spent_on_the_frame(self) -> None:
        """Catches a check at arrival: behind a slow detector frames become old in the queue."""
        bench = Bench(slots=1, max_frame_age_ms=500)
        now = bench.clock.unix_ms()
        bench.offer(2, captured_at_ms=now)
        bench.clock.advance(2)
        bench.batcher.take(Due(1, "size"))
        bench.batcher.reserve(1)
        (late,) = bench.batcher.admit()
        assert late.verdict == Skipped("stale", 2000.0)

    def test_a_rejected_frame_stays_rejected_however_old(self) -> None:
        """Catches a dead letter that turns into a skipped message, and so never reaches the dead letters."""
        bench = Bench(max_frame_age_ms=1)
        (admitted,) = bench.offer(captured_at_ms=0, verdict=REJECTED)
        assert admitted.verdict is REJECTED

    def test_the_age_limit_is_off_by_default(self) -> None:
        (admitted,) = Bench().offer(captured_at_ms=0)
        assert admitted.verdict is None


class TestDiscard:
    def test_drops_only_waiting_frames_of_these_partitions(self) -> None:
        """Catches a frame that is dropped while it is decoded, or one of a partition that stays assigned."""
        bench = Bench(slots=2, max_batch_size=2)
        bench.offer(2, "open", partition=P0)
        bench.offer(2, "gone", partition=P0)
        bench.offer(2, "kept", partition=P1)
        bench.offer(1, "gone", partition=P0)
        assert offsets(bench.batcher.discard({P0}, overtaken=True)) == [2, 3, 6]
        assert bench.batcher.waiting == 2
        assert offsets(bench.take().frames) == [0, 1]
        assert offsets(bench.take().frames) == [4, 5]

    def test_keeps_frames_that_a_later_offset_has_overtaken(self) -> None:
        """Catches a drain whose watermark stays below offsets that fair turns have finished: a clean stop would repeat
        them."""
        bench = Bench(slots=4, max_batch_size=4)
        bench.offer(0)  # nothing open yet
        busy = [frame(offset, "busy", partition=P0) for offset in range(6)]
        calm = [frame(offset, "calm", partition=P0) for offset in range(6, 8)]
        for item in (*busy, *calm):
            bench.batcher.offer(item)
        assert sorted(offsets(bench.batcher.admit())) == [0, 1, 6, 7]
        assert bench.batcher.discard({P0}, overtaken=False) == []
        assert offsets(bench.batcher.discard({P0}, overtaken=True)) == [2, 3, 4, 5]

    def test_discarding_makes_room(self) -> None:
        bench = Bench(slots=1, max_batch_size=1)
        bench.offer(WAITING_BATCHES + 3)
        assert bench.batcher.room == 0, "never negative: that would look like room"
        bench.batcher.discard([P0], overtaken=True)
        assert bench.batcher.room == WAITING_BATCHES


def test_frames_keep_their_slots() -> None:
    """Catches a frame of the open batch whose slot goes to another batch."""
    bench = Bench()
    bench.offer(3)
    with pytest.raises(ValueError, match="2 slots are too few"):
        bench.batcher.reserve(2)
    bench.batcher.reserve(3)
    assert bench.due(idle=False) == Due(3, "size")


def test_remaining_frames_admit_no_other_before_slots_are_reserved() -> None:
    """Catches a frame that is decoded into the slots of an older batch."""
    bench = Bench(max_batch_size=8)
    bench.offer(5)
    bench.batcher.take(Due(3, "idle_engine"))
    assert bench.offer(4) == []
    assert bench.due(idle=False) == Due(2, "size")
    bench.batcher.reserve(4)
    assert offsets(bench.batcher.admit()) == [5, 6]
