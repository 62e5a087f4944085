"""One schedule from start to end, in either delivery: a process to which anything may happen, then one that ends it.

What breaks a promise is raised out of the call that breaks it, as an AssertionError of the world or as the program's
own error where it notices itself.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

from consumer.errors import DrainError, EngineError, KafkaError, PublishError
from consumer.kafka.dead_letter_queue import LetterLine
from consumer.observability.metrics import Metrics
from pipeline_chaos import CONFIG, DRAIN_S, PARTITIONS, Chaos, Quiet
from pipeline_group import Chance, Log
from pipeline_world import BAD, UNPUBLISHABLE, World
from transaction_world import FATES, ExactlyOnceWorld

# How many `make test` runs, in each delivery; SLUICE_TEST_SCHEDULES=10000 for the long campaign.
COUNT = int(os.environ.get("SLUICE_TEST_SCHEDULES", "1500"))
RUN = 200
# Dead letters on their way, above which others wait: one at a time.
LETTERS_BYTES = 0
METRICS = Metrics()  # one for all: making them takes longer than a schedule
# One wait of the loop may end behind the deadline.
_SLACK_S = 0.1


def at_least_once(entropy: bytes) -> None:
    """Raises where a promise is broken under what these bytes let happen."""
    log = Log({partition: [] for partition in PARTITIONS}, rejected=(BAD, UNPUBLISHABLE))
    world = World(log, CONFIG, METRICS)
    world.publisher.line = LetterLine(LETTERS_BYTES)
    _suffer(world, Chance(entropy), PublishError)
    successor = World(log, CONFIG, METRICS)
    _finish(successor)
    assert len(successor.publisher.published) == len({f.receipt for f, _ in successor.publisher.published})


def exactly_once(entropy: bytes) -> None:
    """The same with transactions, each of which may fail at any point."""
    log = Log({partition: [] for partition in PARTITIONS})
    world = ExactlyOnceWorld(log, CONFIG, METRICS)
    chance = Chance(entropy)
    world.publisher.fate = lambda: chance.pick(["commits", "commits", *FATES])
    world.publisher.takes_s = lambda: chance.pick([0.01, 0.3, 4.0, 12.0])
    world.publisher.renewal_fails = lambda: chance.of(4) == 3
    world.source.rewind_fails = lambda: chance.of(4) == 3
    _suffer(world, chance, KafkaError)
    _finish(ExactlyOnceWorld(log, CONFIG, METRICS))


@contextlib.contextmanager
def without_logs() -> Iterator[None]:
    """Thousands of rejected frames and failed transactions would be a line each."""
    with contextlib.ExitStack() as stack:
        for module in ("delivery.circuit_breaker", "delivery.exactly_once", "pipeline"):
            stack.enter_context(mock.patch(f"consumer.{module}._log", mock.Mock()))
        yield


def first_violation(schedule: Callable[[bytes], None], seed: int) -> str:
    """A run of `RUN` schedules: what the first that breaks a promise says; "" where all keep them."""
    chance = random.Random(seed)
    for _ in range(RUN):
        try:
            schedule(chance.randbytes(chance.choice([0, 20, 80, 300])))  # 300: decisions until the end
        except (AssertionError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
    return ""


SCHEDULES: Mapping[str, Callable[[bytes], None]] = {"at_least_once": at_least_once, "exactly_once": exactly_once}


def _suffer(world: World, chance: Chance, refusal: type[KafkaError]) -> None:
    stop = Chaos(world, chance)
    drained = False
    try:
        world.pipeline.run(stop)
        drained = True
    except DrainError:
        # With a transaction in doubt, or outside the group, there is nothing to wait for.
        in_vain = world.pipeline._delivery.broken or world.pipeline._delivery.expelled
        assert in_vain or world.clock.now - stop.at >= DRAIN_S - 1e-6, "it gave up before its time"
    except refusal:
        pass
    except EngineError:  # it broke, or the loop looked in vain for longer than limits.stall_timeout_s
        assert world.worker.broken or world.worker.busy_since is not None
    assert world.source.closed
    assert world.source.longest_rebalance_s <= DRAIN_S / 2 + _SLACK_S
    if drained:
        assert world.clock.now - stop.at <= DRAIN_S + _SLACK_S
        world.check()
        world.log.check_nothing_is_repeated(world.source.owned)


def _finish(successor: World) -> None:
    successor.pipeline.run(Quiet(successor))
    successor.log.check_complete()
    assert successor.pipeline._held_bytes == 0
