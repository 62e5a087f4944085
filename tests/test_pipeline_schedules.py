"""Tests the guarantees of the loop under random schedules. `pipeline_world` and `transaction_world` check them."""

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
@example(entropy=random.Random(9171077).randbytes(200))  # offsets alone, after an expulsion
def test_no_schedule_violates_a_guarantee(delivery: str, entropy: bytes) -> None:
    """Mixes rebalances, losses, slow or failing inference, refused writes, failed transactions, and a stop at any time.

    Catches a commit before its acknowledgement, an epoch that is not checked, and a frame lost between two steps.
    Catches bytes that are never released, a drain that never ends, and a clean stop after which a frame is repeated.
    Catches an outcome above the offset that is committed with it, and a rewind before the transaction is resolved.
    """
    SCHEDULES[delivery](entropy)
