"""The ring of batch buffers: bounded, allocated once, and no buffer with two holders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consumer.ring import Buffer, Ring


def ring(buffers: int = 3) -> Ring:
    return Ring(np.zeros((buffers, 4, 12), np.uint8))


def test_buffers_lie_in_the_memory_that_was_given() -> None:
    """Catches a ring that copies or allocates: the memory is page-locked, and decoding processes write to it."""
    memory = np.zeros((3, 4, 12), np.uint8)
    tested = Ring(memory)
    for _ in range(10):
        buffer = tested.take()
        assert buffer is not None
        buffer.slots[...] += 1
        tested.give_back(buffer)
    assert int(memory.sum()) == 10 * 4 * 12
    assert tested.nbytes == memory.nbytes


def test_buffers_share_no_memory() -> None:
    """Catches overlapping views: one batch would write over another."""
    tested = ring()
    taken = [tested.take() for _ in range(3)]
    for number, buffer in enumerate(taken):
        assert buffer is not None
        assert buffer.slots.shape == (4, 12)
        buffer.slots[...] = number
    assert [np.unique(b.slots).tolist() for b in taken if b] == [[0], [1], [2]]


def test_take_says_none_when_all_are_taken_until_one_comes_back() -> None:
    """Catches a ring that waits or raises: the loop must go on polling under backpressure."""
    tested = ring(2)
    first, second = tested.take(), tested.take()
    assert first is not None
    assert second is not None
    assert first is not second
    assert (tested.take(), tested.free) == (None, 0)
    tested.give_back(first)
    assert tested.free == 1
    assert tested.take() is first


def test_a_buffer_given_back_twice_is_refused() -> None:
    """Catches a free list that trusts its caller: the same buffer would serve two batches at once."""
    tested = ring()
    buffer = tested.take()
    assert buffer is not None
    tested.give_back(buffer)
    with pytest.raises(ValueError, match="twice"):
        tested.give_back(buffer)
    assert tested.free == 3


@pytest.mark.parametrize("index", [0, -1, 3])
def test_a_buffer_of_another_ring_is_refused(index: int) -> None:
    """Catches identification by index alone: foreign, perhaps unpinned memory would enter the ring."""
    tested = ring()
    assert tested.take() is not None
    with pytest.raises(ValueError, match="not of this ring"):
        tested.give_back(Buffer(index, np.zeros((4, 12), np.uint8)))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 12), np.uint8), np.zeros((3, 4, 12), np.float32), np.zeros((3, 4, 24), np.uint8)[..., ::2]],
)
def test_memory_of_another_layout_is_refused(wrong: Any) -> None:
    """Catches what would show as wrong pixels, much later."""
    with pytest.raises(ValueError, match="expected contiguous uint8"):
        Ring(wrong)


def test_a_ring_without_buffers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected contiguous uint8"):
        ring(0)
