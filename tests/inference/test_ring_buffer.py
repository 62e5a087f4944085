"""The ring buffer of slots is bounded and allocated once, and no slot belongs to two batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.inference.ring_buffer import Ring


def ring(batches: int = 3, batch_size: int = 4) -> Ring:
    return Ring(np.zeros((batches * batch_size, 12), np.uint8), batch_size)


def hold(tested: Ring, count: int) -> tuple[int, int]:
    """Hold a batch of this number of frames, at the place that the ring buffer chooses."""
    first = tested.begin()
    assert first is not None
    tested.hold(first, first + count)
    return first, first + count


def test_slots_are_the_memory_that_was_given() -> None:
    """Catches a ring that copies or allocates: the memory is page-locked, and decoding processes write to it."""
    memory = np.zeros((12, 12), np.uint8)
    assert Ring(memory, 4).slots is memory


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_no_slot_has_two_batches_and_a_full_batch_has_room(batch_size: int, batches: int, data: st.DataObject) -> None:
    """Catches one batch that is decoded over another, and slots that are lost at the end of the memory."""
    tested = Ring(np.zeros((batches * batch_size, 1), np.uint8), batch_size)
    held: list[tuple[int, int]] = []
    for _ in range(30):
        taken = {slot for span in held for slot in range(*span)}
        for slot in range(len(tested.slots)):
            assert taken.isdisjoint(range(slot, slot + tested.room(slot)))
        first = tested.begin()
        if first is None:
            assert held, "nothing is held, and nothing may begin"
        elif data.draw(st.booleans()):
            stop = first + data.draw(st.integers(1, batch_size))
            assert stop <= len(tested.slots)
            assert tested.room(first) == batch_size
            tested.hold(first, stop)
            held.append((first, stop))
            assert len(held) <= batches
            continue
        if held:
            tested.give_back(*held.pop(0))
    assert tested.free == batches - len(held)


def test_full_batches_fill_the_ring_until_the_oldest_is_given_back() -> None:
    """Catches a ring that waits or raises, since the loop must continue to poll, and one that wastes slots."""
    tested = ring(3)
    first, *others = [hold(tested, 4) for _ in range(3)]
    assert [first, *others] == [(0, 4), (4, 8), (8, 12)]
    assert (tested.begin(), tested.free) == (None, 0)
    tested.give_back(*first)
    assert (tested.begin(), tested.free) == (0, 1)


def test_there_are_never_more_small_batches_than_full_ones() -> None:
    """Catches slots that a small batch holds without use, and a drain with as many batches as slots."""
    tested = ring(3)
    assert [hold(tested, 1) for _ in range(3)] == [(0, 1), (1, 2), (2, 3)]
    assert tested.begin() is None


def test_a_batch_that_does_not_fit_at_the_end_begins_at_the_start() -> None:
    tested = ring(3)
    spans = [hold(tested, 3) for _ in range(3)]
    assert spans[-1] == (6, 9)
    tested.give_back(*spans[0])
    assert tested.begin() is None  # three slots are free at the end, and three at the start
    tested.give_back(*spans[1])
    assert tested.begin() == 0
    assert tested.room(9) == 3


def test_an_empty_ring_begins_at_the_first_slot() -> None:
    """Catches a single camera whose frames go through the whole memory, so that none is in the CPU cache."""
    tested = ring(3)
    for _ in range(10):
        span = hold(tested, 1)
        assert span == (0, 1)
        tested.give_back(*span)


def test_slots_of_another_batch_are_refused() -> None:
    """Catches a ring that trusts its caller: both batches would be decoded into them."""
    tested = ring(3)
    hold(tested, 2)
    for first, stop in [(0, 1), (1, 3), (2, 2), (2, 7), (11, 13)]:
        with pytest.raises(ValueError, match="not free"):
            tested.hold(first, stop)
    tested.hold(2, 6)


def test_only_the_oldest_batch_can_be_given_back() -> None:
    """Catches slots that are reused while a batch has them, and a batch that is given back twice."""
    tested = ring(3)
    oldest, next_one = hold(tested, 2), hold(tested, 2)
    for wrong in (next_one, (0, 1)):
        with pytest.raises(ValueError, match="not the oldest"):
            tested.give_back(*wrong)
    tested.give_back(*oldest)
    with pytest.raises(ValueError, match="not the oldest"):
        tested.give_back(*oldest)
    assert tested.free == 2


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 4, 12), np.uint8), np.zeros((8, 12), np.float32), np.zeros((8, 24), np.uint8)[..., ::2]],
)
def test_memory_of_another_layout_is_refused(wrong: Any) -> None:
    """Catches an error that would appear as wrong pixels, much later."""
    with pytest.raises(ValueError, match="expected contiguous uint8"):
        Ring(wrong, 4)


@pytest.mark.parametrize(("slots", "batch_size"), [(3, 4), (4, 0)])
def test_memory_without_room_for_a_batch_is_refused(slots: int, batch_size: int) -> None:
    """Catches a consumer that waits for room without end."""
    with pytest.raises(ValueError, match="no room for a batch"):
        Ring(np.zeros((slots, 12), np.uint8), batch_size)
