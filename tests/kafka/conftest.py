"""`bench`: a source with two partitions. No test here meets a broker."""

from __future__ import annotations

import confluent_kafka
import pytest

from fake_kafka import FakeConsumer
from made_frames import P0, P1
from source_runs import Bench


@pytest.fixture(autouse=True)
def _no_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_kafka, "Consumer", FakeConsumer)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.assign(P0, P1)
    return bench
