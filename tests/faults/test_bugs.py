"""The rig is worth something only if it catches wrong designs: each seeded bug must show within five runs.

A run here is two hundred schedules of the core in virtual time, of one seed. On real brokers the campaign runs them
(`campaign.py --bug NAME`); what that has shown is in docs/faults.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from bugs import BUGS, plant, planted
from schedules import SCHEDULES, without_logs

RUNS, SCHEDULES_PER_RUN = 5, 200
# Longer than a schedule reads: there are decisions until its end.
_ENTROPY_BYTES = 300


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with without_logs():
        yield


def first_violation(schedule: Callable[[bytes], None], seed: int) -> str:
    """What the first of a run's schedules that breaks a promise says; "" where all keep them."""
    chance = random.Random(seed)
    for _ in range(SCHEDULES_PER_RUN):
        try:
            schedule(chance.randbytes(chance.choice([0, 20, 80, _ENTROPY_BYTES])))
        except (AssertionError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("name", BUGS)
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


def test_there_are_ten_and_a_name_that_is_none_is_refused() -> None:
    """Catches a run with a mistyped bug, which would look like one that the rig does not catch."""
    assert len(BUGS) >= 10
    with pytest.raises(ValueError, match="no bug 'ignore-lots'"):
        plant("ignore-lots")
