"""The bench: which runs it rejects, which figures it computes, and one small run of all its parts."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from brokers import Broker
from consumer.tools.bench import analysis, report
from consumer.tools.bench import plan as plan_of_runs
from consumer.tools.bench.analysis import Batch, BenchError, Result
from consumer.tools.bench.command import Settings, planned
from consumer.tools.bench.comparisons import comparisons
from consumer.tools.bench.figures import DecodeOnly, Run, median
from consumer.tools.bench.load_generator import Produced
from consumer.tools.bench.meter import Meter
from waiting import wait_until

PRODUCED = [Produced(0, offset, 1000 + offset, f"cam-{offset % 2}") for offset in range(6)]


def result(offset: int, produced_ms: int = 2000, infer_ms: float = 1.0) -> Result:
    return Result(produced_ms, f"cam-{offset % 2}", 0, offset, (2, infer_ms, 0.5))


RESULTS = [result(offset) for offset in range(6)]


def test_one_result_per_frame_in_order_of_the_source_is_sound() -> None:
    """Catches: an order across sources, which nothing promises."""
    assert analysis.check(PRODUCED, RESULTS, 0).sound
    assert analysis.check(PRODUCED, [RESULTS[n] for n in (1, 0, 2, 4, 3, 5)], 0).sound


@pytest.mark.parametrize(
    ("field", "results", "dead_letters"),
    [
        ("lost", RESULTS[:-1], 0),
        ("duplicates", [*RESULTS, RESULTS[-1]], 0),
        ("unknown", [*RESULTS, result(77)], 0),
        ("unknown", [*RESULTS[:-1], RESULTS[-1]._replace(source_id="cam-9")], 0),
        ("out_of_order", [RESULTS[n] for n in (2, 0, 1, 3, 4, 5)], 0),
        ("dead_letters", RESULTS, 1),
    ],
)
def test_a_lost_duplicated_or_disordered_frame_makes_a_run_unsound(
    field: str, results: list[Result], dead_letters: int
) -> None:
    """Catches: a high throughput of a program that drops frames."""
    found = analysis.check(PRODUCED, results, dead_letters)
    assert not found.sound
    assert getattr(found, field) == 1


def test_throughput_counts_whole_batches_only() -> None:
    """Catches: counting part of a batch at the end of the window, an error of 0.5% in ten seconds."""
    batches = [Batch(40 * n, 32, 39.0) for n in range(100)]
    for until_ms in (2000, 2015, 2039):
        steady = analysis.window(batches, 30, until_ms)
        assert steady.frames_per_second == pytest.approx(800)
        assert steady.engine_busy_share == pytest.approx(0.975)
    assert analysis.middle(batches).frames == pytest.approx(0.8 * 3200, abs=64)
    with pytest.raises(BenchError, match="too few"):
        analysis.window(batches, 30, 90)


def test_results_of_one_batch_are_found_across_partitions() -> None:
    """Catches: batches that are separated by the times of their results, which differ by milliseconds."""
    results = [result(0, 2000, 1.5), result(1, 2001, 1.5), result(2, 2001, 1.75), result(3, 2003, 1.75)]
    assert analysis.group_batches(results[::-1]) == [Batch(2000, 2, 1.5), Batch(2001, 2, 1.75)]


def test_repeats_give_medians_and_one_unsound_repeat_makes_all_unsound() -> None:
    """Catches: an unsound run that is hidden by two sound ones."""
    run = Run(
        "x", "none", "none", 6, 1.0, 10.0, latency_ms={"p50": 3.0}, integrity=analysis.check(PRODUCED, RESULTS, 0)
    )
    slow = replace(run, frames_per_second=2.0, latency_ms={"p50": 9.0})
    worst = replace(run, frames_per_second=1.0, integrity=analysis.check(PRODUCED, RESULTS[:-1], 0))
    assert (median([run, slow, run]).frames_per_second, median([run, slow, slow]).latency_ms) == (10.0, {"p50": 9.0})
    assert median([run, slow, run]).sound
    assert not median([run, slow, worst]).sound


def test_a_repeat_is_compared_with_decoding_measured_around_it() -> None:
    """Catches: a comparison of the machine at one time with the program at another time."""

    def repeat(alone: float, share: float) -> Run:
        speed = DecodeOnly(frames_per_second=alone, cpu_ms_per_frame=1 / alone)
        own = alone * share
        return Run("zero_cost", "none", "none", 6, 1.0, own, cpu_ms_per_frame=1 / own, decode_only=speed)

    whole = median([repeat(1000, 0.9), repeat(2000, 0.8), repeat(3000, 0.5)])
    measured = {each.what: each.measured for each in comparisons({"zero_cost": whole})}
    assert measured["frames/s of decoding alone"] == pytest.approx(0.8)
    assert measured["CPU a frame of decoding alone"] == pytest.approx(1 / 0.8)


def test_cpu_time_of_a_new_child_is_no_burst() -> None:
    """Catches: seconds of decoding that count at the moment when the meter finds the process."""
    start = "import subprocess, sys; input(); subprocess.run([sys.executable, '-c', 'while True: pass'])"
    parent = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, start_new_session=True)
    try:
        with Meter(parent.pid).running() as meter:
            wait_until(lambda: meter._samples, 30, "a sample of the meter")
            assert parent.stdin is not None
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            wait_until(lambda: meter._samples[-1][1] > 1.5, 60, "CPU time of the child")
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    samples = meter._samples
    used = [(later[1] - sooner[1]) / (later[0] - sooner[0]) * 1000 for sooner, later in itertools.pairwise(samples)]
    assert max(used) < 3, "cores"


def test_a_small_run_of_each_kind_is_sound_and_has_all_figures() -> None:
    """Catches: a bench that cannot run. No figure is checked, because the machine may be busy."""
    settings = replace(Settings.quick(), seconds=1.0, only=("saturated", "plain_loop", "zero_cost", "latency_80"))
    runs: dict[str, Run] = {}
    with planned(settings, Console(file=io.StringIO())) as (plan, about):
        for run in plan.runs():
            runs[run.name] = run
    written = json.loads(json.dumps(report.as_json(runs, report.machine(), about)))
    assert [run["name"] for run in written] == [
        "saturated", "plain_loop", "plain_loop_each", "zero_cost", "latency_80",
    ]  # fmt: skip
    for run in written:
        name = run["name"]
        assert run["integrity"]["frames_in"] == run["integrity"]["results_out"] == run["frames"] > 0, name
        assert runs[name].sound
        assert run["engine"].startswith("simulated://")
        assert min(run["frames_per_second"], run["cpu_ms_per_frame"], *run["decode_only"].values()) > 0, name
        assert (run["share_of_engine_limit"] is None) == (name == "zero_cost")
        assert (run["latency_ms"] is None) == (name != "latency_80")
        assert run["batch_sizes"], name
        assert run["machine"]["cores"] >= 1
        assert 8_000 < run["images"]["mean_bytes"] < 24_000
        assert bool(run["comparisons"]) == (name in ("saturated", "zero_cost")), name
    assert list(written[4]["latency_ms"]) == ["p50", "p95", "p99"]
    Console(file=io.StringIO()).print(report.tables(runs))


@pytest.mark.kafka
def test_both_deliveries_are_measured_on_a_broker_with_transactions(
    apache_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a latency that ends when a result is written, before its transaction commits."""
    monkeypatch.setattr(plan_of_runs, "SEEN_RATE", 40.0)  # no figure is checked: the machine may be busy
    settings = Settings(
        bootstrap_servers=apache_broker.bootstrap_servers, seconds=3.0, warm_up_s=1.0, repeat=1, only=("seen_400",)
    )
    with planned(settings, Console(file=io.StringIO())) as (plan, _):
        runs = {run.name: run for run in plan.runs()}
    assert list(runs) == ["seen_400", "seen_400_exactly_once"]
    assert all(run.sound and run.latency_ms is not None for run in runs.values())
    assert [(each.run, each.unit) for each in comparisons(runs)] == [("seen_400_exactly_once", "ms")]
