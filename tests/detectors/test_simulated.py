"""The service time of the simulated detector."""

from __future__ import annotations

import numpy as np
import pytest

from consumer.config import DetectorConfig
from consumer.detectors.simulated import ServiceTime, SimulatedDetector
from consumer.errors import ModelError
from consumer.types import Letterbox


class VirtualTime:
    """A clock that advances by each sleep, and by `cost` at each reading."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now = 100.0
        self.cost = cost
        self.sleeps: list[float] = []

    def clock(self) -> float:
        self.now += self.cost
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def detector(model: str, time: VirtualTime, **options: object) -> SimulatedDetector:
    return SimulatedDetector(DetectorConfig(model=model, **options), clock=time.clock, sleep=time.sleep)


def run(simulated: SimulatedDetector, frames: int) -> list[object]:
    letterboxes = [Letterbox.fit(640 + i, 480, simulated.policy) for i in range(frames)]
    return list(simulated.detect(np.zeros((frames, 640 * 640 * 3), np.uint8), letterboxes))


@pytest.mark.parametrize(
    ("url", "frames", "ms"),
    [
        ("simulated://6.667ms@1,40ms@32", 1, 6.667),
        ("simulated://6.667ms@1,40ms@32", 32, 40),
        ("simulated://40ms@32,6.667ms@1", 32, 40),
        ("simulated://10ms@1,20ms@11", 6, 15),
        ("simulated://10ms@1,20ms@11", 21, 30),
        ("simulated://5ms@1", 1, 5),
        ("simulated://5ms@1", 64, 5),
        ("simulated://5ms@1,5ms@32", 8, 5),
        ("simulated://1ms@1,8ms@8", 4, 4),
        ("simulated://0ms@1,0ms@32", 32, 0),
    ],
)
def test_service_time_is_a_line_through_the_points(url: str, frames: int, ms: float) -> None:
    """Catches: steps between the points, a limit at the last one, a point that is read in the wrong order."""
    assert ServiceTime.parse(url).seconds(frames) * 1000 == pytest.approx(ms, abs=1e-9)


@pytest.mark.parametrize(
    "url",
    [
        "simulated://",
        "simulated://fast",
        "simulated://5@1",
        "simulated://5ms",
        "simulated://-5ms@1",
        "simulated://5ms@0",
        "simulated://5ms@-1",
        "simulated://5ms@1.5",
        "simulated://5ms@1,",
        "simulated://5ms@1,6ms@2,7ms@3",
        "simulated://5ms@4,6ms@4",
        "simulated://nanms@1",
        "simulated://1e9ms@1",
        "simulated://60001ms@1",
        "simulated://5ms@1,10ms@1025",
        "simulated://40ms@1,6ms@32",
        "simulated://1ms@8,40ms@9",
    ],
)
def test_an_invalid_curve_is_refused_and_the_error_has_the_valid_form(url: str) -> None:
    """Catches: a mistyped curve that simulates a detector with no, negative or endless time."""
    with pytest.raises(ModelError, match=r"simulated://6\.667ms@1,40ms@32"):
        ServiceTime.parse(url)


@pytest.mark.parametrize("frames", [1, 8, 32])
def test_a_batch_takes_its_service_time_in_one_sleep(frames: int) -> None:
    """Catches: a sleep per frame, whose overshoot adds up, and a time that ignores the batch size."""
    time = VirtualTime()
    run(detector("simulated://10ms@1,41ms@32", time), frames)
    assert time.sleeps == [pytest.approx((9 + frames) / 1000)]


def test_the_time_to_build_results_is_part_of_the_service_time() -> None:
    """Catches: a detector that is slower than its curve by the overhead of the simulation."""
    time = VirtualTime(cost=0.002)
    run(detector("simulated://10ms@1", time), 1)
    assert time.sleeps == [pytest.approx(0.008)]


def test_a_detector_with_no_service_time_does_not_sleep() -> None:
    """Catches: `sleep(0)` or a negative sleep, which yields the processor or raises."""
    time = VirtualTime(cost=0.001)
    run(detector("simulated://0ms@1,0ms@32", time), 32)
    assert time.sleeps == []


def test_results_differ_by_image_size_and_are_repeatable() -> None:
    """Catches: one fixed result for all frames, with which a pipeline that swaps frames would pass its tests."""
    simulated = detector("simulated://0ms@1", VirtualTime())
    letterboxes = [Letterbox.fit(width, 480, simulated.policy) for width in (640, 320)]
    slots = np.zeros((2, 640 * 640 * 3), np.uint8)
    wide, narrow = simulated.detect(slots, letterboxes)
    np.testing.assert_allclose(wide.boxes, [[160, 120, 480, 360]])
    np.testing.assert_allclose(narrow.boxes, [[80, 120, 240, 360]])
    np.testing.assert_array_equal(simulated.detect(slots, letterboxes)[0].boxes, wide.boxes)


def test_a_confidence_above_its_score_gives_no_box() -> None:
    """Catches: a simulated box below the threshold that consumers rely on."""
    assert [len(result) for result in run(detector("simulated://0ms@1", VirtualTime(), confidence=0.9), 2)] == [0, 0]


def test_device_and_model_name_the_simulation() -> None:
    """Catches: figures of a simulation that are published as those of a real detector."""
    simulated = detector("simulated://5ms@1", VirtualTime())
    assert simulated.info.name == "simulated://5ms@1"
    assert simulated.info.label(0) == "simulated"
    assert simulated.device == "simulated"
