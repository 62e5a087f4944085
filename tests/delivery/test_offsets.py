"""Tests the watermarks for any order in which frames finish and partitions are assigned and revoked."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.types import Receipt, TopicPartition
from made_frames import P0, P1

PARTITIONS = [P0, P1, TopicPartition("other", 0)]


def receipt(offset: int, partition: TopicPartition = P0, epoch: int = 1) -> Receipt:
    return Receipt(partition, offset, epoch)


@pytest.fixture
def tracker() -> OffsetTracker:
    tracker = OffsetTracker()
    tracker.assign(P0, 1)
    return tracker


def receive(tracker: OffsetTracker, *offsets: int) -> None:
    for offset in offsets:
        tracker.received(receipt(offset))


class TestTheWatermark:
    def test_waits_for_the_oldest_unfinished_frame(self, tracker: OffsetTracker) -> None:
        """Catches committing the highest finished offset: a crash would then lose the frames below it."""
        receive(tracker, 5, 6, 7)
        tracker.done(receipt(7))
        tracker.done(receipt(6))
        assert tracker.committable() == []
        tracker.done(receipt(5))
        assert tracker.committable() == [Committable(P0, 8)]

    def test_follows_the_order_of_receipt_over_gaps(self, tracker: OffsetTracker) -> None:
        """Catches expecting offset + 1 next: with compaction or transaction markers, the watermark would never rise."""
        receive(tracker, 3, 10, 500)
        tracker.done(receipt(3))
        tracker.done(receipt(10))
        assert tracker.committable() == [Committable(P0, 11)]

    def test_is_reported_once_except_for_a_synchronous_commit(self, tracker: OffsetTracker) -> None:
        receive(tracker, 0)
        tracker.done(receipt(0))
        assert tracker.committable() == [Committable(P0, 1)]
        assert tracker.committable() == []
        assert tracker.watermarks([P0, P1]) == [Committable(P0, 1)]

    def test_does_not_exist_before_a_frame_is_done(self, tracker: OffsetTracker) -> None:
        """Catches committing offset 0 on a partition for which another consumer had committed offset 900."""
        receive(tracker, 900)
        assert tracker.watermarks([P0]) == []

    def test_never_passes_a_frame_that_was_dropped(self, tracker: OffsetTracker) -> None:
        """Catches treating a discarded frame as finished: the new owner would never receive it."""
        receive(tracker, 0, 1, 2)
        tracker.abandon(receipt(1))
        tracker.done(receipt(2))
        tracker.done(receipt(0))
        assert tracker.committable() == [Committable(P0, 1)]
        assert tracker.outstanding() == 0


class TestTheEndAfterMarkers:
    """A partition may end with offsets that no consumer receives: transaction markers and aborted records."""

    def test_is_the_watermark_if_no_frame_is_pending(self, tracker: OffsetTracker) -> None:
        """Catches a committed offset that retention removes although every frame has its outcome."""
        receive(tracker, 0, 1)
        tracker.read_to(receipt(4))
        assert tracker.committable() == []
        tracker.done(receipt(1))
        assert tracker.committable() == []
        tracker.done(receipt(0))
        assert tracker.committable() == [(P0, 4)]
        tracker.read_to(receipt(6))
        assert tracker.committable() == [(P0, 6)]

    def test_does_not_pass_a_later_frame(self, tracker: OffsetTracker) -> None:
        receive(tracker, 0)
        tracker.read_to(receipt(4))
        receive(tracker, 4)
        tracker.done(receipt(0))
        assert tracker.committable() == [(P0, 1)]

    def test_never_goes_back_and_needs_its_epoch(self, tracker: OffsetTracker) -> None:
        receive(tracker, 0, 9)
        for ended in (receipt(4), receipt(20, epoch=7), receipt(20, P1)):
            tracker.read_to(ended)
        for offset in (0, 9):
            tracker.done(receipt(offset))
        assert tracker.committable() == [(P0, 10)]

    def test_does_not_pass_a_frame_that_was_dropped(self, tracker: OffsetTracker) -> None:
        receive(tracker, 0)
        tracker.abandon(receipt(0))
        tracker.read_to(receipt(4))
        assert tracker.committable() == []

    def test_refuses_a_frame_below_it(self, tracker: OffsetTracker) -> None:
        tracker.read_to(receipt(4))
        with pytest.raises(ValueError, match="frames"):
            receive(tracker, 3)

    def test_is_committed_with_the_last_outcomes_in_a_transaction(self, tracker: OffsetTracker) -> None:
        receive(tracker, 0, 1, 2)
        tracker.read_to(receipt(7))
        assert tracker.watermarks_after({P0: 1}) == [(P0, 2)]
        assert tracker.watermarks_after({P0: 2}) == [(P0, 7)]


class TestEpochs:
    def test_a_completion_of_an_ended_epoch_changes_nothing(self, tracker: OffsetTracker) -> None:
        """Catches matching by (topic, partition): a late result would commit for a partition assigned again."""
        receive(tracker, 0)
        tracker.revoke(P0)
        assert tracker.done(receipt(0)) is False
        tracker.assign(P0, 2)
        tracker.received(receipt(0, epoch=2))
        assert tracker.done(receipt(0)) is False
        tracker.abandon(receipt(0))
        assert tracker.committable() == []
        assert tracker.outstanding() == 1
        assert not tracker.is_current(receipt(0))
        assert tracker.is_current(receipt(0, epoch=2))

    def test_a_new_epoch_may_start_below_the_last_one(self, tracker: OffsetTracker) -> None:
        receive(tracker, 50, 51)
        tracker.assign(P0, 2)
        tracker.received(receipt(10, epoch=2))
        tracker.done(receipt(10, epoch=2))
        assert tracker.committable() == [Committable(P0, 11)]

    @pytest.mark.parametrize("stale", [receipt(1, epoch=0), receipt(1, P1), receipt(0), receipt(-1)])
    def test_a_frame_without_an_epoch_or_out_of_order_raises(self, tracker: OffsetTracker, stale: Receipt) -> None:
        receive(tracker, 0)
        with pytest.raises(ValueError, match="frames"):
            tracker.received(stale)

    def test_revoking_an_unknown_partition_has_no_effect(self, tracker: OffsetTracker) -> None:
        tracker.revoke(P1)
        assert tracker.partitions == [P0]


class _Model:
    """A naive model of one partition in one epoch: every frame with its state, in order of receipt."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.frames: dict[int, str] = {}
        self.next_offset = 0
        self.reached = 0

    def watermark(self) -> int | None:
        """Called after every step: it remembers the end of the read frames whenever all of them were done."""
        for offset, state in self.frames.items():
            if state != "done":
                break
            self.reached = max(self.reached, offset + 1)
        else:
            self.reached = self.next_offset
        return self.reached or None


