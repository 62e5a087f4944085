"""The contract of every detector backend. `tests/detectors/test_contract.py` runs it over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from consumer.types import Detections, DeviceMemory, Letterbox, LetterboxPolicy, ModelInfo


class Detector(Protocol):
    """Turns canvases into detections. Lives on the inference thread: built, used and closed there, by nobody else.

    `load_detector` builds one; an error while building is a `ModelError` with a message for a person.
    """

    @property
    def info(self) -> ModelInfo:
        """Name, digest and labels of the model."""

    @property
    def device(self) -> str:
        """Where it runs, for logs and benchmarks: "cpu", "cuda:0", "simulated"."""

    @property
    def policy(self) -> LetterboxPolicy:
        """How the canvases must be laid out. Constant; frames are decoded with it."""

    @property
    def max_batch_size(self) -> int | None:
        """Frames that `detect` takes at once at most; None: as many as memory holds."""

    def pin(self, memory: NDArray[np.uint8]) -> None:
        """Prepare the ring's memory, where the device copies faster from it then. Called once, before `warm_up`.

        It stays as it is, and valid, until `close`.
        """

    def warm_up(self, batch_size: int) -> None:
        """Run once at `batch_size` and at 1 so that no real frame pays for lazy initialisation. May take a minute."""

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        """N in, N out, in the same order; boxes in pixels of the original images, best score first.

        slots: uint8 (n, slot_bytes); of row i the first canvas_height * canvas_width * 3 bytes are an RGB canvas,
        HWC, laid out as `letterboxes[i]` says. Canvases of different shapes may come in one call; a frame's result
        does not depend on its neighbours. The memory is reused after the return: nothing may keep a view.

        Blocks for as long as the device needs. Any exception means that none of these frames was looked at; the
        caller retries, then bisects. `EngineError` means that the device is lost and no retry will help.
        `MemoryError` (or torch's OutOfMemoryError) means that fewer frames may fit.
        """

    def device_memory(self) -> DeviceMemory | None:
        """The memory of the device, for the metrics; None where the device has none of its own. Takes no time."""

    def close(self) -> None:
        """Free the device. Called once; `detect` is not called after it."""
