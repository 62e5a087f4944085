"""Alerts and dashboard ask for what the program exports, ring when they should, and say what to do.

tests/integration/test_prometheus.py tries the same on a real Prometheus that scrapes a real consumer.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import MONITORING, OURS, RULES, TARGET_LABELS, Asked, asked, exported, panels, rules

ROOT = Path(__file__).resolve().parents[2]
Render = Callable[..., Any]

every_question = pytest.mark.parametrize("question", asked(), ids=lambda question: question.where)


@pytest.fixture(scope="session")
def promtool() -> str:
    if found := shutil.which("promtool"):
        return found
    reason = "needs promtool: see tests/k8s/install.sh"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str, folder: Path) -> str:
    """What the command prints. AssertionError with it where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@every_question
def test_asks_for_metrics_that_exist(question: Asked) -> None:
    """Catches a metric that was renamed: the alert never rings, the panel stays empty, and nobody notices."""
    names = set(OURS.findall(question.expr))
    assert names or question.expr.startswith(("up{", "ALERTS{"))
    assert names <= exported().keys()


@every_question
def test_groups_and_selects_by_labels_that_exist(question: Asked) -> None:
    """Catches a label that no metric of the expression has: the sum is then over everything, the text has a gap."""
    known = TARGET_LABELS.union(*(exported()[name] for name in OURS.findall(question.expr)))
    lists = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", question.expr)
    listed = {label.strip() for each in lists for label in each.split(",")}
    selected = set(re.findall(r"([a-z_]+)\s*(?:=~|!=|!~|=)\s*\"", question.expr))
    if "ALERTS" in question.expr:
        known |= {"alertname", "alertstate"}
    assert listed | selected <= known
    shown = set(re.findall(r"\$labels\.([a-z_]+)|\{\{([a-z_]+)\}\}", question.text))
    # What is not listed is gone after a sum; without a sum all of it is left.
    assert {a or b for a, b in shown} <= (listed if lists else known)


def test_every_metric_is_on_the_dashboard() -> None:
    """Catches a metric that is measured, and that nobody would ever look at."""
    shown = {name for question in asked() for name in OURS.findall(question.expr)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if name.startswith("sluice_")}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown if name.startswith("sluice_")}


# Alerts


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


def test_every_alert_has_a_runbook() -> None:
    """Catches an alert at night that leads to a page without a word on it, and a runbook for an alert that is gone."""
    page = ROOT.joinpath("docs/operations.md").read_text()
    headings = set(re.findall(r"^### (Sluice\w+)$", page, flags=re.MULTILINE))
    assert headings == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_every_alert_rings_when_it_should_and_not_before(promtool: str) -> None:
    """Catches an expression that can never be true, such as one that outlasts what it waits for."""
    page = ROOT / "tests" / "k8s" / "rules_test.yml"
    run(promtool, "test", "rules", page.name, folder=page.parent)
    tried = [case for group in yaml.safe_load(page.read_text())["tests"] for case in group["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in tried if case["exp_alerts"]} == names
    assert {case["alertname"] for case in tried if not case["exp_alerts"]} == names


def test_prometheus_takes_the_files_of_compose(promtool: str) -> None:
    assert f"{len(rules())} rules found" in run(promtool, "check", "config", "prometheus.yml", folder=MONITORING)


def test_a_start_is_no_alert(render: Render) -> None:
    """Catches an alert that is quicker than the startup probe: every rollout would ring."""
    startup = render("gpu").container["startupProbe"]
    (not_ready,) = [rule for rule in rules() if rule["alert"] == "SluiceNotReady"]
    assert int(not_ready["for"].removesuffix("m")) * 60 > startup["periodSeconds"] * startup["failureThreshold"]


# Files


def test_what_is_generated_was_generated() -> None:
    """Catches a change of rules.yml or panels.py that the cluster would never see."""
    spec = importlib.util.spec_from_file_location("write", MONITORING / "write.py")
    assert spec
    assert spec.loader
    write = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write)
    advice = "run: python k8s/monitoring/write.py"
    assert MONITORING.joinpath("dashboard.json").read_text() == write.dashboard(), advice
    component = ROOT / "k8s" / "components" / "monitoring" / "prometheusrule.yaml"
    assert component.read_text() == write.prometheus_rule(), advice


def test_the_cluster_gets_the_same_rules_and_the_same_dashboard(render: Render) -> None:
    manifests = render("gpu", "monitoring")
    assert manifests.one("PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text())
    (config_map,) = [each for each in manifests.all("ConfigMap") if "dashboard" in each["metadata"]["name"]]
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config_map["data"] == {"sluice.json": MONITORING.joinpath("dashboard.json").read_text()}
    assert len(config_map["data"]["sluice.json"]) < 900_000, "a ConfigMap holds 1 MiB"


def test_the_scraper_asks_a_port_that_exists(render: Render) -> None:
    manifests = render("gpu", "monitoring")
    (endpoint,) = manifests.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in manifests.container["ports"]}
    assert endpoint["path"] == "/metrics"


# What Grafana would otherwise show as a broken dashboard


def test_no_panel_lies_on_another_or_beside_the_screen() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]


def test_every_panel_has_a_title_of_its_own_a_meaning_and_the_chosen_datasource() -> None:
    assert len({panel["title"] for panel in panels()}) == len(panels())
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["description"].endswith(".")
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_every_panel_of_pods_follows_the_choice_of_namespace_and_pod() -> None:
    """Catches a panel that shows all pods while a person believes to see one."""
    for panel in panels():
        for target in panel["targets"]:
            for name in OURS.findall(target["expr"]):
                assert re.search(rf'{name}\{{namespace=~"\$namespace", pod=~"\$pod"', target["expr"]), panel["title"]


def test_variables_of_the_dashboard_are_those_that_it_uses() -> None:
    text = MONITORING.joinpath("dashboard.json").read_text()
    defined = {each["name"] for each in json.loads(text)["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", text)) - {"__"}
    assert used == defined
