"""Trouble of the simulated engine (`consumer/detectors/scripted.py`), from the start of each process on."""

from __future__ import annotations

from scenario import Harm, World


def go_on(world: World) -> None:
    """The engines do the harm."""
    world.last(4.0, 8.0)


HARMS = (
    Harm("engine-errors", go_on, engine_faults="?fault=error@*/9"),
    Harm("engine-out-of-memory", go_on, engine_faults="?fault=oom>2@10+"),
    Harm("engine-hiccups", go_on, engine_faults="?fault=slow:2500ms@*/50"),
)
