"""Groups the frames of a batch by the shape of their canvas. Shared by the backends; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumer.errors import ModelError
from consumer.types import Letterbox, LetterboxPolicy

CHANNELS = 3


class Group(NamedTuple):
    """Frames of one `detect` call whose canvases have the same shape.

    Attributes:
        height: The height of the canvases in pixels.
        width: The width of the canvases in pixels.
        rows: The indices of the frames in the call, ascending.
    """

    height: int
    width: int
    rows: tuple[int, ...]

    @property
    def canvas_bytes(self) -> int:
        return self.height * self.width * CHANNELS


def group_by_shape(slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Group]:
    """Group the frames of a call by the shape of their canvas.

    A canvas is never padded to the shape of another one. The model would see the padding, and the result of a frame
    would depend on the other frames of its batch.

    Args:
        slots: uint8 (n, slot_bytes), as in `Detector.detect`.
        letterboxes: The placement of each image in its canvas, one per slot.

    Returns:
        One group per shape, in the order of first appearance. Every row is in exactly one group.

    Raises:
        ValueError: The slots do not match the letterboxes in dtype, number or size.
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
    """Return the canvases of a group as uint8 (n, height, width, 3).

    The result is a view if the rows of the group are consecutive, else a copy.
    """
    first, last = group.rows[0], group.rows[-1]
    gapless = last - first + 1 == len(group.rows)
    held = slots[first : last + 1] if gapless else slots[list(group.rows)]
    return held[:, : group.canvas_bytes].reshape(-1, group.height, group.width, CHANNELS)


def policy_for(image_size: int, stride: int, *, rect: bool) -> LetterboxPolicy:
    """Return the canvas layout for a model.

    Args:
        image_size: The option `detector.image_size`, in pixels.
        stride: The stride of the model, in pixels.
        rect: Whether the model takes canvases that are not square.

    Raises:
        ModelError: `image_size` is not a multiple of `stride`.
    """
    if image_size % stride:
        near = max(stride, round(image_size / stride) * stride)
        raise ModelError(
            f"detector.image_size is {image_size}, but this model takes multiples of {stride}: set it to {near}"
        )
    return LetterboxPolicy(size=image_size, stride=stride, rect=rect)
