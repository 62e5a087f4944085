"""Outages that last longer than the members' time limits for a delivery and for a transaction, which are short here.

A member may end with exit code 5 when a result was not delivered in time. It is restarted, as a pod would be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consumer.errors import PublishError, StalledError
from network import cut, cut_ports
from scenario import PARTITIONS, Harm, World

DELIVERY_S = 5.0
TRANSACTION_S = 6.0
_OPTIONS: dict[str, Any] = {
    "kafka.client": {"socket.timeout.ms": 3000, "reconnect.backoff.max.ms": 500},
    "kafka.producer": {
        "request.timeout.ms": 2000,
        "delivery.timeout.ms": int(DELIVERY_S * 1000),
        "transaction.timeout.ms": int(TRANSACTION_S * 1000),
    },
}


def cut_one_broker(world: World) -> None:
    """The way of all members to the leader of an output partition is cut until about when results expire.

    The other partitions go on. A correct program keeps the order of each source: what was not delivered in time comes
    again before what was sent behind it.
    """
    assert world.proxy is not None
    leader = world.cluster.leader(world.topics.detections, world.chance.randrange(PARTITIONS))
    fault = cut_ports(list(world.cluster.routes)[world.cluster.nodes.index(leader)])
    with world.proxy.injected(fault):
        world.last(DELIVERY_S - 0.5, DELIVERY_S + 1.5)
    assert fault.hits, "the way to the leader was not used"


def cut_all_brokers(world: World) -> None:
    """No member reaches any broker for longer than results may take, and longer than the session."""
    assert world.proxy is not None
    fault = cut()
    with world.proxy.injected(fault):
        world.last(DELIVERY_S * 1.2, DELIVERY_S * 2.5)
    assert fault.hits, "no member had a connection"


def kill_all_brokers(world: World) -> None:
    """All nodes are gone for longer than results may take."""
    for node in world.cluster.nodes:
        world.cluster.kill(node)
    world.last(DELIVERY_S * 1.2, DELIVERY_S * 2.5)
    world.cluster.start(*world.cluster.nodes)


def _harm(name: str, inflict: Callable[[World], None], **more: Any) -> Harm:
    exits = (PublishError.exit_code, StalledError.exit_code)
    return Harm(f"outage-{name}", inflict, deaths=None, options=_OPTIONS, exits=exits, **more)


HARMS = (
    _harm("one-broker", cut_one_broker, proxied=True, strikes=3),
    _harm("way", cut_all_brokers, proxied=True),
    _harm("brokers", kill_all_brokers, strikes=1),
)
