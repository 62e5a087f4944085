"""Short ways to make a `World` and to run its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consumer.concurrency import Stop
from consumer.config import Config
from consumer.types import TopicPartition
from made_frames import P0, P1, VirtualClock
from pipeline_group import Log
from pipeline_world import BAD, UNPUBLISHABLE, World

NEVER = 1e9


def world(records: int = 0, payload: bytes = b"good", **sections: Any) -> World:
    """A pipeline that owns P0 and P1, with so many records in P0, one of each of two cameras in turn."""
    log = Log({P0: [], P1: []}, rejected=(BAD, UNPUBLISHABLE))
    made = World(log, Config(**{"batching": {"max_batch_size": 4}, **sections}))
    for n in range(records):
        log.append(P0, f"cam-{n % 2}", payload)
    made.source.subscribe()
    made.source.rebalances.append((0, lambda: made.source.assign([P0, P1])))
    return made


def until(made: World, state: Callable[[], object], turns: int = 2000) -> None:
    for _ in range(turns):
        if state():
            return
        made.steps()
    raise AssertionError(f"not within {turns} turns")


class _After(Stop):
    """Set after so many turns."""

    def __init__(self, clock: VirtualClock, turns: int, then: Callable[[], None]) -> None:
        super().__init__(clock)
        self.left, self.then = turns, then

    def is_set(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.then()
            self.set()
        return self.left < 0


def run(made: World, turns: int, then: Callable[[], None] = lambda: None) -> None:
    made.pipeline.run(_After(made.clock, turns, then))


def published(made: World) -> list[tuple[TopicPartition, int]]:
    return [(item.receipt.partition, item.receipt.offset) for item, _ in made.publisher.published]
