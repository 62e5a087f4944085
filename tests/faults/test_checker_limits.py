"""The checker on what the faults of a run explain: repeats, ends of processes, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from checker import check
from fleet import tracebacks
from history import (
    Exit,
    Exposure,
    History,
    Rebalance,
    Strike,
    Traceback,
)
from made_histories import ONE, TWO, good, kinds, outcome, taken_over


def test_repeats_are_allowed_up_to_the_bound_under_at_least_once() -> None:
    again = [outcome(offset, offset + 1, TWO, ms=1010 + offset) for offset in range(2, 6)]
    assert check(taken_over(again, allowed=1)).violations == []
    assert kinds(taken_over(again, allowed=0)) == {"duplicate"}
    assert kinds(taken_over(again, allowed=0, delivery="exactly_once")) == {"duplicate"}


def exposed(strikes: Sequence[Strike], again: int = 1) -> History:
    """Members may have lost their partitions in these strikes; 0@2, first seen at 12 s, has so many repeats."""
    repeated = [outcome(2, 3 + n, TWO, ms=1010 + 5 * n) for n in range(again)]
    rest = [outcome(offset, offset + again, TWO, ms=1030 + offset) for offset in range(3, 6)]
    history = taken_over([*repeated, *rest], allowed=0, exposure=Exposure(before_s=1.0, after_s=6.0))
    history.strikes[:] = strikes
    # In an assignment of its own each time: what a member may not do within one is another test's.
    history.rebalances += [Rebalance(TWO, 1010.0 + 5 * n, "assigned", frozenset({0})) for n in range(again)]
    return history


@pytest.mark.parametrize("strike", [(11.5, 11.7), (12.9, 13.0), (5.0, 6.1)], ids=["in it", "before it", "behind it"])
def test_repeats_of_what_was_written_around_a_strike_are_explained(strike: tuple[float, float]) -> None:
    """A member that is cut off writes what it cannot commit. Catches: a bound that blames it for that."""
    verdict = check(exposed([Strike("net-cut-one", *strike)]))
    assert (verdict.violations, verdict.repeats) == ([], 1)
    assert verdict.explained_repeats >= 1


@pytest.mark.parametrize("strike", [(13.1, 14.0), (4.0, 5.9)], ids=["long before it", "long behind it"])
def test_duplicate_repeats_that_no_strike_explains(strike: tuple[float, float]) -> None:
    """Catches: a harm of brokers or networks under which a group may repeat as much as it likes."""
    assert kinds(exposed([Strike("net-cut-one", *strike)])) == {"duplicate"}


def test_duplicate_a_strike_explains_one_repeat_of_a_record() -> None:
    """Catches: a group that repeats the same records over and over while the brokers are in trouble."""
    strike = Strike("net-cut-one", 11.5, 12.5)
    assert kinds(exposed([strike], again=2)) == {"duplicate"}
    verdict = check(exposed([strike, strike], again=2))
    assert (verdict.violations, verdict.repeats, verdict.explained_repeats) == ([], 2, 10)  # five records came in both


@pytest.mark.parametrize("code", [1, 70, 4, -6])
def test_crash_an_end_that_the_harm_does_not_explain(code: int) -> None:
    history = good(exits=[Exit(ONE, code, "done twice")])
    assert [str(each) for each in check(history).violations] == [
        f"crash: a member ended by itself with code {code}: done twice"
    ]
    assert check(dataclasses.replace(history, may_exit=frozenset({code}))).violations == []


def test_crash_a_traceback_in_a_log_whatever_the_exit_code() -> None:
    assert kinds(good(tracebacks=[Traceback(ONE, "ValueError: done twice")])) == {"crash"}


def test_tracebacks_are_read_from_a_members_log() -> None:
    log = (
        '{"event": "assigned"}\nTraceback (most recent call last):\n  File "x.py", line 1\n    done()\n'
        'ValueError: done twice\n{"event": "said in JSON", "exception": "Traceback (most recent call last):"}\n'
    )
    assert list(tracebacks(ONE, log)) == [Traceback(ONE, "ValueError: done twice")]


def test_memory_beyond_the_limit_and_the_constant() -> None:
    history = good(memory_bytes={ONE: 50, TWO: 30}, in_flight_limit_bytes=20, memory_base_bytes=30)
    verdict = check(history)
    assert (verdict.violations, verdict.memory_bytes) == ([], 50)
    history.memory_bytes[TWO] = 51
    assert [str(each) for each in check(history).violations] == [
        f"memory: {TWO} used 0 MiB, where limits.max_in_flight_bytes and the constant allow 0 + 0 MiB"
    ]


def test_duplicate_any_repeat_under_exactly_once_says_who_wrote_both() -> None:
    again = [outcome(offset, offset + 1, TWO, ms=1010 + offset) for offset in range(2, 6)]
    (violation,) = check(taken_over(again, delivery="exactly_once")).violations
    assert str(violation) == (
        "duplicate: input 0@2 has two outcomes: detections/0/2 by member-1 and detections/0/3 by member-2"
    )
