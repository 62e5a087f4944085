"""Harm to the processes of the group."""

from __future__ import annotations

import signal

from scenario import DELIVERIES, SESSION_S, Harm, World
from sluice_entry import AT_LEAST_ONCE, DIE_AT, EXACTLY_ONCE, STAGES


def kill_one(world: World) -> None:
    """SIGKILL at a random moment."""
    world.fleet.kill(world.any_member())


def kill_all(world: World) -> None:
    """SIGKILL of every member, as when a node pool goes: no partition has an owner left."""
    for member in list(world.fleet.members):
        world.fleet.kill(member)


def dies_at(stage: str) -> Harm:
    """A member that kills itself on its way through a stage. It joins the group, and dies with its first partitions."""

    def inflict(world: World) -> None:
        passage = world.chance.randrange(1, 20) if stage != "commit" else 1
        mortal = world.fleet.start(variables={DIE_AT: f"{stage}:{passage}"})
        mortal.doomed = True
        if stage == "commit":
            world.wait(lambda: mortal.partitions, 60, "the member that is to die to have its share")
            mortal.signal(signal.SIGTERM)
        world.wait_for_death(mortal, 60)

    deliveries = [
        each for each in DELIVERIES if stage not in (EXACTLY_ONCE if each == "at_least_once" else AT_LEAST_ONCE)
    ]
    # The stage says where decoding must take place: with the other setting, the member would live on.
    workers = {"decode": "processes", "decode_threads": "threads"}.get(stage, "auto")
    return Harm(
        f"sigkill-{stage.replace('_', '-')}",
        inflict,
        deaths=1,
        deliveries=tuple(deliveries),
        options={"decode.workers": workers},
    )


def stop_one(world: World) -> None:
    """SIGSTOP for longer than the session: the others take over, and then it wakes up and does not know."""
    member = world.any_member()
    member.signal(signal.SIGSTOP)
    world.last(SESSION_S * 1.5, SESSION_S * 3)
    member.signal(signal.SIGCONT)


def terminate_one(world: World) -> None:
    """SIGTERM, and a successor once it is gone."""
    member = world.any_member()
    world.fleet.retire(member)
    world.fleet.start(member.slot)


def rolling_restart(world: World) -> None:
    """Each in turn: SIGTERM, and on with the next when the successor is ready."""
    for member in list(world.fleet.members):
        world.fleet.retire(member)
        successor = world.fleet.start(member.slot)
        world.wait(lambda new=successor: new.ready, 60, "the successor to be ready")


def scale_storm(world: World) -> None:
    """Between one and four members, up and down, faster than the group settles."""
    for size in world.chance.choices(range(1, 5), k=4):
        while len(world.fleet.members) > size:
            world.fleet.retire(world.any_member())
        while len(world.fleet.members) < size:
            world.fleet.start()
        world.last(0.5, 4.0)
    while len(world.fleet.members) < 2:
        world.fleet.start()


HARMS = (
    Harm("sigkill", kill_one, deaths=1),
    Harm("sigkill-all", kill_all, deaths=2),
    *(dies_at(stage) for stage in STAGES),
    Harm("sigstop", stop_one, deaths=1),
    Harm("sigterm", terminate_one),
    Harm("rolling-restart", rolling_restart, strikes=1),
    Harm("scale-storm", scale_storm, strikes=1),
)
