"""Histories made by hand for the tests of the checker: one that kept the promises, and parts to break it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from checker import check
from history import (
    Content,
    History,
    InputId,
    Outcome,
    OutcomeKind,
    Position,
    Rebalance,
    Sample,
    Sent,
    Strike,
)

ONE, TWO = "member-1", "member-2"


def outcome(
    offset: int, at: int, writer: str = ONE, *, topic: str = "detections", ms: int = 0, s: float = 0
) -> Outcome:
    """Of the input record 0@offset, at offset `at` of its topic."""
    content = detection(offset) if topic == "detections" else letter(offset)
    return Outcome(
        InputId(0, offset), "cam-1", Position(topic, 0, at), writer, ms or 1000 + at, s or 10.0 + at, content
    )


def sent(offset: int, kind: OutcomeKind = "detected") -> Sent:
    """0@offset of cam-1, with what has to become of it."""
    expected = detection(offset) if kind == "detected" else letter(offset)
    return Sent(InputId(0, offset), "cam-1", dataclasses.replace(expected, frame=f"frame {offset}", of=None))


def detection(offset: int) -> Content:
    return Content("detected", size=(64 + offset, 48), boxes=((0.0, 0.0, 1.0, offset),), of=InputId(0, offset))


def letter(offset: int, reason: str = "damaged", written_ms: int = 0) -> Content:
    return Content("rejected", reason, frame=f"frame {offset}", of=InputId(0, offset), written_ms=written_ms)


def with_content(offset: int, **changes: object) -> History:
    """As `good`, and the outcome of this record says something else."""
    history = good()
    content = history.outcomes[offset].content
    assert content is not None
    changed = dataclasses.replace(content, **changes)
    history.outcomes[offset] = dataclasses.replace(history.outcomes[offset], content=changed)
    return history


def good(count: int = 6, **changes: object) -> History:
    """One member, one partition, one camera; everything as promised."""
    inputs = [sent(offset) for offset in range(count)]
    history = History(
        "at_least_once",
        acknowledged=list(inputs),
        inputs=list(inputs),
        outcomes=[outcome(offset, offset) for offset in range(count)],
        samples=[sample(n, n) for n in range(count + 1)],
        rebalances=[Rebalance(ONE, 1000.0, "assigned", frozenset({0}))],
        strikes=[Strike("sigkill", 11.5, 12.0)],
        final=sample(count, count),
        allowed_repeats=0,
    )
    return dataclasses.replace(history, **changes)


def sample(committed: int, end: int) -> Sample:
    return Sample(0.0, {0: committed} if committed else {}, {("detections", 0): end, ("dead", 0): 0})


def taken_over(second: Sequence[Outcome], *more: Rebalance, allowed: int = 100, **changes: object) -> History:
    """Member 2 was assigned the partition at 1005 ms and wrote `second` behind the first three outcomes."""
    events = [
        Rebalance(ONE, 1000.0, "assigned", frozenset({0})),
        Rebalance(TWO, 1005.0, "assigned", frozenset({0})),
        *more,
    ]
    outcomes = [outcome(offset, offset) for offset in range(3)]
    return good(rebalances=events, outcomes=[*outcomes, *second], samples=[], allowed_repeats=allowed, **changes)


def kinds(history: History) -> set[str]:
    return {violation.kind for violation in check(history).violations}
