"""Does each outcome say what it has to say of its own frame? Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from history import Content, History, Outcome, Sent
from verdict import Violation, name, place


def check_contents(history: History) -> Iterator[Violation]:
    """One violation for each outcome that is wrong, repeats included."""
    sent = {each.id: each for each in history.inputs}
    for outcome in history.outcomes:
        if (record := sent.get(outcome.id)) is not None:
            yield from _wrong(record, outcome, history.may_reject)


def _wrong(sent: Sent, outcome: Outcome, may_reject: Collection[str]) -> Iterator[Violation]:
    said = f"{place(outcome.position)} by {outcome.writer or '?'}, the outcome of {name(outcome.id)},"
    if outcome.source != sent.source:
        yield Violation("content", f"{said} names the source {outcome.source!r}, not {sent.source!r}")
        return
    found, wanted = outcome.content, sent.expected
    if found is None or wanted is None:
        return
    # The harm may have cost this frame its result. Then the dead letter still has to return the frame.
    excused = found.kind == "rejected" and wanted.kind == "detected" and found.reason in may_reject
    if not excused and (found.kind, found.reason) != (wanted.kind, wanted.reason):
        yield Violation("kind", f"{said} is {_kind(found)}, not {_kind(wanted)}")
    elif found.of is not None and found.of != outcome.id:
        yield Violation("content", f"{said} says in its body that it is of {name(found.of)}")
    elif found.kind == "rejected" and found.frame != wanted.frame:
        yield Violation("content", f"{said} does not hold the frame that was sent")
    elif found.kind == "rejected" and found.written_ms != wanted.written_ms:
        yield Violation("content", f"{said} dates its frame {found.written_ms} ms, not {wanted.written_ms} ms")
    elif found.kind == "detected" and (found.size, found.boxes) != (wanted.size, wanted.boxes):
        yield Violation("content", f"{said} says {_seen(found)}, not {_seen(wanted)}")


def _kind(content: Content) -> str:
    return f"{content.kind} ({content.reason})" if content.reason else content.kind


def _seen(content: Content) -> str:
    width, height = content.size
    return f"{width}x{height} with boxes {[list(box) for box in content.boxes]}"
