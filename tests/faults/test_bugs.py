"""The rig is worth something only if it catches wrong designs: each seeded bug must show within five runs.

A run here is two hundred schedules of the core in virtual time, of one seed. `seeded.py` does the same on real brokers;
what that has shown is in docs/seeded-bugs.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bugs import BUGS, plant, planted
from campaign import HARMS
from schedules import SCHEDULES, first_violation, without_logs

RUNS = 5


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with without_logs():
        yield


@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.virtual])
def test_a_seeded_bug_is_caught_within_five_runs(name: str) -> None:
    with planted(name):
        found = [first_violation(SCHEDULES[BUGS[name].delivery], seed) for seed in range(RUNS)]
    caught = [violation for violation in found if violation]
    print(f"{name}: {len(caught)} of {RUNS} runs, {caught[:1]}")
    assert caught


@pytest.mark.parametrize("delivery", SCHEDULES)
def test_without_a_bug_the_same_runs_find_nothing(delivery: str) -> None:
    """Catches a rig that cries wolf: it would catch every bug, too."""
    assert [first_violation(SCHEDULES[delivery], seed) for seed in range(RUNS)] == [""] * RUNS


def test_every_harm_that_a_bug_names_exists() -> None:
    """Catches a harm that was renamed: its bugs would never run on real brokers."""
    assert {bug.harm for bug in BUGS.values()} <= {*HARMS, ""}


def test_there_are_ten_and_a_name_that_is_none_is_refused() -> None:
    """Catches a run with a mistyped bug, which would look like one that the rig does not catch."""
    assert len(BUGS) >= 10
    with pytest.raises(ValueError, match="no bug 'ignore-lots'"):
        plant("ignore-lots")
