"""Judge a history by the promises of Sluice. Pure: the same history gives the same verdict.

Each check says what it takes for sound: it must never blame a run that kept the promises, because a rig that cries
wolf is switched off.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from contents import check_contents
from history import Commit, History, InputId, Outcome, Position, Sample
from limits import check_ends, check_memory, check_repeats
from tenures import Tenure, Tenures
from verdict import Verdict, Violation, name, place

__all__ = ["Verdict", "Violation", "check"]


def check(history: History) -> Verdict:
    """All checks, worst first."""
    inputs = {sent.id: sent.source for sent in history.inputs}
    first_seen = _first_seen(history.outcomes)
    tenures = Tenures(history.rebalances)
    verdict = Verdict(frames=len(inputs), samples=len(history.samples), put_out=history.put_out)
    verdict.input_lost = sum(sent.id not in inputs for sent in history.acknowledged)
    found = verdict.violations
    lost = _lost(history, sorted(inputs.keys() - first_seen.keys()))
    verdict.lost = len(lost)
    found += [Violation("loss", f"input {name(each)} of {inputs[each]} has no outcome") for each in lost]
    found += [Violation("stuck", history.stuck)] if history.stuck else []
    found += _invented(first_seen, inputs.keys())
    wrong = list(check_contents(history))
    verdict.wrong = len(wrong)
    found += wrong
    verdict.repeats = len(history.outcomes) - len(first_seen)
    if history.delivery == "exactly_once":
        found += _duplicates(history.outcomes)
    else:
        verdict.explained_repeats, unexplained = check_repeats(history, first_seen)
        found += unexplained
    out_of_order = [*_order(history.outcomes), *_order_in_a_tenure(history.outcomes, tenures)]
    verdict.out_of_order = len(out_of_order)
    found += out_of_order
    ahead = list(_commit_ahead(history.samples, sorted(inputs), _places(history.outcomes)))
    verdict.commit_ahead = len(ahead)
    found += ahead
    found += _offsets_back(history.commits)
    verdict.stale_answers = _stale_answers(history.samples)
    zombies, verdict.late = _zombies(history, tenures)
    found += zombies
    verdict.recoveries_s, unrecovered = _recoveries(history, first_seen)
    found += unrecovered
    found += check_ends(history)
    found += [Violation("unclean_end", f"a member ended with code {code}") for code in history.unclean_ends]
    found += _left_behind(history)
    verdict.memory_bytes = max(history.memory_bytes.values(), default=0)
    found += check_memory(history)
    return verdict


def _first_seen(outcomes: Iterable[Outcome]) -> dict[InputId, Outcome]:
    first: dict[InputId, Outcome] = {}
    for outcome in outcomes:
        first.setdefault(outcome.id, outcome)
    return first


def _places(outcomes: Iterable[Outcome]) -> dict[InputId, list[Position]]:
    """Every place where an outcome of a record lies."""
    places: dict[InputId, list[Position]] = defaultdict(list)
    for outcome in outcomes:
        places[outcome.id].append(outcome.position)
    return places


def _lost(history: History, missing: Sequence[InputId]) -> Sequence[InputId]:
    """Of the input records without an outcome. A run that was given up has unread ones: it lost what it committed."""
    if not history.stuck:
        return missing
    committed: dict[int, int] = defaultdict(int)
    for partition, offset in history.commits:
        committed[partition] = max(committed[partition], offset)
    return [each for each in missing if each.offset < committed[each.partition]]


def _invented(first_seen: dict[InputId, Outcome], inputs: Iterable[InputId]) -> Iterator[Violation]:
    for each in sorted(first_seen.keys() - set(inputs)):
        yield Violation("invented", f"{place(first_seen[each].position)} is an outcome of {name(each)}, never sent")


def _duplicates(outcomes: Iterable[Outcome]) -> Iterator[Violation]:
    """Exactly once: any second outcome is one too many."""
    seen: dict[InputId, Outcome] = {}
    for outcome in outcomes:
        if (first := seen.setdefault(outcome.id, outcome)) is not outcome:
            yield Violation(
                "duplicate",
                f"input {name(outcome.id)} has two outcomes: {place(first.position)} by {first.writer or '?'} "
                f"and {place(outcome.position)} by {outcome.writer or '?'}",
            )


def _order(outcomes: Iterable[Outcome]) -> Iterator[Violation]:
    """For a reader that drops repeats. Per topic: the dead letters of a source among themselves, and its results."""
    seen: set[InputId] = set()
    last: dict[tuple[str, str, int], Outcome] = {}
    for outcome in outcomes:
        if outcome.id in seen or not outcome.source:  # the dead letters of frames without a source are spread
            continue
        seen.add(outcome.id)
        key = (outcome.position.topic, outcome.source, outcome.id.partition)
        before = last.get(key)
        if before is not None and outcome.id.offset < before.id.offset:
            yield Violation(
                "order",
                f"{outcome.source}: {name(outcome.id)} at {place(outcome.position)} by {outcome.writer or '?'} "
                f"came after {name(before.id)} at {place(before.position)} by {before.writer or '?'}",
            )
        else:
            last[key] = outcome


def _order_in_a_tenure(outcomes: Iterable[Outcome], tenures: Tenures) -> Iterator[Violation]:
    """Repeats included: nobody has a reason to go back while it owns a partition."""
    last: dict[tuple[Tenure, str, str], Outcome] = {}
    for outcome in outcomes:
        tenure = tenures.of(outcome)
        if tenure is None or not outcome.source:
            continue
        key = (tenure, outcome.position.topic, outcome.source)
        before = last.get(key)
        # An exactly-once member that aborts rewinds; a read_committed reader does not see what it had aborted.
        if before is not None and before.id.partition == outcome.id.partition and outcome.id <= before.id:
            yield Violation(
                "order",
                f"{outcome.source}: {outcome.writer} wrote {name(outcome.id)} at {place(outcome.position)} after "
                f"{name(before.id)} at {place(before.position)}, in one and the same assignment",
            )
        last[key] = outcome


def _commit_ahead(
    samples: Iterable[Sample], inputs: Sequence[InputId], places: dict[InputId, list[Position]]
) -> Iterator[Violation]:
    """Each sample looks at what is committed since the one before: one violation a sample."""
    checked: dict[int, int] = defaultdict(int)
    for sample in samples:
        for partition, committed in sample.committed.items():
            low = bisect.bisect_left(inputs, InputId(partition, checked[partition]))
            high = bisect.bisect_left(inputs, InputId(partition, committed))
            checked[partition] = max(checked[partition], committed)
            ahead = [each for each in inputs[low:high] if not _is_written(places.get(each, []), sample)]
            if ahead:
                yield Violation(
                    "commit_ahead",
                    f"offset {committed} of partition {partition} was committed, and {len(ahead)} outcomes before it "
                    f"were not written yet, the first of {name(ahead[0])}",
                )


def _is_written(places: Sequence[Position], sample: Sample) -> bool:
    return any(place.offset < sample.ends.get((place.topic, place.partition), 0) for place in places)


def _offsets_back(commits: Iterable[Commit]) -> Iterator[Violation]:
    """By the brokers' log of the commits, not by the samples: see `_stale_answers`."""
    last: dict[int, int] = {}
    for partition, offset in commits:
        if offset < last.get(partition, 0):
            yield Violation("offset_back", f"partition {partition}: {offset} was committed after {last[partition]}")
        last[partition] = offset


