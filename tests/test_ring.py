"""The ring of batch buffers: bounded, allocated once, and no buffer with two holders."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from consumer.ring import Buffer, Ring


def ring(buffers: int = 3) -> Ring:
    return Ring(buffers=buffers, batch_size=4, slot_bytes=12, allocate=lambda shape: np.zeros(shape, np.uint8))


def test_memory_is_allocated_once_and_never_grows() -> None:
    """Catches a ring that allocates on `take`: pinned memory is slow to get, and then nothing bounds it."""
    asked: list[tuple[int, ...]] = []

    def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        asked.append(shape)
        return np.zeros(shape, np.uint8)

    tested = Ring(buffers=3, batch_size=4, slot_bytes=12, allocate=allocate)
    for _ in range(10):
        buffer = tested.take()
        assert buffer is not None
        tested.give_back(buffer)
    assert asked == [(3, 4, 12)]
    assert tested.nbytes == 3 * 4 * 12


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


def test_an_allocator_that_gives_something_else_is_refused() -> None:
    """Catches a detector whose memory has another layout: it would show as wrong pixels, much later."""
    for wrong in (np.zeros((3, 4, 13), np.uint8), np.zeros((3, 4, 12), np.float32)):
        with pytest.raises(ValueError, match=r"expected contiguous uint8 \(3, 4, 12\)"):
            Ring(buffers=3, batch_size=4, slot_bytes=12, allocate=lambda shape, wrong=wrong: wrong)  # type: ignore[misc]
    with pytest.raises(ValueError, match="positive"):
        ring(0)
