"""Harm to the brokers: three nodes, replication 3, two of them needed for a write."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from consumer.errors import StalledError
from scenario import PARTITIONS, Harm, World


def chase_the_leader(world: World) -> None:
    """Kill the leader of a partition; once there is another, start the first and kill that one."""
    topic = world.chance.choice([world.topics.frames, world.topics.detections])
    partition = world.chance.randrange(PARTITIONS)
    for _ in range(2):
        leader = world.cluster.leader(topic, partition)
        world.cluster.kill(leader)
        world.wait(_led_by_another(world, topic, partition, leader), 60, f"a successor of node {leader} as leader")
        world.last(0.0, 3.0)
        world.cluster.restart(leader)
        world.wait(world.cluster.in_sync, 60, "all replicas to be in sync")


def rolling_bounce(world: World) -> None:
    """SIGTERM and start of each node, as in an upgrade of the brokers."""
    for node in world.cluster.nodes:
        world.cluster.restart(node)
        world.wait(world.cluster.in_sync, 60, "all replicas to be in sync")


def pause_one(world: World) -> None:
    """SIGSTOP: its connections stay and nobody answers; sometimes for so long that the others give it up."""
    node = world.chance.choice(world.cluster.nodes)
    world.cluster.pause(node)
    try:
        world.last(2.0, 12.0)
    finally:
        world.cluster.resume(node)


def all_down(world: World) -> None:
    """SIGKILL of all nodes at once, as in a power cut, and all back later."""
    for node in world.cluster.nodes:
        world.cluster.kill(node)
    world.last(1.0, 8.0)
    world.cluster.start(*world.cluster.nodes)


def min_isr_lost(world: World) -> None:
    """Two of three nodes go: what is left takes no writes, and cannot elect a controller either."""
    gone = world.chance.sample(world.cluster.nodes, 2)
    for node in gone:
        world.cluster.kill(node)
    world.last(1.0, 8.0)
    world.cluster.start(*gone)


def disk_full(world: World) -> None:
    """The disk of one node is full: its next write fails, and the node goes down with its only log directory."""
    node = world.chance.choice(world.cluster.nodes)
    filler = world.cluster.data(node) / "filler"
    _fill(filler)
    try:
        world.wait(lambda: not world.cluster.runs(node), 60, f"node {node} to notice that its disk is full")
        world.last(0.0, 3.0)
    finally:
        filler.unlink()
    world.cluster.restart(node)


def _led_by_another(world: World, topic: str, partition: int, dead: int) -> Callable[[], bool]:
    def led() -> bool:
        try:
            return world.cluster.leader(topic, partition) not in {-1, dead}
        except KafkaException:
            return False

    return led


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"\0" * min(2**20, max(1, shutil.disk_usage(path.parent).free)))


def _harm(name: str, inflict: Callable[[World], None], **more: Any) -> Harm:
    """While the brokers are away, neither commits nor leases arrive: what is written around the strike is exposed.

    StalledError is explained: the client library may not come back from a call to brokers that went away (its issue
    5456), and then the watchdog ends the process.
    """
    return Harm(name, inflict, deaths=None, exits=(StalledError.exit_code,), **more)


HARMS = (
    _harm("leader-chase", chase_the_leader, strikes=1),
    _harm("rolling-bounce", rolling_bounce, strikes=1),
    _harm("broker-pause", pause_one),
    _harm("all-brokers-down", all_down, strikes=1),
    _harm("min-isr-lost", min_isr_lost, strikes=1),
    _harm("disk-full", disk_full, strikes=1),
)
