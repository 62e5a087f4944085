"""The values that `sluice verify` judges and says: spans, outcomes, violations, counts. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from consumer.types import TopicPartition

ViolationKind = Literal[
    "missing",  # a record below the committed offset has no outcome
    "repeat",  # exactly once: a record has another outcome
    "order",  # the outcomes of a source do not come in the order of its records
    "invented",  # an outcome of a record that is not in the input topic
    "commit_ahead",  # the group committed an offset beyond a record whose outcome was not written
]
KINDS: Final[tuple[ViolationKind, ...]] = ("missing", "repeat", "order", "invented", "commit_ahead")
Role = Literal["result", "dead_letter"]


class OffsetRange(NamedTuple):
    """One input partition and the offsets of it that are checked: `start` to `end` - 1.

    `log_end` is at least `end`: the next offset when the range was made. `committed` is -1 if the group has committed
    nothing. `gaps_are_none`: an offset without a record never held one that Sluice reads; false if the topic is
    compacted, or if nobody knows.
    """

    start: int
    end: int
    committed: int
    log_end: int
    gaps_are_none: bool = True


class Position(NamedTuple):
    """Where an outcome lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class Outcome(NamedTuple):
    """One record of the output topic (`result`) or of the dead-letter topic. `source` is "" if it is not known."""

    role: Role
    place: Position
    input: TopicPartition
    offset: int
    source: str

    @property
    def id(self) -> str:
        """The ID of the input record."""
        return record_id(self.input, self.offset)


@dataclass(frozen=True, slots=True)
class Violation:
    """`input` is the ID of the record, `place` where the outcome lies; None where there is none."""

    kind: ViolationKind
    input: str
    source: str | None
    place: str | None
    text: str


@dataclass(slots=True)
class PartitionCount:
    """What was found in one input partition, in records."""

    partition: TopicPartition
    span: OffsetRange
    records: int = 0
    answered: int = 0
    missing: int = 0
    pending: int = 0
    unjudged: int = 0
    out_of_order: int = 0


@dataclass(slots=True)
class CheckResult:
    """`totals` counts all violations of each kind, `violations` lists the first of each, `ignored` counts outcomes."""

    partitions: list[PartitionCount]
    totals: Counter[ViolationKind]
    violations: list[Violation]
    repeats: int
    ignored: Counter[str]
    sources: int

    @property
    def clean(self) -> bool:
        """Whether no promise was broken."""
        return not self.totals.total()


def record_id(partition: TopicPartition, offset: int) -> str:
    """`<topic>/<partition>/<offset>`, as the header `ce_id` has it."""
    return f"{partition.topic}/{partition.partition}/{offset}"


@dataclass(slots=True)
class Report:
    """The verdict, and what a reader must know beside it."""

    verdict: CheckResult
    outcomes_read: int
    notes: list[str]
