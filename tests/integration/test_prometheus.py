"""Alerts and dashboard on a real Prometheus that scrapes the real program on a real broker."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest

import images
from brokers import Broker
from monitoring import OURS, asked, filled_in, panels, rules
from prometheus import Prometheus
from sluice_process import Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(
        not shutil.which("prometheus") and os.environ.get("CI") != "true",
        reason="needs prometheus: see tests/k8s/install.sh",
    ),
]
# What a healthy consumer on a CPU has no samples of.
EMPTY = {"GPU memory", "Alerts that ring"}


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[tuple[Sluice, Prometheus]]:
    """A consumer that has worked for a while under the eyes of Prometheus: good frames, bad ones, and a rebalance."""
    kafka = request.getfixturevalue("apache_kafka")
    broker = Broker("apache", kafka.bootstrap_servers, {}, None, kafka.create_topic)  # type: ignore[arg-type]
    topics = Topics.on(broker)
    good, bad = images.jpeg(64, 48), b"no image"
    with (
        running(broker, topics, "simulated://2ms@1,8ms@32") as sluice,
        Prometheus([f"127.0.0.1:{sluice.port}"]) as server,
        reading(broker, topics.detections) as reader,
    ):
        sluice.wait_ready()
        wait_until(lambda: server.query("sluice_ready == 1"), 20, "the first scrape")
        for turn in range(4):
            produce(broker, topics.frames, [(f"cam-{n % 6}", bad if n % 20 == 19 else good) for n in range(200)])
            reader.read(190 * (turn + 1), 30, alive=lambda: sluice.running)
            seen = 200 * (turn + 1)
            wait_until(lambda n=seen: total(server, "sluice_outcomes_total") == n, 20, f"a scrape of {seen} outcomes")
        # A rate needs two samples that differ; the last of them must have been taken after the last commit.
        wait_until(lambda: total(server, 'sluice_commits_total{result="ok"}'), 20, "a scrape of a commit")
        yield sluice, server


def total(server: Prometheus, metric: str) -> float:
    samples = server.query(f"sum({metric})")
    return float(samples[0]["value"][1]) if samples else 0.0


def test_every_rule_is_evaluated_without_an_error(world: tuple[Sluice, Prometheus]) -> None:
    """Catches many-to-many matches and names that only a server with samples stumbles over."""
    _, server = world

    def evaluated() -> list[dict[str, str]]:
        (group,) = server.get("/api/v1/rules")["groups"]
        found: list[dict[str, str]] = group["rules"]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = wait_until(evaluated, 20, "all rules to be evaluated")
    assert [rule["name"] for rule in found] == [rule["alert"] for rule in rules()]
    assert {rule["name"]: rule.get("lastError", "") for rule in found if rule["health"] != "ok"} == {}


def test_everything_that_an_alert_looks_at_is_there(world: tuple[Sluice, Prometheus]) -> None:
    """Catches an alert that stays silent because its samples lack a label, or never come."""
    _, server = world
    for rule in rules():
        for name in OURS.findall(rule["expr"]):
            absent = name.startswith("sluice_gpu_memory")
            assert bool(server.query(name + '{namespace="compose", pod!=""}')) != absent, rule["alert"]


def test_every_panel_shows_what_it_says(world: tuple[Sluice, Prometheus]) -> None:
    """Catches a query that a server refuses, one without an answer, and a legend with a gap."""
    _, server = world
    for panel in panels():
        for target in panel["targets"]:
            samples = server.query(filled_in(target["expr"]))
            assert bool(samples) == (panel["title"] not in EMPTY), (panel["title"], target["expr"])
            for label in re.findall(r"\{\{([a-z_]+)\}\}", target["legendFormat"]):
                assert all(sample["metric"].get(label) for sample in samples), (panel["title"], label)


def test_the_figures_are_those_of_the_run(world: tuple[Sluice, Prometheus]) -> None:
    """Catches a panel that adds up what must not be added, or divides by the wrong thing."""
    _, server = world
    queries = {question.where: filled_in(question.expr, "5m") for question in asked()}
    (share,) = server.query(queries["Dead letters"])
    assert float(share["value"][1]) == pytest.approx(0.05, abs=0.02)
    (ready,) = server.query(queries["Ready pods"])
    (partitions,) = server.query(queries["Partitions"])
    assert (ready["value"][1], partitions["value"][1]) == ("1", "4")
    for title in ("Engine share", "Decode share"):
        (busy,) = server.query(queries[title])
        assert 0 < float(busy["value"][1]) < 1


def test_a_pod_that_ends_is_noticed(world: tuple[Sluice, Prometheus]) -> None:
    """The last one: it ends the consumer. Catches an alert whose labels do not fit what really happens."""
    sluice, server = world

    def pending() -> set[str]:
        return {alert["labels"]["alertname"] for alert in server.get("/api/v1/alerts")["alerts"]}

    assert pending() <= {"SluiceRejecting"}  # one frame in twenty is bad
    assert sluice.terminate() == 0, sluice.log
    wait_until(lambda: pending() >= {"SluiceUnreachable", "SluiceGone"}, 20, "the alerts to become pending")
