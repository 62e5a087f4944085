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

_SKIPS = "Load the model and run the largest batch. Default: unless a sluice runs at http.port."


def doctor(
    *,
    config: clients.ConfigFile = None,
    bootstrap_servers: clients.BootstrapServers = None,
    offline: Annotated[bool, typer.Option("--offline", help="Configuration and model only; no brokers.")] = False,
    load_model: Annotated[bool | None, typer.Option("--load-model/--no-load-model", help=_SKIPS)] = None,
    grace_period: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="From SIGTERM to SIGKILL: terminationGracePeriodSeconds of the pod."
        ),
    ] = None,
    pods: Annotated[
        int | None, typer.Option(min=1, help="Pods that are to run. Default: the members that the group has now.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, max=10_000, help="Newest frames of each partition to look at.")] = 100,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are problems.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, metavar="SECONDS", help="End after so long.")] = 120,
    setting: clients.Settings = None,
) -> None:
    """Check brokers, topics, rights, limits, model and engine, before a deployment or in a pod that runs.

    Says what is wrong and how to fix it. Writes to no topic, joins no group, commits nothing. Exits with 0 where the
    program can run, 1 where there are problems, 2 where the configuration is wrong.
    """
    from consumer.tools.doctor.checks import Checklist, Options
    from consumer.tools.doctor.findings import as_json as document
    from consumer.tools.doctor.findings import failed, summary
    from consumer.tools.doctor.runner import run_checks

    there = clients.connection(config, bootstrap_servers, setting)
    options = Options(offline=offline, grace_s=grace_period, pods=pods, load_model=load_model, sample=sample)
    started = time.monotonic()
    findings: list[Finding] = []
    for finding in run_checks(Checklist(there, options).checks(), timeout):
        findings.append(finding)
        if not as_json:
            print(finding.line(), flush=True)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps(document(findings, seconds, strict=strict), indent=2))
    else:
        print(summary(findings, seconds))
    sys.stdout.flush()
    # Not by returning: a check that hangs in native code, or a client that does not close, must not hold us up.
    os._exit(1 if failed(findings, strict=strict) else 0)
