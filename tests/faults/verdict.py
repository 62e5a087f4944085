"""What the checker says of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from history import InputId, Position

Kind = Literal[
    "loss",  # an input record has no outcome
    "kind",  # a record has another kind of outcome than it must have: a good frame among the dead letters, for example
    "content",  # an outcome says something wrong of its frame, or is the outcome of another frame
    "duplicate",  # exactly once: a record has two outcomes; at least once: more repeats than the faults explain
    "order",  # outcomes of a source do not come in the order of its frames
    "commit_ahead",  # a committed offset was beyond an outcome that was not written yet
    "offset_back",  # a committed offset went back
    "zombie",  # a member wrote for a partition that it knew it had lost, or that someone else owned
    "recovery",  # outcomes did not flow again in time after a fault
    "invented",  # an outcome of a record that is not in the input topic
    "crash",  # a process ended by itself with a code that the harm does not explain, or logged a traceback
    "unclean_end",  # a member that was told to end did not drain and exit with 0
    "left_behind",  # all members ended cleanly, and what they had finished is not committed
    "memory",  # a member used more than limits.max_in_flight_bytes and the stated constant
    "stuck",  # what was waited for did not come: the group did not work with nothing broken, or a harm did not strike
]


@dataclass(frozen=True, slots=True)
class Violation:
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """What one run showed. `input_lost` is the brokers' doing: records that they had acknowledged and lost."""

    violations: list[Violation] = field(default_factory=list)
    frames: int = 0
    lost: int = 0
    wrong: int = 0  # outcomes of the wrong kind, or with wrong content
    repeats: int = 0
    explained_repeats: int = 0  # at least once: the bound that this run's strikes give
    out_of_order: int = 0
    samples: int = 0
    commit_ahead: int = 0  # samples that show it
    late: int = 0  # outcomes that a member wrote before it could know that it had lost the partition
    stale_answers: int = 0  # samples in which the brokers themselves went back
    recoveries_s: list[float] = field(default_factory=list)
    put_out: int = 0  # members that were told to stop when their group had put them out already
    input_lost: int = 0
    memory_bytes: int = 0  # the most that one member used


def name(each: InputId) -> str:
    """An input record, as the violations say it."""
    return f"{each.partition}@{each.offset}"


def place(position: Position) -> str:
    """A place in an output topic, as the violations say it."""
    return f"{position.topic}/{position.partition}/{position.offset}"
