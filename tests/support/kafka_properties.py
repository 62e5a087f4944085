"""The `server.properties` of a test broker: a pure function from the shape of the cluster to its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = str | int | float | bool
HOST = "127.0.0.1"
LARGEST_MESSAGE = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Node:
    """One process that is both broker and controller."""

    id: int
    port: int
    controller_port: int
    data: str
    proxy: tuple[int, int] | None = None  # the port that clients are told, and the one that leads to the broker

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


def server_properties(node: Node, nodes: Sequence[Node], overrides: Mapping[str, Value]) -> dict[str, Value]:
    """What `node` of the cluster `nodes` is started with. `overrides` win, whatever they say."""
    return {**_identity(node, nodes), **_replication(len(nodes)), **_GROUPS, **_LOGS, **overrides}


def render(properties: Mapping[str, Value]) -> str:
    """In the syntax of a Java properties file."""
    return "".join(f"{name}={_text(value)}\n" for name, value in sorted(properties.items()))


def _text(value: Value) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _identity(node: Node, nodes: Sequence[Node]) -> dict[str, Value]:
    own, told, protocols = "", "", ""
    if node.proxy is not None:
        front, back = node.proxy
        own, told, protocols = f",PROXIED://{HOST}:{back}", f",PROXIED://{HOST}:{front}", ",PROXIED:PLAINTEXT"
    return {
        "process.roles": "broker,controller",
        "node.id": node.id,
        "controller.quorum.voters": ",".join(f"{each.id}@{HOST}:{each.controller_port}" for each in nodes),
        "listeners": f"CLIENT://{node.address},CONTROLLER://{HOST}:{node.controller_port}{own}",
        "advertised.listeners": f"CLIENT://{node.address}{told}",
        "listener.security.protocol.map": f"CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}",
        "inter.broker.listener.name": "CLIENT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": node.data,
    }


def _replication(nodes: int) -> dict[str, Value]:
    """As in production from three nodes on: acks=all means two of three, and one may die."""
    replicas = min(nodes, 3)
    in_sync = min(replicas, 2) if nodes >= 3 else 1
    return {
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 4,
    }


_GROUPS: Mapping[str, Value] = {
    "group.initial.rebalance.delay.ms": 0,
    # Let a test ask for a quick death; the defaults would refuse it.
    "group.min.session.timeout.ms": 1000,
    "group.consumer.min.session.timeout.ms": 1000,
    "group.consumer.min.heartbeat.interval.ms": 100,
    # With KIP-848 the broker sets both. Its heartbeat of 5 s would be the length of each step of a rebalance.
    "group.consumer.session.timeout.ms": 6000,
    "group.consumer.heartbeat.interval.ms": 500,
}

_LOGS: Mapping[str, Value] = {
    "auto.create.topics.enable": False,
    "message.max.bytes": LARGEST_MESSAGE,
    "replica.fetch.max.bytes": LARGEST_MESSAGE,
    # A test that is stopped in a debugger finds its records again.
    "log.retention.ms": -1,
    "log.retention.bytes": -1,
    # The default of 128 MB is a quarter of the heap; the compacted topics here are tiny.
    "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
}
