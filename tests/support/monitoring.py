"""The alerts and the dashboard as data, and what the program exports for them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from consumer.observability.metrics import Metrics

MONITORING = Path(__file__).resolve().parents[2] / "k8s" / "monitoring"
RULES = MONITORING / "rules.yml"
# What the scraper adds to every sample, on Kubernetes and (prometheus.yml) with Compose.
TARGET_LABELS = frozenset({"namespace", "pod", "job", "instance"})
OURS = re.compile(r"\b(?:sluice|process)_[a-z_]+\b")


class Asked(NamedTuple):
    """One expression of an alert or a panel, and what it says about its labels to a person."""

    where: str
    expr: str
    text: str


@functools.cache
def exported() -> dict[str, set[str]]:
    """Every sample name that the program exports, with its labels."""
    found: dict[str, set[str]] = {}
    metrics = Metrics()
    for family in metrics.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in suffixes:
            name = family.name + suffix
            labels = set(metrics.labels.get(name if family.type == "counter" else family.name, ()))
            found[name] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that ask something."""
    model = json.loads(MONITORING.joinpath("dashboard.json").read_text())
    return [panel for panel in model["panels"] if panel["type"] != "row"]


def asked() -> list[Asked]:
    """What all alerts and panels ask."""
    alerts = [Asked(rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in rules()]
    return alerts + [
        Asked(panel["title"], target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]


def filled_in(expr: str, window: str = "1m") -> str:
    """The query as Grafana sends it with All chosen."""
    values: Mapping[str, str] = {"$namespace": ".*", "$pod": ".*", "$__rate_interval": window}
    return functools.reduce(lambda text, name: text.replace(name, values[name]), values, expr)
