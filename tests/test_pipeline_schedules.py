"""The promises of the loop under any schedule: see `pipeline_world` for where each one is checked."""

from __future__ import annotations

from unittest import mock

from hypothesis import HealthCheck, example, given, settings

from consumer.errors import DrainError, EngineError, PublishError
from consumer.metrics import Metrics
from pipeline_chaos import CONFIG, DRAIN_S, ENTROPY, PARTITIONS, Chaos, Quiet
from pipeline_world import Chance, Log, World

METRICS = Metrics()  # one for all: making them takes longer than a schedule
# One wait of the loop may end behind the deadline.
_SLACK_S = 0.1


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(entropy=ENTROPY)
@example(entropy=b"")
@mock.patch("consumer.pipeline._log", mock.Mock())  # thousands of rejected frames, a line each
def test_no_schedule_breaks_a_promise(entropy: bytes) -> None:
    """Catches a commit before its acknowledgement, an epoch that is not looked at, a frame that falls between two
    steps, bytes that are never given back, and a drain that waits for ever."""
    log = Log({partition: [] for partition in PARTITIONS})
    world = World(log, CONFIG, METRICS)
    stop = Chaos(world, Chance(entropy))
    stalled = failed = False
    try:
        world.pipeline.run(stop)  # type: ignore[arg-type] # all that is asked of it is is_set()
    except DrainError:
        assert stop.stopped_at is not None
        assert world.clock.now - stop.stopped_at >= DRAIN_S - 1e-6, "it gave up before its time"
    except PublishError:
        failed = True
        assert stop.failing
    except EngineError:  # it looked in vain for longer than limits.stall_timeout_s
        stalled = True
    assert world.source.closed
    assert world.source.longest_rebalance_s <= DRAIN_S / 2 + _SLACK_S
    if stop.stopped_at is not None and not (stalled or failed):
        assert world.clock.now - stop.stopped_at <= DRAIN_S + _SLACK_S
        world.check()

    successor = World(log, CONFIG, METRICS)
    successor.pipeline.run(Quiet(successor))  # type: ignore[arg-type]
    log.check_complete()
    assert successor.pipeline._held_bytes == 0
    assert len(successor.publisher.published) == len({f.receipt for f, _ in successor.publisher.published})
