"""A bad frame never fails the other frames of its batch, and a failing detector never rejects a good frame."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consumer.detectors.resilient import ResilientDetector
from consumer.errors import EngineError
from consumer.types import Detections, Letterbox, LetterboxPolicy, Rejected

BOX = Letterbox.fit(32, 32, LetterboxPolicy(size=32))


class OutOfMemoryError(RuntimeError):
    """Like the error of torch: recognised by its name, and not a MemoryError."""


class Tensor:
    """A large object on the device."""


class FakeDetector:
    """Frame n has n in its slot and gets class n. `judge` gets the numbers of each call and may raise."""

    device = "cpu"

    def __init__(self, judge: Callable[[list[int]], None] = lambda _: None) -> None:
        self.judge = judge
        self.calls: list[list[int]] = []

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        assert len(slots) == len(letterboxes)
        numbers = [int(row[0]) for row in slots]
        self.calls.append(numbers)
        self.judge(numbers)
        return [
            Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.array([n], np.int32)) for n in numbers
        ]


GREY = 114  # the canvas of the probe


def detect(resilient: ResilientDetector, count: int, first: int = 0) -> list[int | Rejected]:
    """Return the class of each frame, which must be its number; or its rejection."""
    slots = np.repeat(np.arange(first, first + count, dtype=np.uint8)[:, None], 32 * 32 * 3, axis=1)
    return [
        seen if isinstance(seen, Rejected) else int(seen.class_ids[0])
        for seen in resilient.detect(slots, [BOX] * count)
    ]


def make(judge: Callable[[list[int]], None] = lambda _: None) -> tuple[ResilientDetector, FakeDetector]:
    fake = FakeDetector(judge)
    return ResilientDetector(fake), fake  # type: ignore[arg-type] # the fake has what is used


def failing_on(bad: set[int]) -> Callable[[list[int]], None]:
    def judge(numbers: list[int]) -> None:
        if bad & set(numbers):
            raise RuntimeError(f"cannot take {sorted(bad & set(numbers))}")

    return judge


class TestABadFrame:
    def test_a_healthy_batch_costs_one_call(self) -> None:
        resilient, fake = make()
        assert detect(resilient, 8) == list(range(8))
        assert len(fake.calls) == 1

    def test_a_temporary_failure_is_retried_once_and_rejects_no_frame(self) -> None:
        """Catches a rejected frame, or the end of the process, because of one short failure of the detector."""
        failures = iter([RuntimeError("hiccup")])

        def judge(_: list[int]) -> None:
            for error in failures:
                raise error

        retries: list[None] = []
        fake = FakeDetector(judge)
        resilient = ResilientDetector(fake, lambda: retries.append(None))  # type: ignore[arg-type]
        assert detect(resilient, 8) == list(range(8))
        assert len(fake.calls) == 2
        assert len(retries) == 1

    @settings(max_examples=300, deadline=None)
    @given(count=st.integers(1, 64), data=st.data())
    def test_only_the_bad_frames_are_rejected_whichever_they_are(self, count: int, data: st.DataObject) -> None:
        """Catches a failed batch, results that are shifted by one, and a search that costs a call per frame."""
        bad = data.draw(st.sets(st.integers(0, count - 1)))
        resilient, fake = make(failing_on(bad))
        seen = detect(resilient, count)
        assert [n for n in range(count) if isinstance(seen[n], Rejected)] == sorted(bad)
        assert all(seen[n] == n for n in range(count) if n not in bad)
        levels = math.ceil(math.log2(count)) + 1 if count > 1 else 1
        assert len(fake.calls) <= 2 + len(bad) * (2 * levels + 2)

    def test_is_rejected_with_the_error_of_the_detector(self) -> None:
        seen = detect(make(failing_on({3}))[0], 4)[3]
        assert isinstance(seen, Rejected)
        assert (seen.stage, seen.reason) == ("infer", "engine")
        assert "cannot take [3]" in seen.detail


class TestABrokenEngine:
    @pytest.mark.parametrize("count", [1, 2, 32])
    def test_is_an_error_and_not_a_batch_of_rejections(self, count: int) -> None:
        """Catches a whole topic that goes to the dead letters because a GPU failed."""

        def judge(numbers: list[int]) -> None:
            raise RuntimeError("CUDA error: unspecified launch failure")

        with pytest.raises(EngineError, match="grey canvas too"):
            detect(make(judge)[0], count)

    def test_that_reports_a_lost_device_is_not_called_again(self) -> None:
        def judge(numbers: list[int]) -> None:
            raise EngineError("device lost")

        resilient, fake = make(judge)
        with pytest.raises(EngineError, match="device lost"):
            detect(resilient, 8)
        assert len(fake.calls) == 1

    def test_that_breaks_during_the_search_for_a_frame_rejects_none(self) -> None:
        """Catches the rejection of the frame that was in the detector when the device failed."""

        def judge(numbers: list[int]) -> None:
            if 5 in numbers or numbers == [GREY]:
                raise RuntimeError("CUDA error")

        with pytest.raises(EngineError):
            detect(make(judge)[0], 8)

    @pytest.mark.parametrize("surplus", [-1, 1])
    def test_with_more_or_fewer_results_than_frames_is_an_error(self, surplus: int) -> None:
        """Catches zip() that drops the last frames, or gives one frame the boxes of another."""

        class Miscounting(FakeDetector):
            def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
                return [Detections.none()] * (len(letterboxes) + surplus)

        with pytest.raises(EngineError, match=f"{4 + surplus} results for 4 frames"):
            detect(ResilientDetector(Miscounting()), 4)  # type: ignore[arg-type]


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [MemoryError("host"), OutOfMemoryError("CUDA out of memory"), RuntimeError("Failed to allocate memory for 7")],
    )
    def test_halves_the_batch_and_remembers(self, error: Exception) -> None:
        """Catches a failure with every batch, and frames that are lost between the parts of a batch."""

        def judge(numbers: list[int]) -> None:
            if len(numbers) > 5:
                raise error

        resilient, fake = make(judge)
        assert detect(resilient, 32) == list(range(32))
        assert resilient.ceiling == 4
        before = len(fake.calls)
        assert detect(resilient, 32, first=40) == list(range(40, 72))
        assert [len(call) for call in fake.calls[before:]] == [4] * 8

    def test_frees_the_memory_of_the_failed_call_before_the_next_one(self) -> None:
        """Catches a batch of one that runs out of memory, because the tensors of all larger attempts still exist."""
        held: list[weakref.ref[Tensor]] = []

        def judge(numbers: list[int]) -> None:
            assert not any(each() for each in held)
            tensor = Tensor()
            held.append(weakref.ref(tensor))
            if len(numbers) > 1:
                raise OutOfMemoryError("CUDA out of memory")

        assert detect(make(judge)[0], 16) == list(range(16))
        assert len(held) == 4 + 16

    @settings(max_examples=200, deadline=None)
    @given(count=st.integers(1, 64), fits=st.integers(1, 64), bad=st.sets(st.integers(0, 63), max_size=4))
    def test_and_bad_frames_together_still_give_every_frame_its_own_outcome(
        self, count: int, fits: int, bad: set[int]
    ) -> None:
        def judge(numbers: list[int]) -> None:
            if len(numbers) > fits:
                raise MemoryError
            failing_on(bad)(numbers)

        seen = detect(make(judge)[0], count)
        assert [n for n in range(count) if seen[n] != n] == sorted(n for n in bad if n < count)

    def test_while_warming_up_starts_with_half(self) -> None:
        """Catches a pod that cannot start because the first attempt with the largest batch ends it."""
        tried: list[int] = []

        class Small(FakeDetector):
            def warm_up(self, batch_size: int) -> None:
                tried.append(batch_size)
                if batch_size > 8:
                    raise MemoryError

        resilient = ResilientDetector(Small())
        resilient.warm_up(32)
        assert (tried, resilient.ceiling) == ([32, 16, 8], 8)

    def test_that_has_passed_lets_the_batches_grow_again(self) -> None:
        """Catches a pod that runs small batches for weeks because memory was short for one minute."""
        fits = 4

        def judge(numbers: list[int]) -> None:
            if len(numbers) > fits:
                raise MemoryError

        resilient, fake = make(judge)
        detect(resilient, 32)
        assert resilient.ceiling == 4
        fits = 64
        for _ in range(100):
            assert detect(resilient, 32) == list(range(32))
        assert len(fake.calls[-1]) == 32

    def test_that_persists_is_tried_less_and_less_often(self) -> None:
        """Catches a small device that fails in one of a hundred calls without end."""
        failed = 0

        def judge(numbers: list[int]) -> None:
            nonlocal failed
            if len(numbers) > 4:
                failed += 1
                raise MemoryError

        resilient, _ = make(judge)
        for _ in range(4000):
            assert detect(resilient, 8) == list(range(8))
        assert resilient.ceiling == 4
        assert 3 <= failed <= 9  # of 8,000 calls: after 100, 200, 400, ... of them

    def test_while_warming_up_is_not_tried_again(self) -> None:
        class Small(FakeDetector):
            def warm_up(self, batch_size: int) -> None:
                if batch_size > 8:
                    raise MemoryError

        fake = Small()
        resilient = ResilientDetector(fake)  # type: ignore[arg-type]
        resilient.warm_up(32)
        for _ in range(200):
            detect(resilient, 32)
        assert resilient.ceiling == 8
        assert {len(call) for call in fake.calls} == {8}

    def test_with_one_frame_is_an_error_of_the_device(self) -> None:
        """Catches the rejection of a frame because the device is full."""

        def judge(numbers: list[int]) -> None:
            raise MemoryError

        with pytest.raises(EngineError, match="batch of one"):
            detect(make(judge)[0], 8)
