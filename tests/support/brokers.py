"""The two brokers that Sluice's tests run on, behind one face, and what each of them can do."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What differs between the brokers. `tests/integration/test_brokers.py` checks every line on every broker."""

    transactions: bool  # a read_committed reader never sees what was aborted
    exact_end_offsets: bool  # ListOffsets gives the end of a partition, not the start of its last batch
    offsets_by_time: bool  # offsets_for_times() finds the record
    consumer_protocol: bool  # KIP-848, group.protocol=consumer
    delete_records: bool  # DeleteRecords works
    creates_topics_by_itself: bool  # a record for an unknown topic makes the topic
    join_seconds: float  # bound on: subscribe() to the first assignment of a group's first member
    share_seconds: float  # bound on: the start of a second member's process to both having their share
    takeover_seconds: float  # bound on: SIGKILL of a member to the other having everything


# Bounds are two to three times what two idle cores take (embedded 3, 11 and 9 s; Apache Kafka 0.3-3, 2 and 7 s).
EMBEDDED = Capabilities(
    transactions=False,
    exact_end_offsets=False,
    offsets_by_time=False,
    consumer_protocol=False,
    delete_records=False,
    creates_topics_by_itself=True,
    join_seconds=10,
    share_seconds=30,
    takeover_seconds=25,
)
# A cluster from outside (SLUICE_TEST_BOOTSTRAP_SERVERS) is held to this, too.
APACHE = Capabilities(
    transactions=True,
    exact_end_offsets=True,
    offsets_by_time=True,
    consumer_protocol=True,
    delete_records=True,
    creates_topics_by_itself=False,
    join_seconds=10,
    share_seconds=15,
    takeover_seconds=20,
)


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker. `client_settings` are for consumers, beside `bootstrap.servers`.

    `own_settings` are for the tests' own clients of a guarded broker, on which they may do everything.
    """

    name: str
    bootstrap_servers: str
    client_settings: Mapping[str, Setting]
    capabilities: Capabilities
    make_topic: Callable[..., None] = field(repr=False)
    own_settings: Mapping[str, Setting] = field(default_factory=dict)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        self.make_topic(name, partitions)

    def new_topic(self, partitions: int = 1) -> str:
        """Make a topic that no other test knows, and return its name."""
        name = unique_name("topic")
        self.create_topic(name, partitions)
        return name


_numbers = itertools.count(1)
_run = uuid.uuid4().hex[:8]


def unique_name(prefix: str) -> str:
    """A name for a topic or a group. Also unique among runs: a broker from outside remembers earlier ones."""
    return f"{prefix}-{_run}-{next(_numbers)}"
