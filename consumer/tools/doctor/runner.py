"""Runs the checks in turn under one deadline, so that it ends even where a native call does not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from consumer.errors import SluiceError
from consumer.tools.doctor.findings import Finding, Reporter


class Check(NamedTuple):
    """`run` yields at least one finding, and blocks for as long as it likes: the examination gives up on it."""

    name: str
    run: Callable[[Reporter], Iterable[Finding]]


def run_checks(checks: Iterable[Check], timeout_s: float) -> Iterator[Finding]:
    """The findings of every check, as they come. What has not answered in time is a problem; the rest is skipped.

    The checks run on a daemon thread: a broker, a driver or a file system that hangs cannot hold up the caller, who
    should then end the process without waiting for that thread.
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
                    f"no answer within the {timeout_s:g} s of the examination",
                    "see what it waits for (the lines above), or give it more time (--timeout)",
                )
                for left in waiting[number + 1 :]:
                    yield Reporter(left.name).skipped("no time was left for it")
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
        except Exception as error:  # noqa: BLE001 - one check that fails must not hide what the others find
            found.put(
                report.problem(
                    f"the check itself failed: {type(error).__name__}: {error}", "please report it, with this line"
                )
            )
        found.put(None)
