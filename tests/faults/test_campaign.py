"""The plan of a campaign and the page that it writes."""

from __future__ import annotations

import collections
import itertools
import random
from typing import Any

import pytest

from campaign import HARMS, plan
from report import render
from scenario import DELIVERIES, PROTOCOLS, Spec

FACTS = {"rate": 100.0, "sources": 12, "partitions": 4, "session": 3.0}


def row(spec: str = "sigkill:at_least_once:classic:1", **more: Any) -> dict[str, Any]:
    zeros = dict.fromkeys(["lost", "repeats", "late", "out_of_order", "commit_ahead", "stale_answers"], 0)
    plain = {"frames": 1000, "samples": 50, "recoveries_s": [1.0], "exit_codes": [], "violations": []}
    return {"at": "2026-01-02T03:04Z", "commit": "abc", "spec": spec, "seconds": 30.0, **zeros, **plain, **more}


def test_a_specification_is_read_as_it_was_printed() -> None:
    spec = Spec("sigstop", "exactly_once", "consumer", 4711)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["sigstop", "sigstop:sometimes:classic:1", "sigstop:at_least_once:classic:x"])
def test_a_wrong_specification_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sigstop"):
        Spec.parse(text)


def test_a_campaign_goes_on_with_what_was_run_least() -> None:
    """Catches: short campaigns that all begin with the same harms, so that the rest is never run."""
    harms = [HARMS["sigkill"], HARMS["broker-pause"]]
    rows = [row(f"sigkill:{delivery}:{protocol}:1") for delivery in DELIVERIES for protocol in PROTOCOLS]
    specs = list(itertools.islice(plan(rows, harms, random.Random(1)), 12))
    assert {spec.harm for spec in specs[:4]} == {"broker-pause"}
    assert set(collections.Counter((s.harm, s.delivery, s.protocol) for s in specs[4:]).values()) == {1}
    assert len({spec.seed for spec in specs}) == 12


def test_the_same_seed_makes_the_same_plan() -> None:
    first, second = (list(itertools.islice(plan([], list(HARMS.values()), random.Random(7)), 9)) for _ in range(2))
    assert first == second


def test_the_page_adds_up_what_was_run() -> None:
    rows = [
        row(recoveries_s=[1.0, 3.0]),
        row("sigkill:at_least_once:consumer:2", repeats=7, late=2, recoveries_s=[2.0], exit_codes=[5], put_out=3),
        row("sigstop:exactly_once:classic:3", seconds=3600.0),
        {"at": "", "commit": "abc", "spec": "disk-full:at_least_once:classic:4", "void": "no cluster"},
    ]
    page = render(rows, FACTS)
    assert "3 runs so far (2 with `group.protocol=classic`, 1 with `group.protocol=consumer`)" in page
    assert "3,000 frames, 1 h 1 min; 1 more void" in page
    assert "| sigkill | 2 | 2,000 | 0 | 7 | 2 | 0 | 0 of 100 | 2.0 | 3.0 | 3.0 | 1 |" in page
    assert "| sigstop | 1 | 1,000 | 0 | 0 | 0 | 0 | 0 of 50 | 1.0 | 1.0 | 1.0 | 0 |" in page
    assert "None." in page
    assert "- `disk-full:at_least_once:classic:4` at abc: no cluster" in page
    assert "ended with exit code 7: 3 (in the 1 runs that counted them)" in " ".join(page.split())


def test_the_page_lists_each_violation_with_its_specification_until_a_person_explains_it() -> None:
    bad = row(lost=1, violations=["loss: input 0@3 of cam-1 has no outcome"])
    page = render([bad], FACTS)
    assert "- `sigkill:at_least_once:classic:1` at abc: loss: input 0@3 of cam-1 has no outcome. **Open.**" in page
    assert "Fixed in def." in render([{**bad, "note": "Fixed in def."}], FACTS)
