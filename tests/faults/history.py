"""What one run of the rig saw. Plain data, so that a history can be made by hand, saved, and judged again.

Times named `_s` are of one monotonic clock, the rig's. Times named `_ms` are Unix milliseconds, the members' own: all
run on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Delivery = Literal["at_least_once", "exactly_once"]


class InputId(NamedTuple):
    """The coordinates of a record of the input topic; the `id` of its outcome says them."""

    partition: int
    offset: int


class Position(NamedTuple):
    """Where an outcome lies: in the output topic, or among the dead letters."""

    topic: str
    partition: int
    offset: int


OutcomeKind = Literal["detected", "rejected", "skipped"]


@dataclass(frozen=True, slots=True)
class Content:
    """What an outcome says of its frame; of an input record: what its outcome has to say.

    `reason`: of a rejection or a skip. `size`: width and height of the original picture. `boxes`: all detections, in
    pixels. `frame`: the SHA-256 of the encoded frame, which an input record has and a dead letter returns. `of`: the
    input record that the body of the outcome names, beside its header `ce_id`; None where the body names none.
    `written_ms`: when the input record was written, by its timestamp, which a dead letter returns; 0 in results.
    """

    kind: OutcomeKind
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    boxes: tuple[tuple[float, ...], ...] = ()
    frame: str = ""
    of: InputId | None = None
    written_ms: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """A record of the input topic. `expected` is None where the record itself was not read back."""

    id: InputId
    source: str
    expected: Content | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record of the output or dead-letter topic. `writer` is "" where it does not say which process wrote it.

    `content` is None only in histories that were kept before content was recorded.
    """

    id: InputId
    source: str
    position: Position
    writer: str
    published_ms: int
    arrived_s: float
    content: Content | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The group's committed offsets, and then, asked after their answer had come, the ends of the output topics.

    In that order: an outcome behind these ends had not been acknowledged when the offsets were committed.
    """

    asked_s: float
    committed: Mapping[int, int]  # input partition -> next offset to read; a partition without a commit is absent
    ends: Mapping[tuple[str, int], int]  # (topic, partition) -> the offset that the next record gets


class Commit(NamedTuple):
    """A line of the brokers' log of committed offsets."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Rebalance:
    """A line of a member's log. It is written before the member acts on it."""

    writer: str
    at_ms: float
    event: Literal["assigned", "revoked", "lost"]
    partitions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault, from its first harm until the last of it was mended (a killed process: until it was started anew)."""

    fault: str
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Exit:
    """A process of the fleet that ended without having been told to. It was started anew."""

    writer: str
    code: int
    last_words: str


@dataclass(frozen=True, slots=True)
class Traceback:
    """A Python traceback in a member's log. `last_line` names the exception."""

    writer: str
    last_line: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """How long before and after a strike an outcome may be written that its writer cannot commit, in seconds.

    See `limits.check_repeats`.
    """

    before_s: float
    after_s: float


@dataclass(slots=True)
class History:
    """Everything about one run. `outcomes` of one output partition are in the order of the log."""

    delivery: Delivery
    acknowledged: list[Sent] = field(default_factory=list)  # what the brokers promised the feeder to keep
    inputs: list[Sent] = field(default_factory=list)  # the input topic, read after the run
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)  # of one partition in the order of the log
    rebalances: list[Rebalance] = field(default_factory=list)  # of one writer in the order of its log
    strikes: list[Strike] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    unclean_ends: list[int] = field(default_factory=list)  # exit codes of the members that were told to end, if not 0
    put_out: int = 0  # members that were told to end when their group had put them out, and ended with that message
    final: Sample | None = None  # taken when all members had ended; None where the run did not get so far
    backlog_s: float = 0.0  # from the last frame that was acknowledged until all had their outcome
    stuck: str = ""  # what was waited for in vain while nothing was broken
    allowed_repeats: int = 0  # at least once: outcomes that may be repeated, whatever the strikes lasted
    exposure: Exposure | None = None  # at least once: what each strike adds to that; None: nothing
    may_reject: frozenset[str] = frozenset()  # reasons for which the harm may make a dead letter of a good frame
    may_exit: frozenset[int] = frozenset()  # codes with which the harm may end a process
    tracebacks: list[Traceback] = field(default_factory=list)
    memory_bytes: dict[str, int] = field(default_factory=dict)  # writer -> peak of the process and its children
    in_flight_limit_bytes: int = 0  # limits.max_in_flight_bytes of the run; 0: memory was not measured
    memory_base_bytes: int = 0  # what a member may use beside that
    recovery_limit_s: float = 60.0
