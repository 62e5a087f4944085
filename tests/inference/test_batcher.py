"""When a batch closes, with what in it, and in which order. Time is virtual."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.config import BatchingConfig
from consumer.inference.batcher import WAITING_BATCHES, Batcher, Due
from consumer.types import Batch, Frame, Skipped
from made_frames import P0, P1, REJECTED, VirtualClock, frame, offsets

DELAY_S = 1 / 64  # exact in binary, so that a clock can stand at the very moment


class Bench:
    """A batcher with its clock; `offer` also admits, as the worker does while slots are free."""

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
    def test_an_idle_engine_takes_what_is_there(self) -> None:
        """Catches the window policy: a lone camera would wait the whole delay for nobody."""
        bench = Bench()
        bench.offer(3)
        assert bench.due() == Due(3, "idle_engine")

    def test_a_busy_engine_lets_the_batch_grow_past_the_delay(self) -> None:
        """Catches flushing small batches into a queue behind a busy engine."""
        bench = Bench()
        bench.offer(3)
        bench.clock.advance(60)
        assert bench.due(idle=False) is None
        bench.offer(5)
        assert bench.due(idle=False) == Due(8, "size")

    @pytest.mark.parametrize(("decoded", "taken"), [(9, 9), (7, 7), (6, 6), (5, 9), (0, 9)])
    def test_an_idle_engine_takes_what_is_decoded_where_that_is_most(self, decoded: int, taken: int) -> None:
        """Catches an engine that idles for the last frames, and one that runs for the first alone."""
        bench = Bench(max_batch_size=32)
        bench.offer(9)
        assert bench.due(decoded=decoded) == Due(taken, "idle_engine")
        assert bench.due(decoded=decoded, idle=False) is None

    def test_what_has_to_go_goes_decoded_or_not(self) -> None:
        """Catches a full batch, or the end of a drain, in parts."""
        bench = Bench(max_batch_size=8)
        bench.offer(7)
        assert bench.due(draining=True, decoded=5) == Due(7, "drain")
        bench.offer(1)
        assert bench.due(decoded=5) == Due(8, "size")

    def test_nothing_is_due_where_nothing_is_open(self) -> None:
        assert Bench().due(draining=True) is None


class TestPreferredSizes:
    def test_the_largest_that_is_ready_closes_and_the_rest_stays_in_order(self) -> None:
        """Catches dropping or reordering what is left over."""
        bench = Bench(max_batch_size=32, preferred_batch_sizes=[4, 16, 8])
        bench.offer(13)
        first = bench.take()
        assert (offsets(first.frames), first.closed_by) == (list(range(8)), "idle_engine")
        second = bench.take()
        assert offsets(second.frames) == [8, 9, 10, 11]
        assert bench.due() is None
        bench.offer(3)
        assert offsets(bench.take().frames) == [12, 13, 14, 15]

    def test_fewer_than_the_smallest_wait_for_the_delay_at_most(self) -> None:
        """Catches waiting for a preferred size for ever."""
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
            ([6, 8], 9, 7, 6),  # most of eight
            ([8], 9, 7, 8),  # seven is no size
            ([1, 8], 8, 7, 8),  # and one is not most of them
            ([4, 16], 20, 15, 16),
            ([1, 8], 7, 6, 1),  # what it would be with all of them too
        ],
    )
    def test_of_what_is_decoded_a_preferred_size_goes_where_that_is_most_of_the_one_of_all(
        self, preferred: list[int], offered: int, decoded: int, taken: int
    ) -> None:
        """Catches a size that is not preferred, and a run for one frame where one more makes the size of eight."""
        bench = Bench(max_batch_size=32, preferred_batch_sizes=preferred)
        bench.offer(offered)
        assert bench.due(decoded=decoded) == Due(taken, "idle_engine")

    def test_a_full_batch_closes_at_a_preferred_size_too(self) -> None:
        bench = Bench(max_batch_size=10, preferred_batch_sizes=[4])
        bench.offer(10)
        assert bench.due(idle=False) == Due(4, "size")


class TestWindow:
    def test_size_or_delay_whichever_comes_first_whatever_the_engine_does(self) -> None:
        bench = Bench(policy="window")
        bench.offer(3)
        assert bench.due(idle=True) is None
        bench.clock.advance(DELAY_S)
        assert bench.due(idle=False) == Due(3, "delay")
        bench.offer(5)
        assert bench.due(idle=False) == Due(8, "size")

    def test_the_clock_starts_at_the_first_frame_of_the_batch(self) -> None:
        """Catches a clock that starts at the last flush: after an idle spell the first frame would go alone."""
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
    def test_a_batch_closes_before_the_frame_that_would_break_the_limit(self) -> None:
        bench = Bench(max_batch_bytes=1024)
        bench.offer(4, payload=bytes(300))
        assert bench.batcher.open_size == 3
        assert bench.due(idle=False) == Due(3, "bytes")
        bench.take(idle=False)
        assert bench.batcher.open_size == 1
        assert bench.due(idle=False) is None

    def test_a_single_larger_frame_goes_alone(self) -> None:
        """Catches a frame over the limit that nothing ever admits: its partition would stand still."""
        bench = Bench(max_batch_bytes=1024)
        bench.offer(1, payload=bytes(5000))
        bench.offer(1, payload=bytes(10))
        assert offsets(bench.take(idle=False).frames) == [0]
        assert offsets(bench.take().frames) == [1]

    def test_what_stays_behind_still_counts(self) -> None:
        """Catches a second batch over the limit, because the bytes of its first frames were forgotten."""
        bench = Bench(max_batch_bytes=1024, preferred_batch_sizes=[2, 4])
        bench.offer(3, payload=bytes(300))
        assert len(bench.take().frames) == 2
        bench.offer(3, payload=bytes(300))
        assert bench.batcher.open_size == 3

    def test_preferred_sizes_keep_to_the_limit_and_move_on(self) -> None:
        """Catches a batch that stays "full" after part of it was taken."""
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
        """Catches first come, first served: a camera that caught up would starve the others."""
        bench = Bench(slots=8)
        bench.offer(8, "busy")  # the open batch is theirs: nobody else was there
        bench.offer(20, "busy")
        for quiet in ("a", "b", "c"):
            bench.offer(2, quiet)
        bench.take(idle=False)
        second = bench.take(idle=False)
        assert sorted(f.source_id for f in second.frames) == sorted(["busy", "a", "b", "c"] * 2)

    def test_a_source_that_has_nothing_waiting_costs_nothing(self) -> None:
        """Catches a line for every source ID that was ever seen: anyone who may write can invent a million."""
        bench = Bench()
        for n in range(1000):
            bench.offer(1, f"cam-{n}")
            while bench.due() is not None:
                bench.take()
        assert bench.batcher._lines == {}
        assert len(bench.batcher._admitted) == 1

    def test_a_source_alone_may_take_all(self) -> None:
        bench = Bench()
        assert len(bench.offer(8)) == 8

    def test_its_turn_comes_round_also_over_batches(self) -> None:
        """Catches starting every batch with the same source: with more sources than slots some would starve."""
        bench = Bench(slots=2, max_batch_size=2)
        bench.offer(2, "first")
        for source_id in ("a", "b", "c", "d"):
            bench.offer(2, source_id)
        bench.take(idle=False)
        turns = [f.source_id for _ in range(4) for f in bench.take(idle=False).frames]
        assert turns == ["a", "b", "c", "d"] * 2


class TestFreshness:
    def test_a_stale_frame_gets_its_verdict_and_keeps_its_place(self) -> None:
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

    def test_is_judged_when_work_would_be_spent_on_it(self) -> None:
        """Catches judging at arrival: behind a slow engine frames grow old in the line."""
        bench = Bench(slots=1, max_frame_age_ms=500)
        now = bench.clock.unix_ms()
        bench.offer(2, captured_at_ms=now)
        bench.clock.advance(2)
        bench.batcher.take(Due(1, "size"))
        bench.batcher.reserve(1)
        (late,) = bench.batcher.admit()
        assert late.verdict == Skipped("stale", 2000.0)

    def test_a_rejected_frame_stays_rejected_however_old(self) -> None:
        """Catches a dead letter that turns into a skip, and so never reaches the dead letters."""
        bench = Bench(max_frame_age_ms=1)
        (admitted,) = bench.offer(captured_at_ms=0, verdict=REJECTED)
        assert admitted.verdict is REJECTED

    def test_is_off_by_default(self) -> None:
        (admitted,) = Bench().offer(captured_at_ms=0)
        assert admitted.verdict is None


class TestDiscard:
    def test_drops_only_waiting_frames_of_these_partitions(self) -> None:
        """Catches pulling a frame out of a slot that is being decoded into, or out of a partition we keep."""
        bench = Bench(slots=2, max_batch_size=2)
        bench.offer(2, "open", partition=P0)
        bench.offer(2, "gone", partition=P0)
        bench.offer(2, "kept", partition=P1)
        bench.offer(1, "gone", partition=P0)
        assert offsets(bench.batcher.discard({P0}, overtaken=True)) == [2, 3, 6]
        assert bench.batcher.waiting == 2
        assert offsets(bench.take().frames) == [0, 1]
        assert offsets(bench.take().frames) == [4, 5]

    def test_keeps_what_a_later_offset_has_overtaken(self) -> None:
        """Catches a drain whose watermark stays below what fair turns had finished: a clean stop would repeat it."""
        bench = Bench(slots=4, max_batch_size=4)
        bench.offer(0)  # nothing open yet
        busy = [frame(offset, "busy", partition=P0) for offset in range(6)]
        calm = [frame(offset, "calm", partition=P0) for offset in range(6, 8)]
        for item in (*busy, *calm):
            bench.batcher.offer(item)
        assert sorted(offsets(bench.batcher.admit())) == [0, 1, 6, 7]
        assert bench.batcher.discard({P0}, overtaken=False) == []
        assert offsets(bench.batcher.discard({P0}, overtaken=True)) == [2, 3, 4, 5]

    def test_makes_room(self) -> None:
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


def test_what_is_left_over_admits_nothing_until_slots_are_reserved_behind_it() -> None:
    """Catches a frame that is decoded into the slots of an older batch."""
    bench = Bench(max_batch_size=8)
    bench.offer(5)
    bench.batcher.take(Due(3, "idle_engine"))
    assert bench.offer(4) == []
    assert bench.due(idle=False) == Due(2, "size")
    bench.batcher.reserve(4)
    assert offsets(bench.batcher.admit()) == [5, 6]
