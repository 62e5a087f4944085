"""Each fault of the simulated detector occurs in the calls of its script, and the loop handles it as documented."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from consumer.config import DetectorConfig
from consumer.detectors.loader import load_detector
from consumer.detectors.resilient import ResilientDetector
from consumer.detectors.simulated import SimulatedDetector
from consumer.errors import EngineError, ModelError
from consumer.types import Letterbox, Rejected

FREE = "simulated://0ms@1"


class HangError(Exception):
    """Leaves the sleep of a hang, so that the test can continue."""


def scripted(faults: str, naps: list[float] | None = None) -> SimulatedDetector:
    def sleep(seconds: float) -> None:
        if seconds > 1000:
            raise HangError
        if naps is not None:
            naps.append(seconds)

    return SimulatedDetector(DetectorConfig(model=f"{FREE}?{faults}"), sleep=sleep)


def call(detector: SimulatedDetector | ResilientDetector, frames: int = 1, black: set[int] = frozenset()) -> list:
    """Run one call with frames that have a grey centre, except those in `black`."""
    letterbox = Letterbox.fit(64, 48, detector.policy if isinstance(detector, SimulatedDetector) else _POLICY)
    slots = np.full((frames, 3 * letterbox.canvas_height * letterbox.canvas_width), 100, np.uint8)
    slots[list(black)] = 0
    return list(detector.detect(slots, [letterbox] * frames))


_POLICY = SimulatedDetector(DetectorConfig(model=FREE)).policy


def failures(detector: SimulatedDetector, kind: type[Exception], calls: int = 12) -> list[int]:
    """Return which of this number of calls fail, counted from 1."""

    def fails() -> bool:
        try:
            return len(call(detector)) != 1
        except kind as error:
            return "simulated fault" in str(error)

    return [number for number in range(1, calls + 1) if fails()]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("", range(1, 13)),
        ("@3", [3]),
        ("@10+", [10, 11, 12]),
        ("@2-4", [2, 3, 4]),
        ("@*/5", [5, 10]),
        ("@*/1", range(1, 13)),
        ("@13", []),
    ],
)
def test_a_script_names_its_calls(calls: str, expected: list[int]) -> None:
    assert failures(scripted(f"fault=error{calls}"), RuntimeError) == list(expected)
    assert failures(scripted(f"fault=lost{calls}"), EngineError) == list(expected)


def test_faults_add_up() -> None:
    naps: list[float] = []
    detector = scripted("fault=slow:200ms@*/2&fault=error@4&fault=slow:50ms@2", naps)
    assert failures(detector, RuntimeError, 4) == [4]
    assert naps == [0.2, 0.05, 0.2]


def test_a_slow_load_happens_once() -> None:
    naps: list[float] = []
    detector = scripted("fault=load:60000ms", naps)
    assert naps == [60.0]
    detector.warm_up(32)
    assert call(detector)
    assert naps == [60.0]


def test_a_hang_does_not_return() -> None:
    detector = scripted("fault=hang@2")
    assert call(detector)
    with pytest.raises(HangError):
        call(detector)


def test_memory_is_short_only_for_larger_batches() -> None:
    detector = scripted("fault=oom>4")
    assert len(call(detector, 4)) == 4
    with pytest.raises(MemoryError, match="oom>4"):
        call(detector, 5)
    with pytest.raises(MemoryError):
        detector.warm_up(5)
    detector.warm_up(4)
    scripted("fault=oom>4@7+").warm_up(32)  # the fault begins only at the seventh call


@pytest.mark.parametrize("black", [{0}, {3}, {1, 2}])
def test_a_poison_frame_is_isolated_and_its_neighbours_are_detected(black: set[int]) -> None:
    """Also proves that the fault depends on the image and not on its place: a grey probe of the same shape passes."""
    seen = call(ResilientDetector(scripted("fault=error:black")), 4, black)
    assert {n for n, each in enumerate(seen) if isinstance(each, Rejected)} == black


def test_a_temporary_failure_costs_no_frame() -> None:
    retries = itertools.count()
    resilient = ResilientDetector(scripted("fault=error@*/3"), lambda: next(retries))
    for _ in range(6):
        assert not any(isinstance(each, Rejected) for each in call(resilient, 4))
    assert next(retries) == 2


def test_running_out_of_memory_halves_the_batch_and_is_remembered() -> None:
    resilient = ResilientDetector(scripted("fault=oom>3@2+"))
    assert [len(call(resilient, 8)) for _ in range(3)] == [8, 8, 8]
    assert resilient.ceiling == 2


@pytest.mark.parametrize("faults", ["fault=lost@2", "fault=error@2+"])
def test_a_permanent_error_is_one_of_the_device_and_rejects_no_frame(faults: str) -> None:
    resilient = ResilientDetector(scripted(faults))
    assert len(call(resilient, 4)) == 4
    with pytest.raises(EngineError):
        call(resilient, 4)


@pytest.mark.parametrize(
    "faults",
    [
        "fault",
        "fault=",
        "fault=eror@3",
        "faults=error@3",
        "fault=error@",
        "fault=error@0",
        "fault=error@*/0",
        "fault=error@5-3",
        "fault=error@-3",
        "fault=error:white",
        "fault=oom",
        "fault=oom>",
        "fault=oom>x",
        "fault=slow@3",
        "fault=slow:2s@3",
        "fault=slow:999999ms",
        "fault=load",
        "fault=load:5000ms@1",
        "fault=hang@3,5",
        "fault=error&",
        "fault=error&&fault=hang",
    ],
)
def test_an_invalid_fault_is_refused_before_anything_runs(faults: str) -> None:
    """Catches a mistyped fault that never occurs, so that a test with it passes."""
    with pytest.raises(ModelError, match=r"detector\.model: .*(@7|600000 ms)"):
        load_detector(DetectorConfig(model=f"{FREE}?{faults}"))


def test_it_is_named_with_its_faults() -> None:
    """Catches results of a scripted detector that are indistinguishable from those of a healthy one."""
    assert scripted("fault=hang@9").info.name == "simulated://0ms@1?fault=hang@9"
