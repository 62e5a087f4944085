"""Network faults as values: what the proxy (`proxy.py`) does to which frames of which clients.

Every fault counts in `hits` what it has touched, so that a test can wait until it has bitten, and fail where it never
did. A fault belongs to one proxy; make a new one for each use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import NamedTuple


class Api(IntEnum):
    """The requests of Kafka's protocol that faults here can choose."""

    PRODUCE = 0
    FETCH = 1
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    CONSUMER_GROUP_HEARTBEAT = 68


class Header(NamedTuple):
    """The beginning of every request. `api` may be a number that `Api` does not list."""

    api: int
    version: int
    correlation_id: int
    client_id: str

    @classmethod
    def parse(cls, request: bytes) -> Header:
        """request: a frame without its length. Raises ValueError where it cannot be one of Kafka."""
        try:
            api, version, correlation_id, size = struct.unpack_from(">hhih", request)
        except struct.error:
            raise ValueError(f"a request of {len(request)} bytes has no header") from None
        if not 0 <= size <= len(request) - 10:
            return cls(api, version, correlation_id, "")  # null, or cut short
        return cls(api, version, correlation_id, request[10 : 10 + size].decode(errors="replace"))


class Kind(Enum):
    CUT = auto()
    HOLD = auto()
    DROP = auto()
    DELAY = auto()
    THROTTLE = auto()


class Way(Enum):
    REQUESTS = auto()
    ANSWERS = auto()
    BOTH = auto()


@dataclass(eq=False)
class Fault:
    """Make one with the functions below. Empty `apis`, `clients` or `ports`: all of them.

    `ports`: those that clients are told for some of the brokers (the keys of the proxy's routes).

    `amount`: seconds for a delay, bytes a second for a throttle. `limit`: frames after which it touches no more.
    """

    kind: Kind
    way: Way = Way.BOTH
    apis: frozenset[int] = frozenset()
    clients: frozenset[str] = frozenset()
    amount: float = 0.0
    limit: int | None = None
    hits: int = 0
    ports: frozenset[int] = frozenset()
    _busy_until: dict[Way, float] = field(default_factory=dict)

    def touches(self, way: Way, header: Header | None, client_id: str | None, port: int | None = None) -> bool:
        """Whether a frame is among those that it is for. `header` is None for the end of a stream: no API's own."""
        return (
            self.way in (way, Way.BOTH)
            and (not self.apis or (header is not None and header.api in self.apis))
            and (not self.clients or client_id in self.clients)
            and (not self.ports or port in self.ports)
            and (self.limit is None or self.hits < self.limit)
        )

    def wait_s(self, way: Way, size: int, now: float) -> float:
        """For a throttle: how long `size` more bytes must wait, behind all that are under way."""
        begin = max(now, self._busy_until.get(way, 0.0))
        self._busy_until[way] = begin + size / self.amount
        return self._busy_until[way] - now


def cut(*clients: str) -> Fault:
    """Connections are reset, and so is every new one, until it is lifted."""
    return Fault(Kind.CUT, clients=frozenset(clients))


def cut_ports(*ports: int) -> Fault:
    """As `cut`, of all clients, but only the ways to the brokers behind these ports."""
    return Fault(Kind.CUT, ports=frozenset(ports))


def throttle_requests(bytes_per_second: float, *clients: str) -> Fault:
    """As `throttle`, for what is sent to the brokers; their answers come as fast as they can."""
    return Fault(Kind.THROTTLE, Way.REQUESTS, amount=bytes_per_second, clients=frozenset(clients))


def hold_answers(apis: Iterable[Api], *clients: str, limit: int | None = None) -> Fault:
    """The brokers do what these requests ask, and the client is told when it is lifted."""
    return Fault(Kind.HOLD, Way.ANSWERS, frozenset(apis), frozenset(clients), limit=limit)


def black_hole(*clients: str) -> Fault:
    """Connections stay and open, and nothing comes through. When lifted, what was sent arrives late, as TCP has it."""
    return Fault(Kind.HOLD, clients=frozenset(clients))


def delay(seconds: float, *clients: str) -> Fault:
    """Each frame arrives so much later, in both directions: a round trip takes twice that."""
    return Fault(Kind.DELAY, amount=seconds, clients=frozenset(clients))


def throttle(bytes_per_second: float, *clients: str) -> Fault:
    """All connections together get no more than this, in each direction."""
    return Fault(Kind.THROTTLE, amount=bytes_per_second, clients=frozenset(clients))


def drop_acknowledgements(*clients: str, limit: int | None = None) -> Fault:
    """Records are written and the producer is not told."""
    return drop_answers([Api.PRODUCE], *clients, limit=limit)


def drop(apis: Iterable[Api], *clients: str, limit: int | None = None) -> Fault:
    """These requests never arrive."""
    return Fault(Kind.DROP, Way.REQUESTS, frozenset(apis), frozenset(clients), limit=limit)


def drop_answers(apis: Iterable[Api], *clients: str, limit: int | None = None) -> Fault:
    """The brokers do what these requests ask, and the client is not told."""
    return Fault(Kind.DROP, Way.ANSWERS, frozenset(apis), frozenset(clients), limit=limit)


def hold_end_txn(*clients: str, limit: int | None = None) -> Fault:
    """Commits and aborts of transactions are sent and arrive only when it is lifted; what follows overtakes them."""
    return hold([Api.END_TXN], *clients, limit=limit)


def hold_heartbeats(*clients: str) -> Fault:
    """The group takes the client for dead, while all else of it goes on."""
    return hold([Api.HEARTBEAT, Api.CONSUMER_GROUP_HEARTBEAT], *clients)


def hold(apis: Iterable[Api], *clients: str, limit: int | None = None) -> Fault:
    """These requests arrive only when it is lifted, in their order, even if their client is gone by then."""
    return Fault(Kind.HOLD, Way.REQUESTS, frozenset(apis), frozenset(clients), limit=limit)
