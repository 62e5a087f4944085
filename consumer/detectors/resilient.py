"""Handles the failures of a detector: it retries, halves the batch, isolates the bad frame, or gives the device up.

A bad frame must never fail the other frames of its batch, and a failing detector must never reject a good frame. So a
frame is rejected only if the detector still works on a grey canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from consumer.detectors.base import Detector
from consumer.errors import EngineError
from consumer.types import Detections, DeviceMemory, Letterbox, Rejected

_log = structlog.get_logger(__name__)
_GREY = 114
# The number of full batches at the ceiling before a larger batch is tried, because memory may be free again. The number
# doubles, up to the maximum, each time that memory runs out again. So a device that stays short of memory wastes one
# call in a hundred at first, and fewer later.
_TRUST = 100
_MOST_TRUST = 12_800


class ResilientDetector:
    """Wraps a `Detector` with retries. Used on the inference thread only, like the detector itself.

    A batch size that did not fit into memory during warm-up is never tried again. One that did not fit later is tried
    again after some time.

    Attributes:
        ceiling: The maximum batch size since memory last ran out. None if it never did.
    """

    def __init__(self, detector: Detector, on_retry: Callable[[], None] = lambda: None) -> None:
        self._detector = detector
        self._on_retry = on_retry
        self.ceiling: int | None = None
        self._highest: int | None = None  # the upper limit of the ceiling
        self._trust = _TRUST
        self._calm = 0  # full batches since the ceiling changed
        self._risen = False  # whether the ceiling was raised since memory last ran out

    def warm_up(self, batch_size: int) -> None:
        """Warm the detector up, and halve the batch size until it fits into memory.

        Raises:
            Exception: What `Detector.warm_up` raised, if the cause was not memory or the batch size is 1.
        """
        size = batch_size
        while True:
            try:
                self._detector.warm_up(size)
            except Exception as error:
                if not _is_out_of_memory(error) or size == 1:
                    raise
                size = self.ceiling = self._highest = size // 2
                _log.warning("engine out of memory while warming up", ceiling=size, error=_line(error))
            else:
                return

    def device_memory(self) -> DeviceMemory | None:
        """Return the memory of the device; see `Detector.device_memory`."""
        return self._detector.device_memory()

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections | Rejected]:
        """Run the detector on one batch, in several calls if necessary.

        Args:
            slots: uint8 (n, slot_bytes), as in `Detector.detect`.
            letterboxes: The placement of each image in its canvas, one per slot.

        Returns:
            One result per slot, in the same order. A frame is `Rejected` if the detector fails on this frame alone.

        Raises:
            EngineError: The device itself has failed. Then no frame of the batch has a result.
        """
        results: list[Detections | Rejected] = []
        while len(results) < len(letterboxes):
            start = len(results)
            stop = min(len(letterboxes), start + (self.ceiling or len(letterboxes)))
            results.extend(self._attempt(slots[start:stop], letterboxes[start:stop], retries=1))
            if stop - start == self.ceiling != self._highest:
                self._raise_ceiling(len(letterboxes))
        return results

    def _attempt(
        self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox], retries: int
    ) -> Sequence[Detections | Rejected]:
        count = len(letterboxes)
        found = self._call(slots, letterboxes)
        if not isinstance(found, Exception):
            if len(found) != count:
                raise EngineError(f"the detector returned {len(found)} results for {count} frames; this is a bug in it")
            return found
        if _is_out_of_memory(found):
            return self._halve(slots, letterboxes, found)
        _log.warning("engine failed", frames=count, retries_left=retries, error=_line(found))
        self._on_retry()
        if retries:
            return self._attempt(slots, letterboxes, retries - 1)
        if count == 1:
            return [self._blame(slots, letterboxes, found)]
        half = count // 2  # no retries for the halves: a good half costs one call, a bad frame log2(count) calls
        return [
            *self._attempt(slots[:half], letterboxes[:half], 0),
            *self._attempt(slots[half:], letterboxes[half:], 0),
        ]

    def _call(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> Sequence[Detections] | Exception:
        """Call the detector and return its results, or its error without tracebacks.

        The tracebacks refer to the tensors of the failed call. They would keep the memory that the next, smaller call
        needs.
        """
        try:
            return self._detector.detect(slots, letterboxes)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - a native library may raise anything, and the caller decides
            return _without_tracebacks(error)

    def _halve(
        self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox], error: BaseException
    ) -> Sequence[Detections | Rejected]:
        count = len(letterboxes)
        if count == 1:
            raise EngineError(
                f"out of memory on {self._detector.device} with a batch of one: {_line(error)}; "
                "use a smaller detector.image_size or free the device"
            ) from error
        self.ceiling = count // 2
        if self._risen:
            self._trust = min(_MOST_TRUST, 2 * self._trust)
        self._calm, self._risen = 0, False
        _log.warning("engine out of memory", frames=count, ceiling=self.ceiling, error=_line(error))
        self._on_retry()
        return self.detect(slots, letterboxes)

    def _raise_ceiling(self, wanted: int) -> None:
        """Double the ceiling, up to `_highest`, after enough full batches, and only if the batch is larger than it."""
        self._calm += 1
        if self.ceiling is None or self._calm < self._trust or wanted <= self.ceiling:
            return
        higher = 2 * self.ceiling
        self.ceiling = higher if self._highest is None else min(higher, self._highest)
        self._calm, self._risen = 0, True
        _log.info("engine memory has been enough for a while; trying larger batches", ceiling=self.ceiling)

    def _blame(
        self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox], error: BaseException
    ) -> Detections | Rejected:
        """Reject the frame, but only if the detector works on a grey canvas of the same shape and fails on it again."""
        probe = self._call(np.full_like(slots, _GREY), letterboxes)
        if isinstance(probe, Exception):
            raise EngineError(
                f"the engine on {self._detector.device} fails on every frame, a grey canvas too: {_line(probe)}; "
                "nothing of this batch was committed"
            ) from error
        again = self._call(slots, letterboxes)  # the detector works now, so perhaps the frame was not the cause
        if isinstance(again, Exception):
            return Rejected("infer", "engine", f"the engine fails on this frame alone: {_line(again)}")
        return again[0]


def _is_out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError is not a MemoryError, and onnxruntime has only a text for it.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "Failed to allocate memory" in str(error)
    )


def _without_tracebacks(error: Exception) -> Exception:
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        link = left.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            left += link.__cause__, link.__context__
    return error


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
