"""Checks outcomes against the promises of Sluice. Pure: no I/O, no clock. The same stream gives the same result.

Call order: all input records, then the outcomes, then `settle`, then the outcomes that came later (if any), then
`result`. Memory: one byte for each offset of the range, and one entry for each source in each output partition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from consumer.tools.verify import partition_state as bits
from consumer.tools.verify.partition_state import PartitionState, answered_in_one_topic, count_and_first
from consumer.tools.verify.types import (
    KINDS,
    CheckResult,
    OffsetRange,
    Outcome,
    PartitionCount,
    Role,
    Violation,
    ViolationKind,
    record_id,
)
from consumer.types import TopicPartition


@dataclass(slots=True)
class Checker:
    """Counts input records and outcomes, and keeps the first violations of each kind.

    Attributes:
        ranges: the offsets to check of each input partition.
        exactly_once: a second outcome of a record is a violation.
        keep: the number of violations to keep of each kind.
        cut: output partitions, as (role, partition), that are not read from their first record: retention has deleted
            it, or the user asked for a later start.
    """

    ranges: Mapping[TopicPartition, OffsetRange]
    exactly_once: bool
    keep: int = 20
    cut: set[tuple[Role, int]] = field(default_factory=set)
    _partitions: dict[TopicPartition, PartitionState] = field(init=False)
    _topics: frozenset[str] = field(init=False)
    _last: dict[tuple[Role, int, int, str], int] = field(default_factory=dict)
    _first: dict[tuple[Role, int, int, str], int] = field(default_factory=dict)  # of `cut` partitions
    _sources: set[str] = field(default_factory=set)
    _repeats: int = 0
    _ignored: Counter[str] = field(default_factory=Counter)
    _totals: Counter[ViolationKind] = field(default_factory=Counter)
    _listed: dict[ViolationKind, list[Violation]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    _broken: list[tuple[PartitionState, int, Violation]] = field(default_factory=list)
    _settled: bool = False

    def __post_init__(self) -> None:
        self._partitions = {
            partition: PartitionState(number, offsets, bytearray(max(0, offsets.end - offsets.start)))
            for number, (partition, offsets) in enumerate(self.ranges.items())
        }
        self._topics = frozenset(partition.topic for partition in self.ranges)

    def add_input(self, partition: TopicPartition, offset: int) -> None:
        """Note that the input topic has a record at this offset."""
        tracked = self._partitions[partition]
        index = offset - tracked.offsets.start
        if 0 <= index < len(tracked.state):
            tracked.state[index] |= bits.RECORD

    def deleted_below(self, partition: TopicPartition, offset: int) -> None:
        """Note that retention has deleted the records below this offset, perhaps before they were read."""
        self._partitions[partition].deleted_below = offset

    def ignore(self, why: str) -> None:
        """Count a record of an output topic that is not an outcome of a checked record."""
        self._ignored[why] += 1

    def add_outcome(self, outcome: Outcome) -> None:
        """Add an outcome. Those of one output partition come in its order; partitions and topics may be mixed."""
        tracked = self._partitions.get(outcome.input)
        if tracked is None:
            self._without_partition(outcome)
            return
        offsets, offset = tracked.offsets, outcome.offset
        if not offsets.start <= offset < offsets.end:
            self._outside(outcome, offsets)
            return
        index = offset - offsets.start
        state = tracked.state[index]
        if not state & bits.RECORD:
            self._without_record(outcome, tracked)
            return
        if state & bits.ANSWERED:
            self._repeat(outcome)
        unit, counted = bits.UNIT[outcome.role]
        if not state & counted:
            state |= self._check_order(outcome, tracked)
        if state & counted != counted:
            state += unit
        tracked.state[index] = state

    def settle(self, judged_from: Mapping[TopicPartition, int]) -> bool:
        """Find the commits that were ahead of an outcome.

        Call this after adding all outcomes that were written before the committed offsets were read. Outcomes that are
        added after this call came after the commit.

        Args:
            judged_from: for each partition, the offset below which a missing outcome is not a violation, because it may
                have been deleted.

        Returns:
            Whether a record that must have an outcome has none.
        """
        for partition, tracked in self._partitions.items():
            tracked.judged_from = judged_from.get(partition, 0)
            offsets = tracked.offsets
            if offsets.committed > offsets.log_end:
                beyond = (
                    f"the topic ended at {offsets.log_end}: the records before {offsets.committed} will never be read"
                )
                self._commit_ahead(partition, offsets.committed, beyond)
            count, first = count_and_first(tracked.open(tracked.judged_from))
            if first is not None:
                records = "1 record" if count == 1 else f"{count:,} records"
                self._commit_ahead(partition, first, f"{records} before it had no outcome then, the first at {first}")
        self._settled = True
        return self.has_open()

    def has_open(self) -> bool:
        """Whether a record below the committed offset has no outcome so far."""
        return any(count_and_first(tracked.open(tracked.judged_from))[0] for tracked in self._partitions.values())

    def result(self) -> CheckResult:
        """The result of the check."""
        totals = self._totals.copy()
        listed = {kind: list(found) for kind, found in self._listed.items()}
        counts = [self._count(partition, tracked) for partition, tracked in self._partitions.items()]
        totals["missing"] = sum(each.missing for each in counts)
        totals["order"] = sum(each.out_of_order for each in counts)
        listed["missing"] = list(self._missing())
        listed["order"] = [
            violation
            for tracked, offset, violation in self._broken
            if answered_in_one_topic(tracked.state[offset - tracked.offsets.start])
        ][: self.keep]
        return CheckResult(
            counts,
            Counter({kind: count for kind, count in totals.items() if count}),
            [violation for kind in KINDS for violation in listed[kind]],
            self._repeats,
            self._ignored.copy(),
            len(self._sources),
        )

    def _missing(self) -> Iterator[Violation]:
        left = self.keep
        for partition, tracked in self._partitions.items():
            for first, mask in tracked.open(tracked.judged_from):
                for index in np.flatnonzero(mask)[:left].tolist():
                    left -= 1
                    text = f"has no outcome, and the group has committed {tracked.offsets.committed}"
                    yield Violation("missing", record_id(partition, first + index), None, None, text)
                if not left:
                    return

    def _count(self, partition: TopicPartition, tracked: PartitionState) -> PartitionCount:
        offsets = tracked.offsets
        count = PartitionCount(partition, offsets)
        for _, states in tracked.chunks(offsets.start, offsets.end):
            records = states[(states & bits.RECORD) != 0]
            answered = records[(records & bits.ANSWERED) != 0]
            count.records += len(records)
            count.answered += len(answered)
            one_topic = ((answered & bits.RESULTS) == 0) | ((answered & bits.LETTERS) == 0)
            count.out_of_order += int(np.count_nonzero(one_topic & ((answered & bits.BROKEN) != 0)))
        count.missing = count_and_first(tracked.open(tracked.judged_from))[0]
        count.unjudged = count_and_first(tracked.open(offsets.start))[0] - count.missing
        count.pending = count.records - count.answered - count.missing - count.unjudged
        return count

    def _check_order(self, outcome: Outcome, tracked: PartitionState) -> int:
        """Check the order that a reader sees which drops repeats by ID. Returns the bit to set."""
        if not outcome.source:
            return 0
        position, offset = outcome.position, outcome.offset
        key = (outcome.role, position.partition, tracked.number, outcome.source)
        last = self._last.get(key)
        if last is None:
            self._sources.add(outcome.source)
            if (outcome.role, position.partition) in self.cut:
                self._first[key] = offset
        if last is None or offset > last:
            self._last[key] = offset
            return 0
        if offset < self._first.get(key, 0):
            return 0  # most likely a repeat whose first outcome was not read
        if len(self._broken) < 10 * self.keep:
            text = f"came after the outcome of offset {last} of the same source"
            found = Violation("order", outcome.id, outcome.source, str(position), text)
            self._broken.append((tracked, offset, found))
        return bits.BROKEN

    def _repeat(self, outcome: Outcome) -> None:
        self._repeats += 1
        if self.exactly_once:
            self._add("repeat", outcome, "is another outcome of a record that already has one")

    def _outside(self, outcome: Outcome, offsets: OffsetRange) -> None:
        # After `settle`, outcomes may belong to records that are newer than the end of the range.
        if outcome.offset >= offsets.log_end and not self._settled:
            self._add("invented", outcome, f"is an outcome of an offset beyond the end of the topic, {offsets.log_end}")
        else:
            self._ignored["outside_range"] += 1

    def _without_record(self, outcome: Outcome, tracked: PartitionState) -> None:
        if outcome.offset < tracked.deleted_below:
            self._ignored["deleted_input"] += 1
        elif not tracked.offsets.gaps_are_none:
            self._ignored["compacted_input"] += 1
        else:
            self._add("invented", outcome, "is an outcome of an offset at which the topic has no record")

    def _without_partition(self, outcome: Outcome) -> None:
        if outcome.input.topic in self._topics:
            self._add("invented", outcome, "is an outcome of a partition that the topic does not have")
        else:
            self._ignored["other_topic"] += 1

    def _add(self, kind: ViolationKind, outcome: Outcome, text: str) -> None:
        self._list(Violation(kind, outcome.id, outcome.source or None, str(outcome.position), text))

    def _commit_ahead(self, partition: TopicPartition, offset: int, why: str) -> None:
        text = f"the group has committed {self.ranges[partition].committed} of {partition}; {why}"
        self._list(Violation("commit_ahead", record_id(partition, offset), None, None, text))

    def _list(self, violation: Violation) -> None:
        self._totals[violation.kind] += 1
        if len(self._listed[violation.kind]) < self.keep:
            self._listed[violation.kind].append(violation)
