"""Tests what stops the loop (too many rejections, a detector that hangs), and its heartbeat and metrics."""

from __future__ import annotations

import math
from typing import Any

import pytest

from consumer.concurrency import Stop
from consumer.errors import EngineError, RejectRateError
from consumer.types import DeviceMemory, Rejected
from made_frames import P0
from pipeline_runs import NEVER, run, until, world
from pipeline_world import BAD, UNPUBLISHABLE


class TestTheBreaker:
    LIMIT = {"max_consecutive": 5}

    def test_stops_the_run_after_too_many_rejections_in_a_row(self) -> None:
        """Catches draining a topic into the dead letters because a codec is missing."""
        made = world(20, payload=BAD, dead_letter=self.LIMIT)
        with pytest.raises(RejectRateError, match=r"5 frames in a row.*'damaged'.*sluice dlq list"):
            made.steps(100)
        assert len(made.publisher.published) == 5

    def test_counts_results_that_cannot_be_written(self) -> None:
        """Catches a breaker that counts only rejections by the detector: a half-precision model may return only NaN."""
        made = world(20, payload=UNPUBLISHABLE, dead_letter=self.LIMIT)
        with pytest.raises(RejectRateError, match="'unpublishable'"):
            made.steps(100)

    def test_one_good_frame_resets_the_count(self) -> None:
        made = world(dead_letter=self.LIMIT)
        for n in range(50):
            made.log.append(P0, "cam-1", BAD if n % 5 else b"good")
        until(made, lambda: made.source.stored.get(P0) == 50)
        assert sum(isinstance(outcome, Rejected) for _, outcome in made.publisher.published) == 40

    def test_is_off_at_zero(self) -> None:
        made = world(50, payload=BAD, dead_letter={"max_consecutive": 0})
        until(made, lambda: made.source.stored.get(P0) == 50)


class TestSupervision:
    def test_a_detector_that_does_not_return_ends_the_run(self) -> None:
        """Catches a consumer with a hung GPU that keeps its partitions indefinitely."""
        made = world(4, limits={"stall_timeout_s": 47})
        made.service_s = lambda: NEVER
        with pytest.raises(EngineError, match="stall_timeout_s"):
            made.steps(1_000_000)
        assert made.clock.now - 1000 == pytest.approx(47, abs=0.5)
        assert made.log.committed == {}

    def test_the_heartbeat_continues_in_every_iteration_and_in_a_drain(self) -> None:
        """Catches a watchdog that ends a process during a normal drain."""
        made = world(4, limits={"drain_timeout_s": 80, "stall_timeout_s": 45})
        made.service_s = lambda: 60.0
        ages: list[float] = []
        results = made.worker.results

        def watched(*waits_s: float) -> Any:
            ages.append(made.health.loop_age_s)
            return results(*waits_s)

        made.worker.results = watched  # type: ignore[method-assign]
        made.pipeline._limits = made.pipeline._limits.model_copy(update={"stall_timeout_s": 100})
        run(made, 2)
        assert max(ages) < 1
        assert made.log.committed == {P0: 4}

    def test_the_heartbeat_continues_between_waits_for_a_coordinator(self) -> None:
        """Catches a watchdog that ends a process during several waits for a coordinator, each within its limit."""
        made = world(4, limits={"stall_timeout_s": 45})
        delivery, ages = made.pipeline._delivery, []
        poll = made.source.poll

        def recover() -> None:
            made.clock.advance(18)

        def look_up(room: int, timeout_s: float, max_bytes: float = math.inf) -> Any:
            ages.append(made.health.loop_age_s)
            for _ in range(2):
                made.clock.advance(30)  # for the committed offsets of the new partitions
                made.pipeline.assigned({})
                ages.append(made.health.loop_age_s)
            return poll(room, timeout_s, max_bytes)

        delivery.broken, delivery.recover = True, recover  # type: ignore[misc, method-assign]
        made.source.poll = look_up  # type: ignore[method-assign]
        made.pipeline.step()
        assert ages == [0, 0, 0]

    def test_a_wait_for_a_coordinator_ends_with_a_stop(self) -> None:
        """Catches a pod that is not ready, or ignores a stop, in a rebalance while the coordinator is unavailable."""
        made, said = world(), []
        stop = Stop(made.clock)

        def look_up() -> None:
            for before in (lambda: None, stop.set):
                before()
                made.clock.advance(9)
                said.append((made.pipeline.waiting(), made.health.loop_age_s))

        made.source.rebalances.append((1, look_up))
        made.pipeline.run(stop)
        assert said == [(True, 0), (False, 0)]

    def test_device_memory_is_measured(self) -> None:
        made = world(4)
        made.worker.device, made.worker.device_memory = "cuda:0", DeviceMemory(3, 10)
        made.steps(5)
        assert made.metrics.registry.get_sample_value("sluice_gpu_memory_used_bytes", {"device": "cuda:0"}) == 3

    def test_frames_in_flight_are_measured(self) -> None:
        made = world(4, payload=bytes(100))
        made.service_s = lambda: NEVER
        made.steps(5)
        made.clock.advance(1)
        made.steps(2)
        sample = made.metrics.registry.get_sample_value
        assert sample("sluice_in_flight_frames") == 4
        assert sample("sluice_in_flight_bytes") == 4 * (100 + len("cam-0"))
        assert sample("sluice_assigned_partitions") == 2