class TrackerMachine(RuleBasedStateMachine):
    """Compares any schedule of assign, receive, done, abandon and revoke, and stale completions, with `_Model`."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker()
        self.model: dict[TopicPartition, _Model] = {}
        self.ended: list[Receipt] = []
        self.highest: dict[TopicPartition, int] = {}
        self.epoch = 0

    @rule(partition=st.sampled_from(PARTITIONS), lost=st.booleans())
    def assign(self, partition: TopicPartition, lost: bool) -> None:
        if not lost:  # a loss may go unreported: then the new epoch itself ends the old one
            self.tracker.revoke(partition)
        self._forget(partition)
        self.epoch += 1
        self.tracker.assign(partition, self.epoch)
        self.model[partition] = _Model(self.epoch)

    @rule(partition=st.sampled_from(PARTITIONS))
    def revoke(self, partition: TopicPartition) -> None:
        self.tracker.revoke(partition)
        self._forget(partition)

    @rule(partition=st.sampled_from(PARTITIONS), gaps=st.lists(st.integers(0, 3), min_size=1, max_size=8))
    def receive(self, partition: TopicPartition, gaps: list[int]) -> None:
        if (model := self.model.get(partition)) is not None:
            for gap in gaps:
                offset = model.next_offset + gap
                model.next_offset = offset + 1
                model.frames[offset] = "open"
                self.tracker.received(Receipt(partition, offset, model.epoch))

    @rule(partition=st.sampled_from(PARTITIONS), count=st.integers(0, 3))
    def reach_the_end(self, partition: TopicPartition, count: int) -> None:
        if (model := self.model.get(partition)) is not None:
            model.next_offset += count
            self.tracker.read_to(Receipt(partition, model.next_offset, model.epoch))

    @rule(data=st.data(), verb=st.sampled_from(["done", "done", "done", "abandoned"]))
    def finish(self, data: st.DataObject, verb: str) -> None:
        unfinished = [
            Receipt(partition, offset, model.epoch)
            for partition, model in self.model.items()
            for offset, state in model.frames.items()
            if state == "open"
        ]
        if not unfinished:
            return
        chosen = data.draw(st.sampled_from(unfinished))
        if verb == "done":
            assert self.tracker.done(chosen) is True
        else:
            self.tracker.abandon(chosen)
        self.model[chosen.partition].frames[chosen.offset] = verb

    @rule(data=st.data(), abandon=st.booleans())
    def finish_stale(self, data: st.DataObject, abandon: bool) -> None:
        if self.ended:
            stale = data.draw(st.sampled_from(self.ended))
            if abandon:
                self.tracker.abandon(stale)
            else:
                assert self.tracker.done(stale) is False

    @rule()
    def finish_all(self) -> None:
        for partition, model in self.model.items():
            for offset, state in model.frames.items():
                if state == "open":
                    self.tracker.done(Receipt(partition, offset, model.epoch))
                    model.frames[offset] = "done"
            if model.frames and "abandoned" not in model.frames.values():
                assert self.tracker.watermarks([partition]) == [Committable(partition, model.next_offset)]

    @rule()
    def commit(self) -> None:
        for partition, next_offset in self.tracker.committable():
            assert next_offset == self.model[partition].watermark()
            assert next_offset > self.highest.get(partition, -1), "reported without a rise"
            self.highest[partition] = next_offset
        assert self.tracker.committable() == []

    @invariant()
    def agrees_with_the_model(self) -> None:
        expected = {p: m.watermark() for p, m in self.model.items() if m.watermark() is not None}
        assert dict(self.tracker.watermarks(PARTITIONS)) == expected
        for partition in PARTITIONS:
            states = self.model[partition].frames.values() if partition in self.model else ()
            assert self.tracker.outstanding([partition]) == sum(state == "open" for state in states)
        assert self.tracker.outstanding() == sum(self.tracker.outstanding([p]) for p in PARTITIONS)
        assert set(self.tracker.partitions) == set(self.model)

    def _forget(self, partition: TopicPartition) -> None:
        if (model := self.model.pop(partition, None)) is not None:
            self.ended += [Receipt(partition, offset, model.epoch) for offset in list(model.frames)[:3]]
        self.highest.pop(partition, None)


TestAnySchedule = TrackerMachine.TestCase
TestAnySchedule.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
