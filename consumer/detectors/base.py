"""Defines the protocol that every detector backend implements.

`tests/detectors/test_contract.py` checks every backend against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from consumer.types import Detections, DeviceMemory, Letterbox, LetterboxPolicy, ModelInfo


class Detector(Protocol):
    """Turns canvases into detections.

    A canvas is an image that was scaled and padded to the layout of `policy`. The decode pool writes the canvases into
    the slots of a ring buffer, and the detector reads them from there.

    The inference thread constructs the detector, calls all its methods and closes it. No other thread uses it, so an
    implementation needs no locks. The calls come in this order: `pin` once, `warm_up` at least once, `detect` for each
    batch. `close` is the last call, also if another call raised an error.

    A constructor raises `ModelError`, with a message for a person, if the model cannot be used as configured.
    """

    @property
    def info(self) -> ModelInfo:
        """The name, digest and labels of the model."""

    @property
    def device(self) -> str:
        """The device that the detector runs on, for logs and benchmarks: `cpu`, `cuda:0` or `simulated`."""

    @property
    def policy(self) -> LetterboxPolicy:
        """The required layout of the canvases. Constant, because the decode threads use it for every frame."""

    @property
    def max_batch_size(self) -> int | None:
        """The maximum number of frames per `detect` call. None if only memory limits it."""

    def pin(self, memory: NDArray[np.uint8]) -> None:
        """Prepare the memory of the ring buffer for faster copies to the device, for example by page-locking it.

        Called once, before `warm_up`. A backend that gains nothing from it does nothing.

        Args:
            memory: uint8 (slots, slot_bytes), contiguous. The batches of the pipeline are rows of it, but `detect` must
                accept other memory too. It stays valid and at the same address until `close`.

        Raises:
            EngineError: The memory cannot be prepared.
        """

    def warm_up(self, batch_size: int) -> None:
        """Run the model once at `batch_size` and once at 1, so that no real frame waits for lazy initialisation.

        May take a minute.

        Args:
            batch_size: The number of frames in a full batch.

        Raises:
            ModelError: The model does not give usable results.
            MemoryError: The batch does not fit into memory. The caller retries with half of it.
        """

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        """Run the model on one batch. Blocks until the device has finished.

        The canvases of one call may have different shapes. The result of a frame must not depend on the other frames
        of the batch.

        Args:
            slots: uint8 (n, slot_bytes). The first `canvas_height * canvas_width * 3` bytes of row i hold one canvas:
                RGB, HWC, laid out as in `letterboxes[i]`. The caller reuses this memory after the call, so the
                implementation must not keep a view of it.
            letterboxes: The placement of each image in its canvas, one per slot.

        Returns:
            One result per slot, in the same order. Boxes are in pixels of the original image, best score first.

        Raises:
            EngineError: The device is lost, and no retry can help. The process ends, and the batch is not committed.
            MemoryError: Fewer frames may fit into memory. The caller halves the batch. `torch.OutOfMemoryError` has the
                same meaning.
            Exception: Any exception means that no frame of the call has a result. For all other types the caller
                retries once, then bisects the batch to find the frame that fails.
        """

    def device_memory(self) -> DeviceMemory | None:
        """Return the memory of the device for the metrics, or None if the device has no memory of its own.

        Called between batches, at most once a second. It must return immediately.
        """

    def close(self) -> None:
        """Free the device. A second call has no effect."""
