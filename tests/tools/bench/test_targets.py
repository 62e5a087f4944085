"""The targets of the project for `sluice bench` on its reference machine: 2 shared cores and one node of Apache Kafka.

    sluice bench --bootstrap-servers localhost:9092 --json bench.json
    SLUICE_TEST_BENCH_JSON=bench.json pytest tests/tools/bench/test_targets.py

Other machines have other figures, so these tests are skipped without that variable.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consumer.tools.bench.plan import DEFAULT_ENGINE, MEMORY_FRAMES

FILE = os.environ.get("SLUICE_TEST_BENCH_JSON")


class Target(NamedTuple):
    """`what` is a percentile of `latency_ms`, the name of a comparison, or a field of the run."""

    run: str
    what: str
    at_least: bool
    limit: float


TARGETS = (
    Target("saturated", "share_of_engine_limit", at_least=True, limit=0.99),
    Target("saturated", "times the plain loop", at_least=True, limit=6.0),
    Target("zero_cost", "frames/s of decoding alone", at_least=True, limit=0.85),
    Target("zero_cost", "CPU a frame of decoding alone", at_least=False, limit=1.15),
    Target("latency_80", "p50", at_least=False, limit=10),
    Target("latency_80", "p99", at_least=False, limit=15),
    Target("latency_400", "p50", at_least=False, limit=19),
    Target("latency_400", "p99", at_least=False, limit=35),
    Target("latency_640", "p50", at_least=False, limit=34),
    Target("latency_640", "p99", at_least=False, limit=55),
    Target("saturated_exactly_once", "times at_least_once", at_least=True, limit=0.95),
    Target("seen_400_exactly_once", "p99 above at_least_once", at_least=False, limit=40),
    Target(f"memory_{MEMORY_FRAMES[1]}", "resident at the end, of the short run's", at_least=False, limit=1.05),
)


def measured(target: Target, runs: dict[str, dict[str, Any]]) -> float | None:
    """The figure of a target; None if the file does not have it."""
    run = runs.get(target.run)
    if run is None:
        return None
    if target.what in ("p50", "p99"):
        return run["latency_ms"][target.what] if run["engine"] == DEFAULT_ENGINE else None
    compared = {each["what"]: each["measured"] for each in run["comparisons"]}
    figure: float | None = compared.get(target.what, run.get(target.what))
    return figure


@pytest.mark.skipif(FILE is None, reason="SLUICE_TEST_BENCH_JSON names no file of `sluice bench --json`")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.run}: {target.what}")
def test_the_reference_machine_meets_its_target(target: Target) -> None:
    """Catches: a change that costs throughput, latency or memory."""
    assert FILE is not None
    figure = measured(target, {run["name"]: run for run in json.loads(Path(FILE).read_text())})
    if figure is None:
        pytest.skip("the file does not have this figure")
    assert figure >= target.limit if target.at_least else figure <= target.limit


def test_figures_of_each_kind_are_found() -> None:
    """Catches: a target that no longer finds its figure, and so is always skipped."""
    run = {
        "engine": DEFAULT_ENGINE,
        "latency_ms": {"p50": 9.0},
        "share_of_engine_limit": 0.99,
        "comparisons": [{"what": "times the plain loop", "measured": 6.1}],
    }
    runs = {"saturated": run, "latency_80": run}
    found = [measured(target, runs) for target in (TARGETS[0], TARGETS[1], TARGETS[4], TARGETS[-1])]
    assert found == [0.99, 6.1, 9.0, None]
