"""A detector that reads back the number that is painted into each frame, and that works only when a test lets it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from consumer.types import Detections, DeviceMemory, Letterbox, LetterboxPolicy, ModelInfo

SIDE = 32
NUMBERS = 16**3  # what a picture can tell: 16 shades of red, green and blue, far enough apart to survive JPEG
_PATIENCE_S = 30.0


@cache
def numbered_jpeg(number: int) -> bytes:
    """A picture of one colour, which is the number (modulo `NUMBERS`)."""
    shades = [(number // 16**place % 16) * 16 + 8 for place in range(3)]
    picture = np.full((SIDE, SIDE, 3), shades, np.uint8)
    return bytes(simplejpeg.encode_jpeg(picture, 95, "RGB", "444"))


def number_of(slot: NDArray[np.uint8]) -> int:
    """The number that the middle of the canvas in this slot shows."""
    middle = slot.reshape(SIDE, SIDE, 3)[SIDE // 2, SIDE // 2]
    return sum(int(shade) // 16 * 16**place for place, shade in enumerate(middle))


class FakeDetector:
    """`hold()` makes `detect` wait for `let_go()`. `judge` sees the numbers of a call and may raise."""

    info = ModelInfo("fake", "sha256:0", {})
    device = "fake"
    policy = LetterboxPolicy(size=SIDE, stride=32, rect=True)

    def __init__(
        self, judge: Callable[[list[int]], None] = lambda _: None, *, max_batch_size: int | None = None
    ) -> None:
        self.judge = judge
        self.max_batch_size = max_batch_size
        self.calls: list[list[int]] = []
        self.warmed_up_at = 0
        self.closed = 0
        self.threads: set[int] = set()
        self.memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.used: DeviceMemory | None = None
        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def let_go(self) -> None:
        self._free.set()

    def pin(self, memory: NDArray[np.uint8]) -> None:
        self.threads.add(threading.get_ident())
        self.memory = memory

    def warm_up(self, batch_size: int) -> None:
        self.threads.add(threading.get_ident())
        self.warmed_up_at = batch_size

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        self.threads.add(threading.get_ident())
        assert len(slots) == len(letterboxes)
        numbers = [number_of(slot) for slot in slots]
        self.calls.append(numbers)
        if not self._free.wait(_PATIENCE_S):
            raise TimeoutError("the test never let the detector go")
        # Read again: what was written into these slots in the meantime belongs to another batch.
        numbers = [number_of(slot) for slot in slots]
        self.judge(numbers)
        return [
            Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.array([n], np.int32)) for n in numbers
        ]

    def device_memory(self) -> DeviceMemory | None:
        self.threads.add(threading.get_ident())
        return self.used

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed += 1
