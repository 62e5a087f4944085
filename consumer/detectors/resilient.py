"""What to do when a detector fails: retry, halve, isolate the frame, or give the device up.

The rule behind it: a bad frame never fails its neighbours, and a bad engine never rejects a good frame. Before a frame
is blamed, the engine must prove on a grey canvas that it still works.
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
# Full batches at the ceiling before a larger one is tried, as memory may be free again; each time that it is not,
# twice as many, up to the most. So a device that stays small wastes a call in a hundred at first, and ever fewer.
_TRUST = 100
_MOST_TRUST = 12_800


class ResilientDetector:
    """Wraps a detector's `detect`. Lives on the inference thread, like the detector.

    `ceiling` is the largest batch that the device's memory is trusted with since it last ran out; None: any. What did
    not fit while warming up stays too large; what did not fit later is tried again after a while.
    """

    def __init__(self, detector: Detector, on_retry: Callable[[], None] = lambda: None) -> None:
        self._detector = detector
        self._on_retry = on_retry
        self.ceiling: int | None = None
        self._highest: int | None = None  # the ceiling that it never rises above
        self._trust = _TRUST
        self._calm = 0  # full batches at this ceiling since it changed
        self._risen = False  # it has, since memory ran out last

    def warm_up(self, batch_size: int) -> None:
        """As `Detector.warm_up`; where memory does not hold `batch_size`, half of it, and so on."""
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
        """As `Detector.device_memory`."""
        return self._detector.device_memory()

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections | Rejected]:
        """N in, N out, in order, as `Detector.detect`; a frame that the engine cannot take is `Rejected`.

        Raises EngineError where the device itself has failed: then nothing is known of any of these frames.
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
        half = count // 2  # each half once: a healthy half costs one call, the bad frame log2(count)
        return [
            *self._attempt(slots[:half], letterboxes[:half], 0),
            *self._attempt(slots[half:], letterboxes[half:], 0),
        ]

    def _call(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> Sequence[Detections] | Exception:
        """What the engine says, or why it says nothing: without the tracebacks.

        They hold the tensors of the failed call, and so the memory that the next, smaller one needs.
        """
        try:
            return self._detector.detect(slots, letterboxes)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a native library raises is judged by the caller
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
        """After a while at the ceiling, twice as much is tried, up to `_highest`, where larger batches are `wanted`."""
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
        """The frame is to blame only if the engine still takes a grey canvas of the same shape."""
        probe = self._call(np.full_like(slots, _GREY), letterboxes)
        if isinstance(probe, Exception):
            raise EngineError(
                f"the engine on {self._detector.device} fails on every frame, a grey canvas too: {_line(probe)}; "
                "nothing of this batch was committed"
            ) from error
        again = self._call(slots, letterboxes)  # the engine works now: was it the frame at all?
        if isinstance(again, Exception):
            return Rejected("infer", "engine", f"the engine fails on this frame alone: {_line(again)}")
        return again[0]


def _is_out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError is no MemoryError, and onnxruntime says it only in its text.
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
