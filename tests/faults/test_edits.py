"""What harms take out of a history before it is judged: no more than they may."""

from __future__ import annotations

import pytest

from admin_faults import keep_deleted, only_remade
from campaign import HARMS, MODULES
from checker import check
from feeders import ABORTED, only_committed
from history import Delivery, History, InputId, Outcome, Position, Sent


def sent(offset: int, source: str = "cam-1") -> Sent:
    return Sent(InputId(0, offset), source)


def outcome(offset: int, at: int, source: str = "cam-1") -> Outcome:
    return Outcome(InputId(0, offset), source, Position("detections", 0, at), "a", 1000 + at, float(at))


def kinds(history: History) -> set[str]:
    return {violation.kind for violation in check(history).violations}


@pytest.fixture(params=["at_least_once", "exactly_once"])
def history(request: pytest.FixtureRequest) -> History:
    delivery: Delivery = request.param
    return History(delivery)


def test_aborted_frames_need_no_outcome_and_must_have_none(history: History) -> None:
    """Catches: a program that reads frames whose transaction was aborted, and one that loses those behind them."""
    history.inputs = [sent(0), sent(1, ABORTED + "cam-1"), sent(3)]
    only_committed(history)
    history.outcomes = [outcome(0, 0), outcome(3, 1)]
    assert kinds(history) == set()
    history.outcomes = [outcome(0, 0)]
    assert kinds(history) == {"loss"}
    history.outcomes = [outcome(0, 0), outcome(1, 1, ABORTED + "cam-1"), outcome(3, 2)]
    assert kinds(history) == {"invented"}


def test_frames_that_were_deleted_are_still_judged(history: History) -> None:
    """Catches: a loss that nobody sees because retention has taken the frame, too."""
    history.inputs, history.acknowledged = [sent(2)], [sent(0), sent(1), sent(2)]
    keep_deleted(history)
    history.outcomes = [outcome(0, 0), outcome(1, 1), outcome(2, 2)]
    assert kinds(history) == set()
    history.outcomes = [outcome(0, 0), outcome(2, 1)]
    assert kinds(history) == {"loss"}


def test_the_frames_of_a_topic_that_was_made_again_are_not_taken_for_the_old_ones(history: History) -> None:
    """Catches: a loss in the new topic that an outcome of the old one with the same offset hides."""
    history.inputs = [sent(0, "again-1"), sent(1, "again-1")]
    old = [outcome(0, 0), outcome(1, 1)]
    history.outcomes = [*old, outcome(1, 2, "again-1"), outcome(0, 3, "again-1"), outcome(0, 4, "again-1")]
    only_remade(history)
    assert kinds(history) == set()
    history.outcomes = [*old, outcome(1, 2, "again-1")]
    only_remade(history)
    assert kinds(history) == {"loss"}


def test_every_harm_has_a_name_of_its_own_that_a_specification_can_hold() -> None:
    """Catches: a harm that takes the place of another in the campaign, because both have one name."""
    assert sum(len(module.HARMS) for module in MODULES) == len(HARMS)
    assert not [name for name in HARMS if ":" in name]
