"""What makes the loop stop by itself: too many rejections, an engine that hangs; and what it says about itself."""

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

    def test_stops_when_frame_after_frame_is_rejected(self) -> None:
        """Catches draining a topic into the dead letters because a codec is missing."""
        made = world(20, payload=BAD, dead_letter=self.LIMIT)
        with pytest.raises(RejectRateError, match=r"5 frames in a row.*'damaged'.*sluice dlq list"):
            made.steps(100)
        assert len(made.publisher.published) == 5

    def test_counts_what_cannot_be_written_too(self) -> None:
        """Catches a breaker that looks at the engine alone: a model in half precision that sees only NaN."""
        made = world(20, payload=UNPUBLISHABLE, dead_letter=self.LIMIT)
        with pytest.raises(RejectRateError, match="'unpublishable'"):
            made.steps(100)

    def test_one_good_frame_starts_the_count_anew(self) -> None:
        made = world(dead_letter=self.LIMIT)
        for n in range(50):
            made.log.append(P0, "cam-1", BAD if n % 5 else b"good")
        until(made, lambda: made.source.stored.get(P0) == 50)
        assert sum(isinstance(outcome, Rejected) for _, outcome in made.publisher.published) == 40

    def test_is_off_at_zero(self) -> None:
        made = world(50, payload=BAD, dead_letter={"max_consecutive": 0})
        until(made, lambda: made.source.stored.get(P0) == 50)


class TestWatchingOver:
    def test_an_engine_that_does_not_return_ends_the_run(self) -> None:
        """Catches a consumer that keeps its partitions for ever with a hung GPU."""
        made = world(4, limits={"stall_timeout_s": 47})
        made.service_s = lambda: NEVER
        with pytest.raises(EngineError, match="stall_timeout_s"):
            made.steps(1_000_000)
        assert made.clock.now - 1000 == pytest.approx(47, abs=0.5)
        assert made.log.committed == {}

    def test_the_loop_beats_in_every_turn_and_while_it_settles(self) -> None:
        """Catches a watchdog that ends a process in the middle of an orderly drain."""
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

    def test_the_loop_beats_between_the_waits_of_a_recovery_and_of_rebalances(self) -> None:
        """Catches a watchdog that ends a process that waits for an absent coordinator, each time within limits."""
        made = world(4, limits={"stall_timeout_s": 45})
        delivery, ages = made.pipeline._delivery, []
        poll = made.source.poll

        def recover() -> None:
            made.clock.advance(18)

        def look_up(room: int, timeout_s: float, max_bytes: float = math.inf) -> Any:
            ages.append(made.health.loop_age_s)
            for _ in range(2):
                made.clock.advance(30)  # for the committed offsets of what comes
                made.pipeline.assigned({})
                ages.append(made.health.loop_age_s)
            return poll(room, timeout_s, max_bytes)

        delivery.broken, delivery.recover = True, recover  # type: ignore[misc, method-assign]
        made.source.poll = look_up  # type: ignore[method-assign]
        made.pipeline.step()
        assert ages == [0, 0, 0]

    def test_a_wait_for_a_coordinator_beats_and_ends_with_a_stop(self) -> None:
        """Catches a pod that is not ready, or deaf to a stop, in a rebalance behind an absent coordinator."""
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

    def test_what_the_device_holds_is_measured(self) -> None:
        made = world(4)
        made.worker.device, made.worker.device_memory = "cuda:0", DeviceMemory(3, 10)
        made.steps(5)
        assert made.metrics.registry.get_sample_value("sluice_gpu_memory_used_bytes", {"device": "cuda:0"}) == 3

    def test_what_is_held_is_measured(self) -> None:
        made = world(4, payload=bytes(100))
        made.service_s = lambda: NEVER
        made.steps(5)
        made.clock.advance(1)
        made.steps(2)
        sample = made.metrics.registry.get_sample_value
        assert sample("sluice_in_flight_frames") == 4
        assert sample("sluice_in_flight_bytes") == 4 * (100 + len("cam-0"))
        assert sample("sluice_assigned_partitions") == 2
