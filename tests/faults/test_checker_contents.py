"""The checker on the content of outcomes: each says what it has to say, of its own frame."""

from __future__ import annotations

import dataclasses

from checker import check
from history import (
    InputId,
)
from made_histories import TWO, detection, good, kinds, letter, outcome, sent, taken_over, with_content


def test_kind_a_good_frame_among_the_dead_letters() -> None:
    history = good(samples=[])
    history.outcomes[2] = outcome(2, 0, "", topic="dead")
    verdict = check(history)
    assert [str(each) for each in verdict.violations] == [
        "kind: dead/0/0 by ?, the outcome of 0@2, is rejected (damaged), not detected"
    ]
    assert verdict.wrong == 1


def test_kind_a_good_frame_may_be_rejected_only_for_what_the_harm_explains() -> None:
    """And even then the dead letter must hold the frame."""
    history = good(samples=[], may_reject=frozenset({"engine"}))
    history.outcomes[2] = dataclasses.replace(outcome(2, 0, "", topic="dead"), content=letter(2, "engine"))
    assert check(history).violations == []
    history.outcomes[2] = dataclasses.replace(history.outcomes[2], content=letter(2, "damaged"))
    assert kinds(history) == {"kind"}
    changed = dataclasses.replace(letter(2, "engine"), frame="another")
    history.outcomes[2] = dataclasses.replace(history.outcomes[2], content=changed)
    assert kinds(history) == {"content"}


def test_kind_a_bad_frame_that_became_an_empty_detection() -> None:
    history = good()
    history.inputs[2] = sent(2, "rejected")
    assert kinds(history) == {"kind"}


def test_kind_a_dead_letter_with_the_wrong_reason() -> None:
    history = good(samples=[], may_reject=frozenset({"engine"}))
    history.inputs[2] = sent(2, "rejected")
    history.outcomes[2] = dataclasses.replace(outcome(2, 0, "", topic="dead"), content=letter(2, "engine"))
    assert kinds(history) == {"kind"}


def test_kind_a_skipped_frame_where_nothing_may_be_skipped() -> None:
    assert kinds(with_content(2, kind="skipped", reason="stale")) == {"kind"}


def test_content_the_detections_of_two_frames_exchanged() -> None:
    """With their sizes, or without: each of both outcomes is wrong."""
    history = good()
    one, two = history.outcomes[2:4]
    history.outcomes[2:4] = [
        dataclasses.replace(one, content=dataclasses.replace(detection(3), of=one.id)),
        dataclasses.replace(two, content=dataclasses.replace(detection(2), of=two.id)),
    ]
    verdict = check(history)
    assert [each.kind for each in verdict.violations] == ["content"] * 2
    assert verdict.wrong == 2
    assert kinds(with_content(2, boxes=detection(3).boxes)) == {"content"}
    assert kinds(with_content(2, size=detection(3).size)) == {"content"}


def test_content_no_detection_where_there_must_be_one() -> None:
    assert kinds(with_content(2, boxes=())) == {"content"}


def test_content_a_body_that_names_another_record_than_its_header() -> None:
    assert kinds(with_content(2, of=InputId(0, 3))) == {"content"}


def test_content_a_dead_letter_that_holds_another_frame() -> None:
    history = good(samples=[])
    history.inputs[2] = sent(2, "rejected")
    history.outcomes[2] = dataclasses.replace(outcome(2, 0, "", topic="dead"), content=letter(2))
    assert check(history).violations == []
    changed = dataclasses.replace(letter(2), frame="frame 3")
    history.outcomes[2] = dataclasses.replace(history.outcomes[2], content=changed)
    assert kinds(history) == {"content"}


def test_content_a_dead_letter_that_lost_the_time_of_its_frame() -> None:
    """Catches: a letter that is dated like its frame, or like the moment of its writing, and does not say the other."""
    history = good(samples=[])
    history.inputs[2] = dataclasses.replace(sent(2, "rejected"), expected=letter(2, written_ms=5))
    history.outcomes[2] = dataclasses.replace(outcome(2, 0, "", topic="dead"), content=letter(2, written_ms=5))
    assert check(history).violations == []
    history.outcomes[2] = dataclasses.replace(history.outcomes[2], content=letter(2, written_ms=1002))
    assert kinds(history) == {"content"}


def test_content_an_outcome_under_the_key_of_another_source() -> None:
    history = good()
    history.outcomes[2] = dataclasses.replace(history.outcomes[2], source="cam-2")
    assert kinds(history) == {"content"}


def test_content_of_a_repeat_is_judged_too() -> None:
    """Catches: a checker that looks at the first outcome of a record alone."""
    again = [outcome(offset, offset + 1, TWO, ms=1010 + offset) for offset in range(2, 6)]
    again[0] = dataclasses.replace(again[0], content=dataclasses.replace(detection(4), of=again[0].id))
    assert kinds(taken_over(again)) == {"content"}
