"""What `sluice verify` says: sentences and a table for a person, one object for a script. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from consumer.observability.logging import printable
from consumer.tools.verify.request import Request
from consumer.tools.verify.types import KINDS, PartitionCount, Report, Violation, ViolationKind

_NAMES: Final[dict[ViolationKind, str]] = {
    "missing": "every record answered",
    "repeat": "answered once",
    "order": "in order per source",
    "invented": "no outcome without a record",
    "commit_ahead": "no commit ahead of an outcome",
}
_IGNORED: Final = {
    "foreign": "records of other programs",
    "other_group": "outcomes of other groups",
    "other_topic": "outcomes of other input topics",
    "outside_range": "outcomes of records outside the range",
    "deleted_input": "outcomes of records that are deleted",
    "compacted_input": "outcomes of offsets that hold no record now",
}


def heading(request: Request) -> str:
    """What is checked."""
    delivery = "exactly once" if request.exactly_once else "at least once"
    topics = f"{', '.join(request.inputs)} -> {request.output} and {request.dead_letter}"
    return printable(f"{topics}, group {request.group}, {delivery}")


def table(request: Request, answer: Report) -> Table:
    """A row for each promise."""
    found = Table("promise", "", "what was found", box=None, pad_edge=False, header_style="bold")
    for kind in KINDS:
        count = answer.verdict.totals[kind]
        state = Text(f"{count:,} broken" if count else "kept", style="red" if count else "green")
        if kind == "missing" and not _judged(answer):
            state = Text("not judged", style="yellow")
        found.add_row(_NAMES[kind], state, printable(_detail(kind, request, answer)))
    return found


def _detail(kind: ViolationKind, request: Request, answer: Report) -> str:
    verdict = answer.verdict
    if kind == "missing":
        answered, records, missing, pending = (
            f"{_sum(answer, name):,}" for name in ("answered", "records", "missing", "pending")
        )
        return f"{answered} of {records} records; {missing} missing, {pending} pending (not committed yet)"
    if kind == "repeat":
        return f"repeats: {verdict.repeats:,}" + ("" if request.exactly_once else ", which at least once allows")
    if kind == "order":
        return f"sources with outcomes: {verdict.sources:,}"
    if kind == "invented":
        return f"records of the output topics read: {answer.outcomes_read:,}"
    below = sum(each.span.committed >= 0 for each in verdict.partitions)
    return f"partitions with a committed offset: {below:,} of {len(verdict.partitions):,}"


def _judged(answer: Report) -> int:
    """Records about which it can be said whether they are answered."""
    return _sum(answer, "records") - _sum(answer, "pending") - _sum(answer, "unjudged")


def _sum(answer: Report, name: str) -> int:
    return sum(getattr(each, name) for each in answer.verdict.partitions)


def lines(answer: Report) -> Iterator[str]:
    """What stands below the table: violations, what was left out, and the conclusion."""
    verdict = answer.verdict
    for kind in KINDS:
        listed = [each for each in verdict.violations if each.kind == kind]
        for each in listed:
            yield printable(violation_line(each))
        if left := verdict.totals[kind] - len(listed):
            yield f"{kind}: {left:,} more"
    for name, words in _IGNORED.items():
        if count := verdict.ignored[name]:
            yield f"ignored: {words}: {count:,}"
    if unjudged := _sum(answer, "unjudged"):
        yield f"unjudged: records without an outcome, which may have been deleted: {unjudged:,}"
    yield from (f"note: {printable(note)}" for note in answer.notes)
    yield conclusion(answer)


def violation_line(violation: Violation) -> str:
    """One violation: its kind, the record, its source, where the outcome lies, and what is wrong."""
    source = f" of {violation.source}" if violation.source else ""
    place = f"{violation.place} " if violation.place else ""
    return f"{violation.kind}: {violation.input}{source}: {place}{violation.text}"


def conclusion(answer: Report) -> str:
    """One sentence."""
    if total := answer.verdict.totals.total():
        return f"broken: {total:,} violation{'s' * (total != 1)}"
    if not _judged(answer):
        return "no record of the range can be judged yet: there is none below the committed offsets"
    return f"clean: {_judged(answer):,} records were judged, and every promise was kept"


def as_json(request: Request, answer: Report) -> dict[str, Any]:
    """The whole answer as one object."""
    verdict = answer.verdict
    names = ("records", "answered", "missing", "pending", "unjudged")
    return {
        "clean": verdict.clean,
        "delivery": "exactly_once" if request.exactly_once else "at_least_once",
        "group": request.group,
        "topics": {"input": list(request.inputs), "output": request.output, "dead_letter": request.dead_letter},
        "counts": {
            **{name: _sum(answer, name) for name in names},
            "judged": _judged(answer),
            "repeats": verdict.repeats,
            "sources": verdict.sources,
            "outcomes_read": answer.outcomes_read,
            "ignored": {name: verdict.ignored[name] for name in _IGNORED},
            "violations": {kind: verdict.totals[kind] for kind in KINDS},
        },
        "partitions": [_partition(each, names) for each in verdict.partitions],
        "violations": [
            {"kind": each.kind, "input": each.input, "source": each.source, "place": each.place, "text": each.text}
            for each in verdict.violations
        ],
        "notes": answer.notes,
    }


def _partition(count: PartitionCount, names: tuple[str, ...]) -> dict[str, Any]:
    span = count.span
    return {
        "topic": count.partition.topic,
        "partition": count.partition.partition,
        "from": span.start,
        "to": span.end,
        "committed": None if span.committed < 0 else span.committed,
        **{name: getattr(count, name) for name in names},
    }
