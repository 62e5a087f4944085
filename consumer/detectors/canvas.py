"""How frames lie in the ring's slots, and which of them can share a forward pass. Shared by the backends; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumer.errors import ModelError
from consumer.types import Letterbox, LetterboxPolicy

CHANNELS = 3


class Group(NamedTuple):
    """Frames of one call whose canvases have one shape; `rows` are their places in the call, ascending."""

    height: int
    width: int
    rows: tuple[int, ...]

    @property
    def canvas_bytes(self) -> int:
        return self.height * self.width * CHANNELS


def group_by_shape(slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Group]:
    """One group per canvas shape, in order of first appearance; every row is in exactly one.

    A canvas is never padded to that of a neighbour: the padding would be seen by the model, and a frame's result
    would depend on what it happened to share a batch with.
    Raises ValueError where the slots do not hold what the letterboxes claim.
    """
    if slots.ndim != 2 or slots.dtype != np.uint8 or len(slots) != len(letterboxes):
        raise ValueError(f"slots: expected uint8 ({len(letterboxes)}, slot_bytes), got {slots.dtype} {slots.shape}")
    rows: dict[tuple[int, int], list[int]] = {}
    for row, letterbox in enumerate(letterboxes):
        rows.setdefault(letterbox.canvas_shape, []).append(row)
    groups = [Group(height, width, tuple(members)) for (height, width), members in rows.items()]
    for group in groups:
        if group.canvas_bytes > slots.shape[1]:
            raise ValueError(
                f"slots: a {group.width}x{group.height} canvas needs {group.canvas_bytes} bytes, "
                f"a slot holds {slots.shape[1]}"
            )
    return groups


def canvases(slots: NDArray[np.uint8], group: Group) -> NDArray[np.uint8]:
    """The canvases of a group as (n, height, width, 3): a view where its rows lie side by side, else a copy."""
    first, last = group.rows[0], group.rows[-1]
    gapless = last - first + 1 == len(group.rows)
    held = slots[first : last + 1] if gapless else slots[list(group.rows)]
    return held[:, : group.canvas_bytes].reshape(-1, group.height, group.width, CHANNELS)


def policy_for(image_size: int, stride: int, *, rect: bool) -> LetterboxPolicy:
    """The canvases of a model with `stride`. Raises ModelError where the configured size does not suit it."""
    if image_size % stride:
        near = max(stride, round(image_size / stride) * stride)
        raise ModelError(
            f"detector.image_size is {image_size}, but this model takes multiples of {stride}: set it to {near}"
        )
    return LetterboxPolicy(size=image_size, stride=stride, rect=rect)
