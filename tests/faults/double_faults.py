"""Two harms at once: something happens to the brokers or on the way to them, and to the processes meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import process_faults
from consumer.errors import StalledError
from network import Fault, black_hole, cut, delay, drop_acknowledgements, hold_heartbeats
from network_faults import IMPATIENT
from scenario import Harm, World

Around = Callable[[World], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def _injected(world: World, fault: Fault) -> Iterator[None]:
    assert world.proxy is not None
    with world.proxy.injected(fault):
        yield
    assert fault.hits, f"{fault} has touched nothing"


@contextlib.contextmanager
def _broker_paused(world: World) -> Iterator[None]:
    node = world.chance.choice(world.cluster.nodes)
    world.cluster.pause(node)
    try:
        yield
    finally:
        world.cluster.resume(node)


@contextlib.contextmanager
def _broker_dead(world: World) -> Iterator[None]:
    node = world.chance.choice(world.cluster.nodes)
    world.cluster.kill(node)
    try:
        yield
    finally:
        world.cluster.restart(node)


AROUND: tuple[Around, ...] = (
    _broker_paused,
    _broker_dead,
    lambda world: _injected(world, cut()),
    lambda world: _injected(world, black_hole()),
    lambda world: _injected(world, delay(0.15)),
    lambda world: _injected(world, drop_acknowledgements()),
    lambda world: _injected(world, hold_heartbeats()),
)
# A clean stop is no part of this: a member that cannot reach the brokers cannot end cleanly.
WITHIN = (process_faults.kill_one, process_faults.kill_all, process_faults.stop_one)


def two_at_once(world: World) -> None:
    """A pair that chance chooses. The processes are harmed somewhere in the middle of the other harm."""
    around, within = world.chance.choice(AROUND), world.chance.choice(WITHIN)
    with around(world):
        world.last(0.3, 3.0)
        within(world)
        world.last(0.3, 3.0)


_PAIR: dict[str, Any] = {
    "deaths": None,
    "proxied": True,
    "options": IMPATIENT,
    "exits": (StalledError.exit_code,),  # as in `broker_faults`
}
HARMS = (
    Harm("two-at-once", two_at_once, **_PAIR),
    Harm("two-at-once-new-ids", two_at_once, new_ids=True, **_PAIR),
)
