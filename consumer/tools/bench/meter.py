"""Measures the CPU time and the memory of a process and its children through /proc."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

_TICK: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_SAMPLE_EVERY_S: Final = 0.1  # CPU time is interpolated between samples; each sample costs the measured process some
_CHILDREN_EVERY_S: Final = 1.0  # listing the children takes milliseconds
# Until the first child is found, each sample lists the children: what a child used before it was found counts as used
# at that moment.
_CHILDREN_BY_S: Final = 10.0


class Meter:
    """CPU time and memory of a process and its children over time, sampled from /proc by a thread.

    Only the private memory of a child counts: frames lie in memory that it shares with its parent.
    """

    def __init__(self, pid: int) -> None:
        self._process = Path("/proc") / str(pid)
        self._samples: list[tuple[float, float, int]] = []  # Unix ms, CPU s, resident bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[Meter]:
        """Measure until the block ends or the process does."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    @property
    def has_samples(self) -> bool:
        """False on a system without /proc."""
        return len(self._samples) > 1

    def cpu_s(self, from_ms: float, until_ms: float) -> float:
        """CPU seconds, user and system, of all threads, between two moments in Unix milliseconds."""
        at, used = [s[0] for s in self._samples], [s[1] for s in self._samples]
        return float(np.interp(until_ms, at, used) - np.interp(from_ms, at, used))

    def resident(self) -> tuple[int, int]:
        """The last and the highest number of resident bytes."""
        return self._samples[-1][2], max(sample[2] for sample in self._samples)

    def _run(self) -> None:
        children: list[Path] = []
        began, listed_at = time.monotonic(), -math.inf
        while True:
            with contextlib.suppress(OSError):
                now = time.monotonic()
                if now - listed_at > _CHILDREN_EVERY_S or (not children and now - began < _CHILDREN_BY_S):
                    children, listed_at = _children(self._process), now
                usage = _usage(self._process)
                child_usages = [_usage(child) for child in children]
                if usage is not None:
                    cpu_s = usage.cpu_s + sum(child.cpu_s for child in child_usages if child)
                    resident = usage.resident + sum(child.private for child in child_usages if child)
                    self._samples.append((time.time() * 1000, cpu_s, resident))
            if self._stop.wait(_SAMPLE_EVERY_S):
                return


class _Usage(NamedTuple):
    """`cpu_s` includes all threads, and children that have ended. Memory in bytes."""

    cpu_s: float
    resident: int
    private: int


def _usage(process: Path) -> _Usage | None:
    """None for a process that has ended. Raises OSError if it no longer exists."""
    # The process name, in brackets, may contain spaces; 11 fields after it come four of CPU time.
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    resident, shared = (int(pages) * _PAGE for pages in (process / "statm").read_text().split()[1:3])
    return _Usage(sum(map(int, fields[11:15])) / _TICK, resident, resident - shared)


def _children(process: Path) -> list[Path]:
    """The children that run now. Empty if the kernel was built without that list."""
    return [Path("/proc") / pid for task in (process / "task").glob("*/children") for pid in task.read_text().split()]
