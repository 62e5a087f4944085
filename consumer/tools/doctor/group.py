"""Compares the committed offsets of the group with the offsets that the topics still hold."""

from __future__ import annotations

from collections.abc import Iterator

from consumer.tools.doctor.cluster import Group, Logs
from consumer.tools.doctor.findings import Finding, Reporter

_SHOWN = 3
_FROM = dict.fromkeys(("latest", "largest", "end"), "end")  # librdkafka's three names for the same setting


def offsets(group: Group, logs: Logs, reset: str, report: Reporter) -> Iterator[Finding]:
    """Report committed offsets that are not in the topic.

    If an offset is below the first one, frames were deleted before they were read. If it is beyond the end, the topic
    was created again. The program stops at both, unless `auto.offset.reset` (`reset`) differs from its default, error.
    """
    if group.hidden:
        yield report.skipped(f"this user may not read the offsets of {group.name}: see rights")
        return
    if group.error:
        yield report.problem(f"cannot read the offsets of group {group.name}: {group.error}")
        return
    expired, beyond, behind, fresh = [], [], 0, 0
    for partition, committed in group.committed.items():
        first, end = logs[partition]
        if committed < 0:
            fresh += 1
            behind += end - first
        elif committed < first:
            expired.append(f"{partition}: {committed} is committed, {first} is the oldest")
        elif committed > end:
            beyond.append(f"{partition}: {committed} is committed, it ends at {end}")
        else:
            behind += end - committed
    if (expired or beyond) and reset != "error":
        yield report.warning(
            f"some committed offsets are not in the topic ({_some([*expired, *beyond])}): the program continues with "
            f"auto.offset.reset: {reset}",
            "remove auto.offset.reset after that, so that the next loss stops the program, and give the topic a longer "
            "retention",
        )
        return
    if expired:
        yield report.problem(
            f"frames were deleted before they were read ({_some(expired)}): the program stops there",
            f"reset the offsets of group {group.name} (kafka-consumer-groups.sh --reset-offsets --to-earliest), and "
            "give the topic a longer retention",
        )
    if beyond:
        yield report.problem(
            f"the topic was created again or truncated ({_some(beyond)}): the program stops there",
            f"reset the offsets of group {group.name} (kafka-consumer-groups.sh --reset-offsets --to-earliest)",
        )
    if not (expired or beyond):
        new = (
            f"; {fresh} partitions have no offset yet and are read from their {_FROM.get(reset, 'beginning')}"
            if fresh
            else ""
        )
        yield report.ok(f"group {group.name} is {behind} frames behind in {len(group.committed)} partitions{new}")


def _some(offsets: list[str]) -> str:
    return "; ".join(offsets[:_SHOWN]) + (f"; and {len(offsets) - _SHOWN} more" if len(offsets) > _SHOWN else "")
