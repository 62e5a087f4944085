"""Provides `fake_consumer`, with which no client connects to a broker, and `bench`, a consumer with two partitions."""

from __future__ import annotations

import confluent_kafka
import pytest

from fake_kafka import FakeConsumer
from made_frames import P0, P1
from source_runs import Bench


@pytest.fixture
def fake_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_kafka, "Consumer", FakeConsumer)


@pytest.fixture
def bench(fake_consumer: None) -> Bench:
    bench = Bench()
    bench.assign(P0, P1)
    return bench
