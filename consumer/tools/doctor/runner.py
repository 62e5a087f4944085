"""Runs the checks in order under one deadline, also if a native call never returns."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from consumer.errors import SluiceError
from consumer.tools.doctor.findings import Finding, Reporter


class Check(NamedTuple):
    """One check. `run` yields at least one finding. It may block: the runner does not wait beyond its deadline."""

    name: str
    run: Callable[[Reporter], Iterable[Finding]]


def run_checks(checks: Iterable[Check], timeout_s: float) -> Iterator[Finding]:
    """Yield the findings of every check as they arrive.

    A check that does not end in time is a problem, and the checks after it are skipped. The checks run on a daemon
    thread, so a broker, driver or file system that hangs does not block the caller. The caller should then end the
    process without waiting for that thread.
    """
    waiting = list(checks)
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()  # None: one check is done
    threading.Thread(target=_run_all, args=(waiting, found), name="doctor", daemon=True).start()
    deadline = time.monotonic() + timeout_s
    for number, check in enumerate(waiting):
        while True:
            try:
                finding = found.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                yield Reporter(check.name).problem(
                    f"the check did not end within the {timeout_s:g} s of --timeout",
                    "find out what it waits for (see the lines above), or raise --timeout",
                )
                for left in waiting[number + 1 :]:
                    yield Reporter(left.name).skipped("no time was left for this check")
                return
            if finding is None:
                break
            yield finding


def _run_all(checks: Iterable[Check], found: queue.SimpleQueue[Finding | None]) -> None:
    for check in checks:
        report = Reporter(check.name)
        try:
            for finding in check.run(report):
                found.put(finding)
        except SluiceError as error:
            found.put(report.problem(str(error)))
        except Exception as error:  # noqa: BLE001 - a check that fails must not hide the findings of the others
            found.put(
                report.problem(
                    f"the check itself failed: {type(error).__name__}: {error}", "please report it, with this line"
                )
            )
        found.put(None)
