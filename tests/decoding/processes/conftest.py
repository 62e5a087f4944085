"""Decoding processes for tests: `opened`, and `attacked`, whose processes execute the commands in a payload."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumer.config import DecodeConfig
from consumer.decoding.processes import process
from consumer.decoding.processes.memory import SharedMemory
from consumer.decoding.processes.pool import ProcessDecoder
from decoding import POLICY, Open

CHILD = Path(__file__).resolve().parents[2] / "support" / "hostile_child.py"


@pytest.fixture
def opened() -> Iterator[Open]:
    """`opened(processes=2, **options)`, isolated or with a `ring`. All its processes have ended after the test."""
    made: list[ProcessDecoder] = []

    def make(
        processes: int = 1,
        ring: SharedMemory | None = None,
        on_replaced: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> ProcessDecoder:
        config = DecodeConfig(**{"timeout_s": 1.0, "memory_limit_bytes": 256 * 2**20, **options})
        made.append(ProcessDecoder(config, POLICY, ring, processes=processes, on_replaced=on_replaced))
        return made[-1]

    yield make
    pids = [pid for decoder in made for pid in decoder.pids]
    for decoder in made:
        decoder.close()
    assert not any(map(psutil.pid_exists, pids))


@pytest.fixture
def attacked(opened: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
    """The same, with processes that `hostile_child` makes vulnerable."""
    monkeypatch.setattr(process, "COMMAND", (sys.executable, str(CHILD)))
    return opened
