"""What tests of decoding processes share: how a frame was decoded, with its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumer.decoding.processes.pool import ProcessDecoder
from consumer.types import Letterbox, LetterboxPolicy, Rejected

POLICY = LetterboxPolicy(320)
Open = Callable[..., ProcessDecoder]
Seen = tuple[Letterbox | Rejected, bytes]  # an outcome and its canvas


def decode_all(decoder: Any, payloads: Sequence[bytes], slots: NDArray[np.uint8], places: Sequence[int]) -> list[Seen]:
    """Each payload into its place of `slots`. Exactly those places are answered for."""
    outcomes = dict(decoder.decode_into(payloads, slots, places))
    assert sorted(outcomes) == sorted(places)
    return [(outcomes[place], _canvas(outcomes[place], slots[place])) for place in places]


def decode(decoder: Any, payload: bytes) -> Seen:
    """One payload, into a slot of its own."""
    (seen,) = decode_all(decoder, [payload], np.zeros((1, POLICY.slot_bytes), np.uint8), [0])
    return seen


def _canvas(outcome: Letterbox | Rejected, slot: NDArray[np.uint8]) -> bytes:
    size = outcome.canvas_width * outcome.canvas_height * 3 if isinstance(outcome, Letterbox) else 0
    return slot[:size].tobytes()
