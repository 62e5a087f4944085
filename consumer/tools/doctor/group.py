"""Judges the group's committed offsets against what the topics still hold."""

from __future__ import annotations

from collections.abc import Iterator

from consumer.tools.doctor.cluster import Group, Logs
from consumer.tools.doctor.findings import Finding, Reporter

_SHOWN = 3
_FROM = dict.fromkeys(("latest", "largest", "end"), "end")  # librdkafka's three names of one thing


def offsets(group: Group, logs: Logs, reset: str, report: Reporter) -> Iterator[Finding]:
    """Below the first offset: frames were deleted unread. Beyond the end: the topic was made anew.

    `reset`: the program's `auto.offset.reset`; with any other than its default, error, it does not stop at either.
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
            f"not every committed offset is there ({_some([*expired, *beyond])}): the program goes on by "
            f"auto.offset.reset: {reset}",
            "once it has, leave auto.offset.reset out again, so that the next loss stops the program; give the topic a "
            "longer retention",
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
            f"the topic was made anew or cut ({_some(beyond)}): the program stops there",
            f"reset the offsets of group {group.name} (kafka-consumer-groups.sh --reset-offsets --to-earliest)",
        )
    if not (expired or beyond):
        new = (
            f"; {fresh} partitions have none yet and are read from their {_FROM.get(reset, 'beginning')}"
            if fresh
            else ""
        )
        yield report.ok(f"group {group.name} is {behind} frames behind in {len(group.committed)} partitions{new}")


def _some(told: list[str]) -> str:
    return "; ".join(told[:_SHOWN]) + (f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
