"""Tests outcomes that wait for earlier offsets: exactly those below the committed watermark are released."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.delivery.offsets import OffsetTracker
from consumer.delivery.reorder_buffer import HeldOutcomes
from consumer.types import Finished, TopicPartition
from made_frames import P0, P1, detected, frame, result
from reachable import kept_beside_held


def finished(offset: int, partition: TopicPartition = P0, epoch: int = 1) -> Finished:
    item = frame(offset, partition=partition, epoch=epoch)
    return Finished(item, detected(), result([item]).summary)


def tracker(*received: Finished) -> OffsetTracker:
    offsets = OffsetTracker()
    for partition in {item.frame.receipt.partition for item in received}:
        offsets.assign(partition, 1)
    for item in received:
        offsets.received(item.frame.receipt)
    return offsets


def test_an_outcome_waits_for_earlier_frames() -> None:
    """Catches an outcome above the offset that its transaction commits: it would be repeated after a crash."""
    frames = [finished(n) for n in (3, 4, 9)]
    offsets, held = tracker(*frames), HeldOutcomes()
    held.hold(frames[1])
    held.hold(frames[2])
    assert held.take(offsets) == []
    held.hold(frames[0])
    assert held.take(offsets) == frames
    assert len(held) == 0


def test_partitions_do_not_wait_for_each_other() -> None:
    first, second, other = finished(0), finished(1), finished(0, P1)
    offsets, held = tracker(first, second, other), HeldOutcomes()
    held.hold(second)
    held.hold(other)
    assert held.take(offsets) == [other]
    assert len(held) == 1


def test_forgotten_outcomes_are_returned_and_never_released() -> None:
    first, second = finished(0), finished(1)
    offsets, held = tracker(first, second), HeldOutcomes()
    held.hold(second)
    assert held.forget([P0, P1]) == [second]
    held.hold(first)
    assert held.take(offsets) == [first]


def test_a_second_outcome_of_a_frame_raises() -> None:
    held = HeldOutcomes()
    held.hold(finished(0))
    with pytest.raises(ValueError, match="offset 0 has two outcomes"):
        held.hold(finished(0))


def test_a_held_outcome_keeps_no_other_frame_in_memory() -> None:
    """Catches one late frame that keeps the payloads of a whole batch in memory without counting them."""
    held, beside = kept_beside_held()
    assert held, "nothing was held"
    assert beside == 0


@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3))
def test_in_any_order_outcomes_are_released_once_in_offset_order(seed: int, sizes: list[int]) -> None:
    """Compares with a model: the released frames are always the longest prefix of the received frames with outcomes."""
    chance = random.Random(seed)
    partitions = [TopicPartition("frames", number) for number in range(len(sizes))]
    received = [
        finished(offset, partition)
        for partition, size in zip(partitions, sizes, strict=True)
        for offset in sorted(chance.sample(range(3 * size), size))  # with gaps
    ]
    offsets, held = tracker(*received), HeldOutcomes()
    order = chance.sample(received, len(received))
    out: dict[TopicPartition, list[int]] = defaultdict(list)
    ended: set[tuple[TopicPartition, int]] = set()
    while order:
        for _ in range(min(len(order), chance.randint(1, 5))):
            item = order.pop()
            held.hold(item)
            ended.add(item.frame.receipt[:2])
        for item in held.take(offsets):
            out[item.frame.receipt.partition].append(item.frame.receipt.offset)
            assert offsets.done(item.frame.receipt)
        for partition in partitions:
            line = [item.frame.receipt.offset for item in received if item.frame.receipt.partition == partition]
            prefix = line[: next((n for n, o in enumerate(line) if (partition, o) not in ended), len(line))]
            assert out[partition] == prefix
    assert len(held) == 0
