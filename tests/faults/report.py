"""The rows of all campaigns so far -> `docs/faults.md`. Pure; the rows are kept in `docs/faults.jsonl`."""

from __future__ import annotations

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scenario import DELIVERIES, PROTOCOLS, Run, Spec

Row = Mapping[str, Any]

_INTRODUCTION = """\
# What the fault rig has measured

Written by `make faults`, which adds to `faults.jsonl` and makes this page again from its runs of the delivery core as
it is now. Each run starts a consumer group of real `sluice run` processes with a simulated engine on Apache Kafka
(three nodes, replication 3, `min.insync.replicas` 2), feeds it {rate:g} frames a second from {sources} sources in
{partitions} partitions, harms it once or more, lets it recover, stops it, and compares what went in with what came
out. A run is repeated with `make faults FAULT=harm:delivery:protocol:seed`. How it judges: `tests/faults/checker.py`.
"""
_MIB = 2**20
_COLUMNS = """\
**lost**: input records without an outcome; of a run that was given up, those whose offset was committed. **wrong**:
outcomes of the wrong kind (a good frame among the dead letters, for example) or with the size, boxes, frame or source
of another. **repeats**: outcomes beyond the first of a record, as the reader of that delivery sees them. Under
`exactly_once` each is a violation. Under `at_least_once` the faults explain at most the number in **explained**:
{death} for each unclean end ({batch} x 4 in the ring, and what the engine can do in two commit intervals), none for a
clean stop or a rebalance; where members can be cut off from the group, each record that was first written between
{before:g} s before a strike and {after:g} s behind it, once for each strike, and {ring} for each member and strike.
**late**: repeats that a member wrote before it could know that it had lost the partition. **out of order**: outcomes
of a source behind a later one of it, repeats apart. **commits ahead**: samples of the committed offsets that were
ahead of an outcome not yet written, of all samples. **recovery**: seconds from the end of the harm until every
partition has brought a new outcome; dead members are noticed after a session of {session:g} s. **restarts**: processes
that ended by themselves, with a code that the harm explains, and were started again, as Kubernetes would. **memory**:
the most MiB that one member and its decoding processes used in a run, and what they may use:
`limits.max_in_flight_bytes` and a constant for the processes, the ring of decoded pictures and the client library
(`tests/faults/memory.py`).
"""
_HEAD = """\
| harm | runs | frames | lost | wrong | repeats | explained | late | out of order | commits ahead | recovery p50 | p95 \
| max | restarts | memory |
| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |
"""


def row(run: Run, *, at: str, commit: str, core: str) -> dict[str, Any]:
    """What is kept of a run. `core`: as in `core.digest`, when it began and when it ended."""
    verdict = run.verdict
    allowed_bytes = run.history.in_flight_limit_bytes + run.history.memory_base_bytes
    return {
        "at": at,
        "commit": commit,
        "core": core,
        "spec": str(run.spec),
        "seconds": round(run.took_s, 1),
        "frames": verdict.frames,
        "lost": verdict.lost,
        "wrong": verdict.wrong,
        "repeats": verdict.repeats,
        "explained": verdict.explained_repeats,
        "late": verdict.late,
        "out_of_order": verdict.out_of_order,
        "samples": verdict.samples,
        "commit_ahead": verdict.commit_ahead,
        "backlog_s": round(run.history.backlog_s, 1),
        "stale_answers": verdict.stale_answers,
        "recoveries_s": [round(seconds, 2) for seconds in verdict.recoveries_s],
        "put_out": verdict.put_out,
        "memory_mib": round(verdict.memory_bytes / _MIB),
        "memory_allowed_mib": round(allowed_bytes / _MIB),
        "in_flight_limit_mib": round(run.history.in_flight_limit_bytes / _MIB),
        "exit_codes": [each.code for each in run.history.exits],
        "violations": [str(each) for each in verdict.violations[:5]],
    }