def _stale_answers(samples: Iterable[Sample]) -> int:
    """Samples with an older offset than the one before, though nobody may have committed it.

    A coordinator of Apache Kafka that has just loaded a group answers up to the high watermark that it knows, and
    after a crash of all replicas that is one of some seconds ago, until the followers have fetched again.
    """
    last: dict[int, int] = {}
    stale = 0
    for sample in samples:
        stale += any(sample.committed.get(partition, 0) < before for partition, before in last.items())
        for partition, offset in sample.committed.items():
            last[partition] = max(offset, last.get(partition, 0))
    return stale


def _left_behind(history: History) -> Iterator[Violation]:
    if history.final is None or history.unclean_ends:
        return
    ends: dict[int, int] = defaultdict(int)
    for sent in history.inputs:
        ends[sent.id.partition] = max(ends[sent.id.partition], sent.id.offset + 1)
    for partition, end in sorted(ends.items()):
        committed = history.final.committed.get(partition, 0)
        if committed < end:
            yield Violation("left_behind", f"a clean stop committed {committed} of partition {partition}, not {end}")


def _zombies(history: History, tenures: Tenures) -> tuple[list[Violation], int]:
    """The tenures of a partition must not go back along the log of its outcomes.

    Where they do, a member wrote after its successor had written. It is to blame if it had been told of the loss, or
    had given the partition up itself. If not (it was stopped, or cut off), the outcome is late: at least once cannot
    prevent that, and a repeat that keeps the order harms nobody. Exactly once must prevent it.
    """
    found: list[Violation] = []
    late = 0
    newest: dict[tuple[str, int, int], Tenure] = {}
    for outcome in history.outcomes:
        tenure = tenures.of(outcome)
        if tenure is None:
            continue
        key = (outcome.position.topic, outcome.position.partition, outcome.id.partition)
        successor = newest.get(key)
        end = tenures.end(tenure, outcome.id.partition)
        said = f"{outcome.writer} wrote {name(outcome.id)} at {place(outcome.position)}"
        if end is not None and end[1] == "lost" and outcome.published_ms > end[0]:
            found.append(Violation("zombie", f"{said}, {outcome.published_ms - end[0]:.0f} ms after it lost it"))
        elif successor is not None and tenure < successor:
            knew = end is not None and outcome.published_ms > max(end[0], successor.began_ms)
            if knew or history.delivery == "exactly_once":
                found.append(Violation("zombie", f"{said}, behind outcomes of {successor.writer}, the next owner"))
            else:
                late += 1
        if successor is None or tenure > successor:
            newest[key] = tenure
    return found, late


def _recoveries(history: History, first_seen: dict[InputId, Outcome]) -> tuple[list[float], list[Violation]]:
    """From the end of each fault until every partition has a new outcome: the slowest of them counts."""
    arrivals: dict[int, list[float]] = {each.id.partition: [] for each in history.inputs}
    for outcome in first_seen.values():
        arrivals.setdefault(outcome.id.partition, []).append(outcome.arrived_s)
    recoveries: list[float] = []
    violations: list[Violation] = []
    for strike in history.strikes:
        waits = []
        for partition, times in sorted(arrivals.items()):
            after = min((at - strike.ended_s for at in times if at > strike.ended_s), default=None)
            if after is None or after > history.recovery_limit_s:
                shown = "never" if after is None else f"{after:.1f} s"
                violations.append(
                    Violation("recovery", f"partition {partition} after {strike.fault}: new outcomes after {shown}")
                )
            else:
                waits.append(after)
        if len(waits) == len(arrivals) and waits:
            recoveries.append(max(waits))
    return recoveries, violations
