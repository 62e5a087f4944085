"""The promises of the loop under any schedule: `pipeline_world` and `transaction_world` check them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings

from pipeline_chaos import ENTROPY
from schedules import COUNT, SCHEDULES, without_logs


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with without_logs():
        yield


@pytest.mark.parametrize("delivery", SCHEDULES)
@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
@given(entropy=ENTROPY)
@example(entropy=b"")
@example(entropy=random.Random(9171077).randbytes(200))  # offsets alone, after the group has put this process out
def test_no_schedule_breaks_a_promise(delivery: str, entropy: bytes) -> None:
    """Rebalances, losses, a broken or slow engine, refused writes and failed transactions, and a stop at any moment.

    Catches a commit before its acknowledgement, an epoch that is not looked at, a frame that falls between two steps,
    bytes that are never given back, a drain that waits for ever, a clean stop that leaves something to be repeated, an
    outcome above the offset that is committed with it, and a rewind before the transaction is resolved.
    """
    SCHEDULES[delivery](entropy)
