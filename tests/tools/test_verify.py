"""The checker of `sluice verify` on streams made by hand: it finds each kind of violation, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.tools.verify.checker import Checker
from consumer.tools.verify.report import as_json, conclusion, lines, violation_line
from consumer.tools.verify.request import Request
from consumer.tools.verify.types import CheckResult, OffsetRange, Outcome, Position, Report, Role, Violation
from consumer.types import TopicPartition

FRAMES = TopicPartition("frames", 0)
OTHER = TopicPartition("frames", 1)
TEN = OffsetRange(0, 10, 10, 10)
NOW_MS = 1_700_000_000_000


class Stream:
    """OutcomeParser in the order in which they were written: `result(3)` is one of record 3."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._ends: dict[tuple[str, int], int] = {}

    def result(self, *offsets: int, source: str = "cam", of: TopicPartition = FRAMES, partition: int = 0) -> Stream:
        return self._add("result", "detections", offsets, source=source, of=of, partition=partition)

    def letter(self, *offsets: int, source: str = "cam", of: TopicPartition = FRAMES, partition: int = 0) -> Stream:
        return self._add("dead_letter", "dead", offsets, source=source, of=of, partition=partition)

    def _add(
        self, role: Role, topic: str, offsets: Sequence[int], *, source: str, of: TopicPartition, partition: int
    ) -> Stream:
        for offset in offsets:
            at = self._ends.get((topic, partition), 0)
            self._ends[topic, partition] = at + 1
            self.outcomes.append(Outcome(role, Position(topic, partition, at), of, offset, source))
        return self


def checker(records: Iterable[int] = range(10), *, span: OffsetRange = TEN, once: bool = False, **more: Any) -> Checker:
    """With the records of one partition; the committed offset is behind them all."""
    made = Checker({FRAMES: span}, exactly_once=once, **more)
    for offset in records:
        made.add_input(FRAMES, offset)
    return made


def check(
    made: Checker, stream: Stream, later: Stream | None = None, judged_from: Mapping[TopicPartition, int] | None = None
) -> CheckResult:
    for outcome in stream.outcomes:
        made.add_outcome(outcome)
    made.settle(judged_from or {})
    for outcome in later.outcomes if later is not None else ():
        made.add_outcome(outcome)
    return made.result()


def found(result: CheckResult) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for each in result.violations:
        kinds.setdefault(each.kind, []).append(each.input)
    assert {kind: len(ids) for kind, ids in kinds.items()} == dict(result.totals)
    return kinds


@pytest.mark.parametrize("once", [False, True])
def test_a_stream_that_keeps_the_promises_is_clean(once: bool) -> None:
    """Catches: a checker that cries wolf at dead letters between results, or at sources that overtake each other."""
    stream = Stream().result(1, 2, 5, source="b").result(0, 3, 4, source="a").letter(6, 9).result(7, 8, source="b")
    result = check(checker(once=once), stream)
    assert result.clean
    assert result.violations == []
    assert (result.partitions[0].records, result.partitions[0].answered) == (10, 10)
    assert result.sources == 3


def test_a_record_below_the_committed_offset_without_an_outcome_is_missing() -> None:
    """Catches: a loss that is found only if the record is the last one, and one that is blamed on a dead letter."""
    result = check(checker(), Stream().result(0, 1, 2, 4, 5, 6, 7).letter(8, 9))
    assert found(result) == {"missing": ["frames/0/3"], "commit_ahead": ["frames/0/3"]}
    assert result.partitions[0].missing == 1


def test_a_record_that_is_not_committed_yet_is_pending_and_not_lost() -> None:
    """Catches: a violation for records that a running group has not read yet."""
    result = check(checker(span=OffsetRange(0, 10, 6, 10)), Stream().result(0, 1, 2, 3, 4, 5, 7))
    assert result.clean
    assert (result.partitions[0].answered, result.partitions[0].pending) == (7, 3)


def test_a_group_that_has_committed_nothing_has_lost_nothing() -> None:
    result = check(checker(span=OffsetRange(0, 10, -1, 10)), Stream())
    assert result.clean
    assert result.partitions[0].pending == 10


def test_a_second_outcome_is_a_violation_of_exactly_once_alone() -> None:
    """Catches: a repeat in the other topic that is not seen, and a false alarm under at least once."""
    stream = Stream().result(*range(10)).result(4).letter(7)
    assert found(check(checker(once=True), stream)) == {"repeat": ["frames/0/4", "frames/0/7"]}
    result = check(checker(), stream)
    assert result.clean
    assert result.repeats == 2


def test_more_than_seven_outcomes_of_one_record_are_all_counted() -> None:
    """Catches: the three bits of a count that overflow into those of the other topic."""
    result = check(checker(), Stream().letter(3).result(*range(10), *[3] * 20).letter(*[3] * 20))
    assert result.repeats == 41
    assert result.clean


def test_outcomes_of_one_source_that_are_swapped_are_out_of_order() -> None:
    """Catches: an order that is only checked among neighbours, or among all sources together."""
    stream = Stream().result(0, 1, source="a").result(2, 5, source="b").result(6, 3, 4, 7, 8, 9, source="a")
    result = check(checker(), stream)
    assert found(result) == {"order": ["frames/0/3", "frames/0/4"]}
    assert result.violations[0].source == "a"
    assert result.violations[0].position == "detections[0]@5"


