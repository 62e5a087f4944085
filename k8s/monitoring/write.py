"""Writes what is generated in this folder: dashboard.json from panels.py, prometheusrule.yaml from rules.yml.

    python k8s/monitoring/write.py

A test compares the files with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from panels import ROWS, Panel, Row  # noqa: E402 - beside this file, which is no package

SELECTOR = 'namespace=~"$namespace", pod=~"$pod"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_RULE = """\
# Written by ../../monitoring/write.py from ../../monitoring/rules.yml; do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sluice
  namespace: sluice
spec:
"""


def prometheus_rule() -> str:
    """rules.yml as the object that the Prometheus operator reads."""
    groups = HERE.joinpath("rules.yml").read_text(encoding="utf-8").partition("groups:\n")[2]
    lines = ("groups:\n" + groups).splitlines()
    return _RULE + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def dashboard() -> str:
    """The dashboard, as Grafana's JSON model."""
    model = {
        "uid": "sluice",
        "title": "Sluice",
        "description": "Frames in, detections out. Written by k8s/monitoring/write.py; changes made here are lost.",
        "tags": ["sluice"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,  # the crosshair is shared by all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [_datasource(), _variable("namespace", ""), _variable("pod", 'namespace=~"$namespace"')]
        },
        "panels": list(_panels()),
    }
    return json.dumps(model, indent=1) + "\n"


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str, among: str) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": f"label_values(sluice_ready{{{among}}}, {label})", "refId": label},
        "refresh": 2,  # whenever the time range changes: pods come and go
        "includeAll": True,
        "multi": True,
        "allValue": ".*",  # also where there is no such label
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[dict[str, Any]]:
    top, number = 0, 1
    for row in ROWS:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": _place(0, top),
        }
        top, number = top + 1, number + 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                left, top = 0, top + height
            height = _height(row)
            yield _panel(number, panel, {"x": left, "y": top, "w": panel.width, "h": height})
            left, number = left + panel.width, number + 1
        top += height


def _place(x: int, y: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": _COLUMNS, "h": 1}


def _height(row: Row) -> int:
    return 4 if any(panel.kind == "stat" for panel in row.panels) else 8


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
        if panel.kind == "timeseries":
            defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    table = panel.kind == "table"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "expr": query.expr.replace("@", SELECTOR),
                "legendFormat": query.legend or "__auto",
                "instant": panel.kind != "timeseries",
                "range": panel.kind == "timeseries",
                **({"format": "table"} if table else {}),
            }
            for index, query in enumerate(panel.queries)
        ],
        **({"transformations": [_HIDE]} if table else {}),
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"},
    "table": {"showHeader": True},
}
_HIDE = {
    "id": "organize",
    "options": {
        "excludeByName": dict.fromkeys(
            ("Time", "Value", "__name__", "alertstate", "container", "endpoint", "instance", "job"), True
        )
    },
}


if __name__ == "__main__":
    HERE.joinpath("dashboard.json").write_text(dashboard(), encoding="utf-8")
    HERE.joinpath("../components/monitoring/prometheusrule.yaml").write_text(prometheus_rule(), encoding="utf-8")
