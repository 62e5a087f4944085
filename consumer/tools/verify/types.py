"""The value types of `sluice verify`: offset ranges, outcomes, violations, counts. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from consumer.types import TopicPartition

ViolationKind = Literal[
    "missing",  # a record below the committed offset has no outcome
    "repeat",  # exactly once: a record has a second outcome
    "order",  # the outcomes of a source are not in the order of its records
    "invented",  # an outcome of a record that is not in the input topic
    "commit_ahead",  # the group committed an offset before the outcome of a record below it was written
]
KINDS: Final[tuple[ViolationKind, ...]] = ("missing", "repeat", "order", "invented", "commit_ahead")
Role = Literal["result", "dead_letter"]  # of an output topic


class OffsetRange(NamedTuple):
    """The offsets of one input partition that are checked: `start` to `end` - 1.

    Attributes:
        committed: the committed offset of the group; -1 if there is none.
        log_end: the end of the partition when the range was determined. It is at least `end`.
        gaps_are_none: an offset without a record never held a record that Sluice reads. False if the topic is
            compacted, or if that is not known.
    """

    start: int
    end: int
    committed: int
    log_end: int
    gaps_are_none: bool = True


class Position(NamedTuple):
    """The position of an outcome."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class Outcome(NamedTuple):
    """One record of the output topic (`result`) or of the dead-letter topic.

    Attributes:
        position: where the outcome is stored.
        input: the partition of the input record.
        offset: the offset of the input record.
        source: the source of the frame; "" if it is not known.
    """

    role: Role
    position: Position
    input: TopicPartition
    offset: int
    source: str

    @property
    def id(self) -> str:
        """The ID of the input record."""
        return record_id(self.input, self.offset)


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise.

    Attributes:
        input: the ID of the input record.
        source: the source of the frame; None if it is not known.
        position: where the outcome is stored; None if there is no outcome.
    """

    kind: ViolationKind
    input: str
    source: str | None
    position: str | None
    text: str


@dataclass(slots=True)
class PartitionCount:
    """Record counts of one input partition.

    Attributes:
        pending: records without an outcome that the group has not committed yet.
        unjudged: records without an outcome that may have had one, which retention has deleted.
    """

    partition: TopicPartition
    offsets: OffsetRange
    records: int = 0
    answered: int = 0
    missing: int = 0
    pending: int = 0
    unjudged: int = 0
    out_of_order: int = 0


@dataclass(slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        totals: the number of all violations of each kind.
        violations: the first violations of each kind.
        repeats: outcomes of records that had an outcome already.
        ignored: outcomes that were not checked, by reason.
        sources: the number of sources with outcomes.
    """

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
    """`<topic>/<partition>/<offset>`, as in the header `ce_id`."""
    return f"{partition.topic}/{partition.partition}/{offset}"


@dataclass(slots=True)
class Report:
    """The result of a run, with notes for the reader."""

    result: CheckResult
    outcomes_read: int
    notes: list[str]