def test_a_run_repeated_from_its_middle_is_in_order_without_the_repeats() -> None:
    """Catches: a crash under at least once that is taken for disorder."""
    result = check(checker(), Stream().result(0, 1, 2, 3, 4).result(2, 3, 4, 5, 6, 7, 8, 9))
    assert result.clean
    assert result.repeats == 3


def test_order_holds_per_input_partition_and_per_output_topic() -> None:
    """Catches: a source whose frames lie in two partitions, and a dead letter that is compared with a result."""
    made = Checker({FRAMES: OffsetRange(0, 3, 3, 3), OTHER: OffsetRange(0, 3, 3, 3)}, exactly_once=False)
    for offset in range(3):
        made.add_input(FRAMES, offset)
        made.add_input(OTHER, offset)
    stream = Stream().result(2, of=OTHER).result(0, 2).letter(1).letter(0, of=OTHER).letter(1, of=OTHER)
    assert check(made, stream).clean


def test_a_record_with_a_result_and_a_dead_letter_is_a_repeat_and_not_disorder() -> None:
    """Catches: a result that depends on which of the two topics was read first."""
    result = check(checker(), Stream().result(0, 2, 3, 1, 4, 5, 6, 7, 8, 9).letter(1))
    assert result.clean
    assert result.violations == []
    assert result.repeats == 1


def test_the_order_in_one_topic_does_not_depend_on_the_other_topic() -> None:
    """Catches: a dead letter that is left out of the order of its topic, because its record has a result, too."""
    result = check(checker(), Stream().result(0, 1, 2, 4, 5, 6, 7, 8, 9).letter(5, 3))
    assert found(result) == {"order": ["frames/0/3"]}


def test_an_outcome_of_no_record_is_invented() -> None:
    """Offset 3 is a transaction marker, 12 is beyond the end, partition 7 is not there. Catches: each of them."""
    records = [0, 1, 2, 4, 5, 6, 7, 8, 9]
    stream = Stream().result(*records).result(3, 12).result(0, of=TopicPartition("frames", 7))
    assert found(check(checker(records), stream)) == {"invented": ["frames/0/3", "frames/0/12", "frames/7/0"]}


def test_outcomes_outside_the_range_are_ignored_and_counted() -> None:
    """Catches: a check of one hour that calls the outcomes of the hour before invented, or repeats."""
    made = checker(range(4, 8), span=OffsetRange(4, 8, 20, 20))
    result = check(made, Stream().result(0, 4, 5, 6, 7, 8, 19).result(0, of=TopicPartition("others", 0)))
    assert result.clean
    assert result.ignored == {"outside_range": 3, "other_topic": 1}


def test_outcomes_of_records_that_retention_has_deleted_are_ignored_and_counted() -> None:
    """Catches: retention that is taken for invention while the topic is being read."""
    made = checker(range(5, 10))
    made.deleted_below(FRAMES, 5)
    result = check(made, Stream().result(*range(10)))
    assert result.clean
    assert result.ignored == {"deleted_input": 5}


def test_a_compacted_input_makes_no_outcome_an_invention() -> None:
    made = checker([0, 2, 4, 6, 8, 9], span=OffsetRange(0, 10, 10, 10, gaps_are_none=False))
    result = check(made, Stream().result(*range(10)))
    assert result.clean
    assert result.ignored == {"compacted_input": 4}


def test_an_outcome_that_came_after_the_commit_is_a_commit_ahead_and_not_a_loss() -> None:
    """Catches: a commit before its outcome, which a check of the final state alone cannot find."""
    stream = Stream().result(*range(8))
    result = check(checker(), stream, Stream().result(8, 9, 12))
    assert found(result) == {"commit_ahead": ["frames/0/8"]}
    assert "2 records before it had no outcome then, the first at 8" in result.violations[0].text
    assert result.partitions[0].answered == 10


def test_an_offset_beyond_the_end_of_the_topic_is_a_commit_ahead() -> None:
    """Catches: an offset that was set by hand, or one of an older topic with that name."""
    result = check(checker(span=OffsetRange(0, 10, 15, 10)), Stream().result(*range(10)))
    assert found(result) == {"commit_ahead": ["frames/0/15"]}


def test_a_missing_outcome_that_may_have_been_deleted_is_not_judged() -> None:
    """Catches: retention of the output topic that is reported as loss."""
    made = checker(cut={("result", 0)})
    result = check(made, Stream().result(4, 5, 6, 8, 9), judged_from={FRAMES: 6})
    assert found(result) == {"missing": ["frames/0/7"], "commit_ahead": ["frames/0/7"]}
    assert result.partitions[0].unjudged == 4


