"""Simulates a detector with a configurable service time, for benchmarks, capacity planning and fault tests.

`simulated://6.667ms@1,40ms@32` takes 6.667 ms for a batch of one and 40 ms for a batch of 32. For other sizes it takes
the time on the straight line through both points. So a batch has a fixed cost and a cost per frame, as on a GPU. With
one point, as in `simulated://5ms@1`, every batch takes the same time.

`simulated://5ms@1?fault=oom>16` simulates faults; see `scripted`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from consumer.config import DetectorConfig
from consumer.detectors.canvas import group_by_shape, policy_for
from consumer.detectors.scripted import Script
from consumer.errors import ModelError
from consumer.types import Clock, Detections, DeviceMemory, Letterbox, LetterboxPolicy, ModelInfo

SCHEME = "simulated://"
LABELS = {0: "simulated"}
SCORE = 0.5
MAX_MS = 60_000.0
MAX_FRAMES = 1024

_POINT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)ms@(\d{1,9})")
_STRIDE = 32


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """The time of a batch of n frames in milliseconds: `fixed_ms + n * per_frame_ms`."""

    fixed_ms: float
    per_frame_ms: float

    def seconds(self, frames: int) -> float:
        """Return the time of a batch of `frames` frames in seconds."""
        return (self.fixed_ms + frames * self.per_frame_ms) / 1000

    @classmethod
    def parse(cls, url: str) -> ServiceTime:
        """Parse `simulated://A@n` or `simulated://A@n,B@m`.

        Args:
            url: The option `detector.model`. A part after a `?` is ignored.

        Raises:
            ModelError: The address is malformed. The message shows the valid form.
        """

        def wrong(why: str) -> ModelError:
            return ModelError(f"detector.model {url!r}: {why}. The form is {SCHEME}6.667ms@1,40ms@32")

        matches = [_POINT.fullmatch(text) for text in url.removeprefix(SCHEME).partition("?")[0].split(",")]
        points = sorted((int(match[2]), float(match[1])) for match in matches if match)
        if len(points) != len(matches) or len(points) > 2:
            raise wrong("expected one or two service times, each as TIMEms@FRAMES")
        for frames, ms in points:
            if not 1 <= frames <= MAX_FRAMES:
                raise wrong(f"a batch of {frames} frames is outside 1 to {MAX_FRAMES}")
            if ms > MAX_MS:
                raise wrong(f"{ms:g} ms for a batch is above {MAX_MS:g} ms")
        if len(points) == 1:
            return cls(points[0][1], 0.0)
        (few, few_ms), (many, many_ms) = points
        if few == many:
            raise wrong(f"both times are for a batch of {few}")
        per_frame = (many_ms - few_ms) / (many - few)
        curve = cls(few_ms - few * per_frame, per_frame)
        if per_frame < 0:
            raise wrong("a larger batch would take less time than a smaller one")
        if curve.seconds(1) < -1e-9:
            raise wrong("a batch of 1 would take less than no time")
        return curve


class SimulatedDetector:
    """A `Detector` that sleeps for the service time and reports one box in every frame, the middle half of the image.

    The score of the box is `SCORE`. If `detector.confidence` is not below it, frames have no boxes.
    """

    def __init__(
        self, config: DetectorConfig, *, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._service_time = ServiceTime.parse(config.model)
        self._script = Script.parse(config.model.partition("?")[2], sleep)
        self._sees = config.confidence < SCORE
        self._clock = clock
        self._sleep = sleep
        # One result per image size, shared by all frames: a GPU spends no time of this thread on results either.
        self._see = lru_cache(maxsize=256)(self._look)
        self._script.load()
        digest = hashlib.sha256(config.model.encode()).hexdigest()
        self.info = ModelInfo(name=config.model, digest=f"sha256:{digest}", labels=LABELS)
        self.device = "simulated"
        self.policy: LetterboxPolicy = policy_for(config.image_size, _STRIDE, rect=True)
        self.max_batch_size: int | None = None

    def pin(self, memory: NDArray[np.uint8]) -> None:
        """No-op: there is no device."""

    def warm_up(self, batch_size: int) -> None:
        """Simulate the memory faults of the script; there is nothing to initialise."""
        self._script.warm_up(batch_size)

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        """Return one result per frame after the service time, which includes the time to build the results."""
        if not letterboxes:
            return []
        self._script.play(slots, letterboxes)
        ends_at = self._clock() + self._service_time.seconds(len(letterboxes))
        group_by_shape(slots, letterboxes)  # for its checks, which are those of a real backend
        results = [self._see(letterbox.width, letterbox.height) for letterbox in letterboxes]
        if (left := ends_at - self._clock()) > 0:
            self._sleep(left)
        return results

    def device_memory(self) -> DeviceMemory | None:
        return None

    def close(self) -> None:
        """No-op: there is nothing to free."""

    def _look(self, width: int, height: int) -> Detections:
        if not self._sees:
            return Detections.none()
        boxes = np.array([[0.25, 0.25, 0.75, 0.75]], np.float32) * np.array([width, height] * 2, np.float32)
        result = Detections(boxes, np.array([SCORE], np.float32), np.zeros(1, np.int32))
        for array in (result.boxes, result.scores, result.class_ids):
            array.flags.writeable = False
        return result
