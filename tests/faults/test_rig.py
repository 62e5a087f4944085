"""Some runs of the fault rig, on one cluster of three nodes. `make faults` runs all of it, for as long as it is told.

A run that fails prints its specification: `make faults FAULT=...` repeats it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

import scenario
from apache_kafka import ApacheKafka
from campaign import HARMS
from scenario import Spec

pytestmark = pytest.mark.kafka

# Each kind of harm once, with the deliveries and protocols in turn.
RUNS = [
    "sigkill-acknowledge:at_least_once:classic:1",
    "sigkill-transaction:exactly_once:consumer:2",
    "sigstop:exactly_once:classic:3",
    "scale-storm:at_least_once:consumer:4",
    "all-brokers-down:at_least_once:consumer:5",
    "net-heartbeats-held:exactly_once:classic:6",
    "engine-out-of-memory:at_least_once:consumer:7",
    "sigkill-decode:at_least_once:consumer:8",
    "partitions-added:exactly_once:classic:8",
    "die-committed:exactly_once:consumer:9",
]


@pytest.fixture(scope="module")
def cluster(lasting_cluster: Callable[..., ApacheKafka]) -> ApacheKafka:
    """Three nodes for all runs: each leaves them as healthy as it found them."""
    return lasting_cluster(3, proxied=True, **scenario.BROKER_SETTINGS)


@pytest.mark.parametrize("text", RUNS)
def test_the_promises_hold_whatever_is_broken(cluster: ApacheKafka, text: str) -> None:
    """Nothing lost, nothing out of order, no commit ahead, no zombie, no offset back, and outcomes flow again."""
    spec = Spec.parse(text)
    run = scenario.run(spec, dataclasses.replace(HARMS[spec.harm], strikes=1), cluster)
    print(f"{spec}: {run.verdict}")
    logs = "\n".join(f"--- {writer}\n{log[-2000:]}" for writer, log in run.logs.items())
    assert run.verdict.violations == [], f"{spec}\n{logs}"
    assert run.verdict.frames > 300
    assert run.verdict.samples > 20
    assert len(run.verdict.recoveries_s) == len(run.history.strikes) > 0