def test_a_repeat_whose_first_outcome_was_deleted_is_not_disorder() -> None:
    """0 to 7 was written, then 4 to 9 again, and retention took 0 to 5. Catches: 4 and 5 behind 6 and 7."""
    rest = Stream().result(6, 7).result(4, 5, 6, 7, 8, 9)
    assert check(checker(cut={("result", 0)}), rest, judged_from={FRAMES: 10}).clean
    assert "order" in found(check(checker(), rest))
    swapped = Stream().result(6, 9, 8)
    assert found(check(checker(cut={("result", 0)}), swapped, judged_from={FRAMES: 10})) == {"order": ["frames/0/8"]}


def test_so_many_violations_are_listed_and_all_are_counted() -> None:
    """Catches: a list that grows with what is wrong."""
    made = checker(range(1000), span=OffsetRange(0, 1000, 1000, 1000), keep=5, once=True)
    result = check(made, Stream().result(*range(500)).result(*reversed(range(500))))
    assert result.totals == {"missing": 500, "repeat": 500, "commit_ahead": 1}
    assert [each.kind for each in result.violations] == ["missing"] * 5 + ["repeat"] * 5 + ["commit_ahead"]
    made = checker(range(500), span=OffsetRange(0, 500, 500, 500), keep=5)
    backwards = check(made, Stream().result(*reversed(range(500))))
    assert backwards.totals == {"order": 499}
    assert len(backwards.violations) == 5
    assert len(made._broken) <= 50


offsets = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["result", "dead_letter"])), max_size=40)


@given(records=st.sets(st.integers(0, 9)), outcomes=offsets, committed=st.integers(-1, 10), once=st.booleans())
def test_the_counts_are_those_of_a_checker_that_keeps_everything(
    records: set[int], outcomes: list[tuple[int, Role]], committed: int, once: bool
) -> None:
    """Catches: counts from the byte of an offset that differ from those of sets and lists."""
    source = {offset: f"cam-{offset % 2}" for offset in range(13)}
    stream = Stream()
    for offset, role in outcomes:
        (stream.result if role == "result" else stream.letter)(offset, source=source[offset])
    result = check(checker(records, span=OffsetRange(0, 10, committed, 10), once=once), stream)
    of_records = [(offset, role) for offset, role in outcomes if offset in records]
    answered = {offset for offset, _ in of_records}
    both = {offset for offset in answered if len({role for at, role in of_records if at == offset}) == 2}
    missing = {offset for offset in records - answered if offset < committed}
    out_of_order, last, seen = set(), {}, set()
    for offset, role in of_records:
        if (offset, role) in seen:
            continue
        seen.add((offset, role))
        if offset < last.get((role, source[offset]), -1):
            out_of_order.add(offset)
        else:
            last[role, source[offset]] = offset
    repeats = len(of_records) - len(answered)
    expected = {
        "missing": len(missing),
        "repeat": repeats if once else 0,
        "order": len(out_of_order - both),
        "invented": len(outcomes) - len(of_records),
        "commit_ahead": int(bool(missing)),
    }
    assert result.totals == {kind: count for kind, count in expected.items() if count}
    assert (result.repeats, result.partitions[0].records) == (repeats, len(records))
    assert result.partitions[0].pending == len(records - answered - missing)


REQUEST = Request(("frames",), "detections", "dead", "g", exactly_once=False, isolation="read_committed")


def test_the_report_has_the_conclusion_and_the_violations() -> None:
    """Catches: a conclusion that claims more than was judged, and text of a producer that steers a terminal."""
    clean = Report(check(checker(), Stream().result(*range(10))), 10, [])
    assert conclusion(clean) == "clean: 10 records were judged, and every promise was kept"
    nothing = Report(check(checker(span=OffsetRange(0, 10, -1, 10)), Stream()), 0, [])
    assert conclusion(nothing).startswith("no record of the range can be judged yet")
    stream = Stream().result(0, 1, 2, 5, 3, 6, 7, 8, 9, 11, source="\x1b[2J")
    text = list(lines(Report(check(checker(), stream), 10, ["a note"])))
    assert "missing: frames/0/4: has no outcome, and the group has committed 10" in text
    assert any(
        "order: frames/0/3 of \\x1b[2J: detections[0]@4 came after the outcome of offset 5" in line for line in text
    )
    assert text[-2:] == ["note: a note", "broken: 4 violations"]


def test_the_object_for_scripts_has_the_counts_and_the_violations() -> None:
    report = Report(check(checker(), Stream().result(0, 1, 2, 4, 5, 6, 7, 8, 9, 9)), 10, [])
    body = as_json(REQUEST, report)
    assert body["clean"] is False
    counts = body["counts"]
    assert (counts["records"], counts["answered"], counts["missing"], counts["repeats"]) == (10, 9, 1, 1)
    assert counts["violations"] == {"missing": 1, "repeat": 0, "order": 0, "invented": 0, "commit_ahead": 1}
    assert body["violations"][0] == {
        "kind": "missing",
        "input": "frames/0/3",
        "source": None,
        "place": None,
        "text": "has no outcome, and the group has committed 10",
    }
    assert body["partitions"][0]["committed"] == 10


def test_a_violation_without_a_place_or_a_source_is_one_line() -> None:
    assert violation_line(Violation("missing", "frames/0/3", "cam", None, "why")) == "missing: frames/0/3 of cam: why"