def render(rows: Sequence[Row], facts: Mapping[str, Any], core: str) -> str:
    """The page: the runs of this delivery core. `facts`: the numbers that its words name.

    A row with `void` is of a run that broke by itself. A row of another core, or without one, is only counted.
    """
    ours = [each for each in rows if each.get("core") == core]
    counted = [each for each in ours if "void" not in each]
    void = [each for each in ours if "void" in each]
    earlier = [each for each in rows if each.get("core") != core]
    parts = [_INTRODUCTION.format(**facts), _origin(ours, earlier, core), _totals(counted, len(void))]
    for delivery in DELIVERIES:
        table = _table([each for each in counted if Spec.parse(each["spec"]).delivery == delivery])
        parts.append(f"## {delivery}\n\n{table}")
    parts += [_filled(_COLUMNS.format(**facts)), _violations(counted), _void(void)]
    return "\n".join(parts)


def _origin(ours: Sequence[Row], earlier: Sequence[Row], core: str) -> str:
    """Which code the figures are of."""
    commits = ", ".join(f"{commit} ({number})" for commit, number in Counter(each["commit"] for each in ours).items())
    said = (
        f"All figures are of the delivery core {core}, the code as it is now (a digest of what decides delivery: "
        f"`tests/faults/core.py`). Commits that were run, with their runs: {commits or 'none yet'}."
    )
    if earlier:
        violated = sum(bool(each.get("violations")) for each in earlier)
        said += (
            f" {len(earlier)} runs of earlier cores, {violated} of them with violations, are kept in `faults.jsonl` "
            "and count for nothing here."
        )
    return _filled(said)


def _totals(rows: Sequence[Row], void: int) -> str:
    hours, minutes = divmod(round(sum(each["seconds"] for each in rows) / 60), 60)
    by_protocol = ", ".join(
        f"{sum(Spec.parse(each['spec']).protocol == protocol for each in rows)} with `group.protocol={protocol}`"
        for protocol in PROTOCOLS
    )
    frames = sum(each["frames"] for each in rows)
    stale = sum(each["stale_answers"] for each in rows)
    return _filled(
        f"{len(rows)} runs so far ({by_protocol}), {frames:,} frames, {hours} h {minutes} min; {void} more void, "
        "because the brokers or the rig itself failed. "
        f"In {stale} samples a coordinator that had just taken over answered with older offsets than its predecessor "
        "had; nobody had committed those. "
        "Members that received a stop while their group had put them out, and ended with exit code 7: "
        f"{sum(each['put_out'] for each in rows)}."
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, width=120, break_on_hyphens=False) + "\n"


def _table(rows: Iterable[Row]) -> str:
    by_harm: dict[str, list[Row]] = defaultdict(list)
    for each in rows:
        by_harm[Spec.parse(each["spec"]).harm].append(each)
    if not by_harm:
        return "No runs yet.\n"
    lines = [_line(harm, by_harm[harm]) for harm in sorted(by_harm)]
    lines.append(_line("**all**", [each for group in by_harm.values() for each in group]))
    return _HEAD + "\n".join(lines) + "\n"


def _line(name: str, rows: Sequence[Row]) -> str:
    def total(field: str) -> str:
        return f"{sum(each[field] for each in rows):,}"

    recoveries = sorted(seconds for each in rows for seconds in each["recoveries_s"])
    quantiles = [f"{_quantile(recoveries, share):.1f}" if recoveries else "-" for share in (0.5, 0.95, 1.0)]
    counts = [total(field) for field in ("frames", "lost", "wrong", "repeats", "explained", "late", "out_of_order")]
    ahead = f"{total('commit_ahead')} of {total('samples')}"
    restarts = sum(len(each["exit_codes"]) for each in rows)
    fullest = max(rows, key=lambda each: each["memory_mib"] / each["memory_allowed_mib"])
    memory = f"{fullest['memory_mib']} of {fullest['memory_allowed_mib']}"
    return "| " + " | ".join([name, str(len(rows)), *counts, ahead, *quantiles, str(restarts), memory]) + " |"


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _violations(rows: Iterable[Row]) -> str:
    found = [each for each in rows if each["violations"]]
    if not found:
        return "## Violations\n\nNone.\n"
    lines = ["## Violations\n"]
    for each in found:
        note = f" {each['note']}" if each.get("note") else " **Open.**"
        lines.append(f"- `{each['spec']}` at {each['commit']}: {each['violations'][0]}.{note}")
    return "\n".join(lines) + "\n"


def _void(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    listed = "".join(f"- `{each['spec']}` at {each['commit']}: {each['void']}\n" for each in rows)
    return f"## Void runs\n\nThe brokers or the rig itself failed. They count for nothing above.\n\n{listed}"
