"""The checker on histories made by hand: one that kept the promises passes, and each way to break one is caught."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from checker import check
from fleet import rebalances
from history import (
    Commit,
    InputId,
    Rebalance,
    Sample,
    Sent,
    Strike,
)
from made_histories import ONE, TWO, good, kinds, outcome, sample, sent, taken_over
from readback import parse_commit


def test_a_run_that_kept_every_promise_passes() -> None:
    verdict = check(good())
    assert verdict.violations == []
    assert (verdict.frames, verdict.lost, verdict.repeats, verdict.samples) == (6, 0, 0, 7)
    assert verdict.recoveries_s == [1.0]


def test_loss_a_record_without_an_outcome() -> None:
    history = good()
    del history.outcomes[3]
    history.samples.clear()
    verdict = check(history)
    assert [str(violation) for violation in verdict.violations] == ["loss: input 0@3 of cam-1 has no outcome"]
    assert verdict.lost == 1


def test_a_dead_letter_is_an_outcome_and_its_order_is_its_own() -> None:
    """Order is kept per topic: a dead letter may overtake, or be overtaken by, the results around it."""
    history = good(samples=[])
    history.inputs[2] = sent(2, "rejected")
    history.outcomes[2] = outcome(2, 0, "", topic="dead")
    history.outcomes.sort(key=lambda each: each.position)
    assert check(history).violations == []


def test_what_the_brokers_lost_is_counted_as_theirs() -> None:
    history = good()
    history.acknowledged.append(Sent(InputId(0, 99), "cam-1"))
    verdict = check(history)
    assert (verdict.violations, verdict.input_lost) == ([], 1)


def test_invented_an_outcome_of_nothing() -> None:
    history = good()
    history.outcomes.append(outcome(50, 6))
    assert kinds(history) == {"invented"}


def test_order_outcomes_of_a_source_that_swap_places() -> None:
    history = good(samples=[], rebalances=[])
    history.outcomes[2:4] = [outcome(3, 2), outcome(2, 3)]
    verdict = check(history)
    assert [violation.kind for violation in verdict.violations] == ["order"]
    assert verdict.out_of_order == 1


def test_order_sources_of_a_partition_may_overtake_each_other() -> None:
    history = good(samples=[])
    history.inputs[3] = dataclasses.replace(history.inputs[3], source="cam-2")
    swapped = [dataclasses.replace(outcome(3, 2), source="cam-2"), outcome(2, 3)]
    history.outcomes[2:4] = swapped
    assert check(history).violations == []


def test_order_a_member_that_goes_back_within_its_assignment() -> None:
    """Repeats keep the order for a reader that drops them, and still nobody may go back on its own."""
    history = good(allowed_repeats=1)
    history.outcomes.append(outcome(2, 6))
    assert kinds(history) == {"order"}


def test_commit_ahead_a_committed_offset_behind_which_an_outcome_was_not_written() -> None:
    history = good()
    history.samples[3] = sample(4, 3)
    verdict = check(history)
    assert [violation.kind for violation in verdict.violations] == ["commit_ahead"]
    assert verdict.commit_ahead == 1


def test_commit_ahead_each_outcome_is_looked_for_where_it_lies() -> None:
    """A dead letter that was written late is as much of a gap as a result."""
    history = good(samples=[Sample(0.0, {0: 3}, {("detections", 0): 6, ("dead", 0): 0})])
    history.inputs[2] = sent(2, "rejected")
    history.outcomes[2] = outcome(2, 0, "", topic="dead")
    assert kinds(history) == {"commit_ahead"}


def test_commit_ahead_of_a_lost_record_is_both() -> None:
    history = good()
    del history.outcomes[3]
    assert kinds(history) == {"loss", "commit_ahead"}


def test_offset_back_by_the_log_of_the_commits() -> None:
    commits = [Commit(0, 2), Commit(1, 9), Commit(0, 2), Commit(0, 5)]
    assert check(good(commits=commits)).violations == []
    assert kinds(good(commits=[*commits, Commit(0, 4)])) == {"offset_back"}


@pytest.mark.parametrize("now", [2, 0], ids=["lower", "none"])
def test_offset_back_is_not_what_a_coordinator_answers_that_has_not_caught_up(now: int) -> None:
    """After all brokers had crashed, Apache Kafka 4.3 answered with older offsets for a moment. It is counted."""
    history = good()
    history.samples[4] = sample(now, 6)
    verdict = check(history)
    assert (verdict.violations, verdict.stale_answers) == ([], 1)


def test_commits_are_read_from_the_brokers_log() -> None:
    key = struct.pack(">hh5sh6si", 1, 5, b"group", 6, b"frames", 3)
    value = struct.pack(">hqihqq", 3, 42, -1, 0, 0, 0)
    assert parse_commit(key, value, "group") == Commit(3, 42)
    assert parse_commit(key, value, "another") is None
    assert parse_commit(key, None, "group") is None  # expired
    assert parse_commit(struct.pack(">hh5s", 2, 5, b"group"), b"metadata", "group") is None


def test_zombie_a_member_that_writes_after_it_was_told_of_the_loss() -> None:
    lost = Rebalance(ONE, 1006.0, "lost", frozenset({0}))
    again = [outcome(offset, offset + 1, TWO, ms=1010 + offset) for offset in range(2, 6)]
    assert check(taken_over(again, lost)).violations == []
    assert kinds(taken_over([*again, outcome(3, 7, ms=1020)], lost)) == {"zombie"}


def test_zombie_a_member_that_writes_after_it_gave_the_partition_up() -> None:
    """A revocation may take its time: what is published before the next owner has its assignment is in order."""
    revoked = Rebalance(ONE, 1003.0, "revoked", frozenset({0}))
    rest = [outcome(offset, offset, TWO, ms=1010 + offset) for offset in range(4, 6)]
    assert check(taken_over([outcome(3, 3, ms=1004), *rest], revoked)).violations == []
    assert kinds(taken_over([*rest, outcome(3, 6, ms=1020)], revoked)) >= {"zombie"}


def test_zombie_one_that_could_not_know_is_late_and_counted() -> None:
    again = [outcome(offset, offset + 1, TWO, ms=1010 + offset) for offset in range(2, 6)]
    history = taken_over([*again, outcome(3, 7, ms=1004)])
    verdict = check(history)
    assert (verdict.violations, verdict.late) == ([], 1)
    history = dataclasses.replace(history, delivery="exactly_once")
    assert "zombie" in kinds(history)


def test_zombie_the_first_owner_may_get_the_partition_back() -> None:
    back = [
        Rebalance(ONE, 1003.0, "revoked", frozenset({0})),
        Rebalance(TWO, 1012.0, "revoked", frozenset({0})),
        Rebalance(ONE, 1013.0, "assigned", frozenset({0})),
    ]
    rest = [outcome(3, 3, TWO, ms=1010), outcome(4, 4, ms=1014), outcome(5, 5, ms=1015)]
    assert check(taken_over(rest, *back)).violations == []


def test_recovery_never_and_too_late() -> None:
    late = good(strikes=[Strike("sigkill", 11.0, 14.5)], recovery_limit_s=0.4)
    assert kinds(late) == {"recovery"}
    never = good(strikes=[Strike("sigkill", 11.0, 90.0)])
    verdict = check(never)
    assert [str(each) for each in verdict.violations] == [
        "recovery: partition 0 after sigkill: new outcomes after never"
    ]
    assert verdict.recoveries_s == []


def test_recovery_a_repeat_is_no_new_outcome() -> None:
    """A member that repeats the same frames for ever has not recovered."""
    history = good(strikes=[Strike("sigkill", 15.5, 15.6)], allowed_repeats=1, rebalances=[])
    history.outcomes.append(outcome(5, 6, s=16.0))
    assert kinds(history) == {"recovery"}


def test_a_clean_stop_commits_all_that_was_finished() -> None:
    history = good(final=sample(5, 6))
    assert kinds(history) == {"left_behind"}
    history.unclean_ends.append(7)
    assert kinds(history) == {"unclean_end"}


def test_stuck_is_a_violation() -> None:
    assert kinds(good(stuck="the members to share the partitions")) == {"stuck"}


def test_a_run_that_was_given_up_has_lost_what_it_committed_and_not_what_it_left_unread() -> None:
    """Catches a rig that gives up before the first harm, and says that thousands of frames are lost."""
    history = good(stuck="the first outcomes", final=None, samples=[], strikes=[], commits=[Commit(0, 3)])
    del history.outcomes[2:]
    verdict = check(history)
    assert [str(each) for each in verdict.violations] == [
        "loss: input 0@2 of cam-1 has no outcome",
        "stuck: the first outcomes",
    ]
    assert verdict.lost == 1


def test_rebalances_are_read_from_a_members_log() -> None:
    log = (
        "not JSON\n"
        '{"partitions": ["frames[0]", "frames[12]"], "event": "assigned", "timestamp": "2026-01-02T03:04:05.250000Z"}\n'
        '{"partitions": 3, "event": "something else"}\n'
        '{"partitions": ["frames[12]"], "event": "lost", "timestamp": "2026-01-02T03:04:06Z"}\n'
        '{"partitions": ["frames[12]"], "event": "revo'
    )
    first, second = rebalances("member", log)
    assert (first.event, first.partitions, first.at_ms % 1000) == ("assigned", {0, 12}, 250)
    assert (second.event, second.partitions) == ("lost", {12})
    assert second.at_ms - first.at_ms == 750
