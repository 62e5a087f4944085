"""Renders the result of `sluice verify` as text and as JSON. Pure."""

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
    """One line that names what is checked."""
    delivery = "exactly once" if request.exactly_once else "at least once"
    topics = f"{', '.join(request.inputs)} -> {request.output} and {request.dead_letter}"
    return printable(f"{topics}, group {request.group}, {delivery}")


def table(request: Request, report: Report) -> Table:
    """A table with one row per promise."""
    found = Table("promise", "", "what was found", box=None, pad_edge=False, header_style="bold")
    for kind in KINDS:
        count = report.result.totals[kind]
        state = Text(f"{count:,} broken" if count else "kept", style="red" if count else "green")
        if kind == "missing" and not _judged(report):
            state = Text("not judged", style="yellow")
        found.add_row(_NAMES[kind], state, printable(_detail(kind, request, report)))
    return found


def _detail(kind: ViolationKind, request: Request, report: Report) -> str:
    result = report.result
    if kind == "missing":
        answered, records, missing, pending = (
            f"{_sum(report, name):,}" for name in ("answered", "records", "missing", "pending")
        )
        return f"{answered} of {records} records; {missing} missing, {pending} pending (not committed yet)"
    if kind == "repeat":
        return f"repeats: {result.repeats:,}" + ("" if request.exactly_once else ", which at least once allows")
    if kind == "order":
        return f"sources with outcomes: {result.sources:,}"
    if kind == "invented":
        return f"records of the output topics read: {report.outcomes_read:,}"
    below = sum(each.offsets.committed >= 0 for each in result.partitions)
    return f"partitions with a committed offset: {below:,} of {len(result.partitions):,}"


def _judged(report: Report) -> int:
    """The number of records of which it is known whether they have an outcome."""
    return _sum(report, "records") - _sum(report, "pending") - _sum(report, "unjudged")


def _sum(report: Report, name: str) -> int:
    return sum(getattr(each, name) for each in report.result.partitions)


def lines(report: Report) -> Iterator[str]:
    """Yield the lines below the table: violations, ignored records, notes and the conclusion."""
    result = report.result
    for kind in KINDS:
        listed = [each for each in result.violations if each.kind == kind]
        for each in listed:
            yield printable(violation_line(each))
        if left := result.totals[kind] - len(listed):
            yield f"{kind}: {left:,} more"
    for name, words in _IGNORED.items():
        if count := result.ignored[name]:
            yield f"ignored: {words}: {count:,}"
    if unjudged := _sum(report, "unjudged"):
        yield f"unjudged: records without an outcome, which may have been deleted: {unjudged:,}"
    yield from (f"note: {printable(note)}" for note in report.notes)
    yield conclusion(report)


def violation_line(violation: Violation) -> str:
    """One violation: its kind, the record and its source, the position of the outcome, and what is wrong."""
    source = f" of {violation.source}" if violation.source else ""
    position = f"{violation.position} " if violation.position else ""
    return f"{violation.kind}: {violation.input}{source}: {position}{violation.text}"


def conclusion(report: Report) -> str:
    """The conclusion in one sentence."""
    if total := report.result.totals.total():
        return f"broken: {total:,} violation{'s' * (total != 1)}"
    if not _judged(report):
        return "no record of the range can be judged yet: there is none below the committed offsets"
    return f"clean: {_judged(report):,} records were judged, and every promise was kept"


def as_json(request: Request, report: Report) -> dict[str, Any]:
    """The whole report as one JSON object."""
    result = report.result
    names = ("records", "answered", "missing", "pending", "unjudged")
    return {
        "clean": result.clean,
        "delivery": "exactly_once" if request.exactly_once else "at_least_once",
        "group": request.group,
        "topics": {"input": list(request.inputs), "output": request.output, "dead_letter": request.dead_letter},
        "counts": {
            **{name: _sum(report, name) for name in names},
            "judged": _judged(report),
            "repeats": result.repeats,
            "sources": result.sources,
            "outcomes_read": report.outcomes_read,
            "ignored": {name: result.ignored[name] for name in _IGNORED},
            "violations": {kind: result.totals[kind] for kind in KINDS},
        },
        "partitions": [_partition(each, names) for each in result.partitions],
        "violations": [
            {"kind": each.kind, "input": each.input, "source": each.source, "place": each.position, "text": each.text}
            for each in result.violations
        ],
        "notes": report.notes,
    }


def _partition(count: PartitionCount, names: tuple[str, ...]) -> dict[str, Any]:
    offsets = count.offsets
    return {
        "topic": count.partition.topic,
        "partition": count.partition.partition,
        "from": offsets.start,
        "to": offsets.end,
        "committed": None if offsets.committed < 0 else offsets.committed,
        **{name: getattr(count, name) for name in names},
    }
