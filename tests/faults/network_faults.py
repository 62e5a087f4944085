"""Harm between the members and the brokers: every member reaches its brokers through the proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consumer.errors import PublishError, StalledError
from fleet import client_id
from network import (
    Api,
    Fault,
    black_hole,
    cut,
    delay,
    drop_acknowledgements,
    hold,
    hold_answers,
    hold_end_txn,
    hold_heartbeats,
    throttle,
)
from scenario import SESSION_S, Harm, World

# Clients give a request up after this: with the default of a minute, a lost answer would be all that a run sees.
REQUEST_TIMEOUT_MS = 3000
IMPATIENT: dict[str, Any] = {
    "kafka.client": {"socket.timeout.ms": REQUEST_TIMEOUT_MS, "reconnect.backoff.max.ms": 500},
    "kafka.producer": {"request.timeout.ms": REQUEST_TIMEOUT_MS},
}


def to_one(make: Callable[..., Fault], at_least_s: float, at_most_s: float) -> Callable[[World], None]:
    """The fault, for a while, to all clients of one member."""

    def inflict(world: World) -> None:
        _inflict(world, make(client_id(world.any_member().slot)), at_least_s, at_most_s)

    return inflict


def to_all(make: Callable[..., Fault], at_least_s: float, at_most_s: float) -> Callable[[World], None]:
    def inflict(world: World) -> None:
        _inflict(world, make(), at_least_s, at_most_s)

    return inflict


def _inflict(world: World, fault: Fault, at_least_s: float, at_most_s: float) -> None:
    assert world.proxy is not None
    with world.proxy.injected(fault):
        world.last(at_least_s, at_most_s)
    # The limits of a run are for harm that was done: one that was not must not count as survived.
    assert fault.hits, f"{fault} has touched nothing"


def _slow_network(*clients: str) -> Fault:
    return delay(0.15, *clients)


def _thin_network(*clients: str) -> Fault:
    return throttle(60_000, *clients)


def _hold_produce(*clients: str) -> Fault:
    """Outcomes are on their way, and commits could overtake them."""
    return hold([Api.PRODUCE], *clients)


def _hold_answers_to_commits(*clients: str) -> Fault:
    """Transactions are committed, and the member that asked for it does not know."""
    return hold_answers([Api.END_TXN], *clients)


_LONG = (SESSION_S * 1.5, SESSION_S * 3)


def _harm(name: str, inflict: Callable[[World], None], **more: Any) -> Harm:
    """StalledError is explained, as in `broker_faults`: a call of the client library may not come back."""
    more = {"exits": (StalledError.exit_code,), **more}
    return Harm(f"net-{name}", inflict, proxied=True, options=IMPATIENT, **more)


_DIED = (StalledError.exit_code, PublishError.exit_code)

# `deaths=None` where a member can lose its partitions, or a commit, without knowing: what is written around the strike
# is exposed then.
HARMS = (
    _harm("cut-one", to_one(cut, 0.5, SESSION_S * 2), deaths=None),
    _harm("cut-all", to_all(cut, 0.5, SESSION_S * 2), deaths=None),
    _harm("black-hole-one", to_one(black_hole, *_LONG), deaths=None),
    _harm("black-hole-all", to_all(black_hole, *_LONG), deaths=None),
    _harm("slow", to_all(_slow_network, 3.0, 6.0), deaths=0),
    _harm("thin", to_all(_thin_network, 3.0, 6.0), deaths=None),
    # Several unanswered requests to one partition can be a fatal error of the idempotent producer ("rewound sequence
    # number"): the process ends with 5, and its successor repeats what was not acknowledged.
    _harm("acks-dropped", to_one(drop_acknowledgements, 1.0, REQUEST_TIMEOUT_MS / 1000 * 2), deaths=None, exits=_DIED),
    _harm("produce-held", to_one(_hold_produce, 1.0, REQUEST_TIMEOUT_MS / 1000 * 2), deaths=None),
    _harm("heartbeats-held", to_one(hold_heartbeats, *_LONG), deaths=None),
    # A transaction is given up after ten seconds: some of these outlast that, some do not.
    _harm("end-txn-held", to_one(hold_end_txn, 1.0, 16.0), deliveries=("exactly_once",)),
    _harm("end-txn-unanswered", to_one(_hold_answers_to_commits, 1.0, 16.0), deliveries=("exactly_once",)),
)
