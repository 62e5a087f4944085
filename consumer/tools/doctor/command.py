"""The options of `sluice doctor`, and its exit code."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated

import typer

from consumer.tools import clients
from consumer.tools.doctor.findings import Finding

_LOAD = "Load the model and run the largest batch. Default: unless a sluice answers at http.port."

GracePeriod = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="SECONDS", help="Time from SIGTERM to SIGKILL: terminationGracePeriodSeconds of the pod."
    ),
]
Pods = Annotated[
    int | None, typer.Option(min=1, help="Planned number of pods. Default: the current members of the group.")
]


def doctor(
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Check only configuration and model, without brokers.")
    ] = False,
    load_model: Annotated[bool | None, typer.Option("--load-model/--no-load-model", help=_LOAD)] = None,
    grace_period: GracePeriod = None,
    pods: Pods = None,
    sample: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of newest frames to read per partition.")
    ] = 100,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as problems.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, metavar="SECONDS", help="End after this time.")] = 120,
    setting: clients.Settings = None,
) -> None:
    """Check brokers, topics, permissions, limits, model and detector, before a deployment or in a running pod.

    Prints what is wrong and how to fix it. Writes to no topic, joins no group, commits nothing. Exits with 0 if the
    program can run, 1 if there are problems, 2 if the configuration is wrong.
    """
    from consumer.tools.doctor.checks import Checklist, Options
    from consumer.tools.doctor.findings import as_json as document
    from consumer.tools.doctor.findings import failed, summary
    from consumer.tools.doctor.runner import run_checks

    connection = clients.connection(config, bootstrap_servers, setting)
    options = Options(offline=offline, grace_s=grace_period, pods=pods, load_model=load_model, sample=sample)
    started = time.monotonic()
    findings: list[Finding] = []
    for finding in run_checks(Checklist(connection, options).checks(), timeout):
        findings.append(finding)
        if not as_json:
            print(finding.line(), flush=True)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps(document(findings, seconds, strict=strict), indent=2))
    else:
        print(summary(findings, seconds))
    sys.stdout.flush()
    # Not by returning: a check that hangs in native code, or a client that does not close, would block the exit.
    os._exit(1 if failed(findings, strict=strict) else 0)
