"""Calls that must come back: what a call that never does may not keep from happening."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from consumer.concurrency import Caller
from waiting import wait_until

HANGS = """
import sys, threading
from consumer.concurrency import Caller
caller = Caller("hangs")
try:
    caller.call(threading.Event().wait, 0.1)
except TimeoutError:
    caller.end()
    {end}
"""


@pytest.mark.parametrize(("end", "status"), [("sys.exit(7)", 7), ("raise RuntimeError", 1)])
def test_a_process_ends_although_a_call_hangs(end: str, status: int) -> None:
    """Catches a thread that Python waits for when it ends."""
    ended = subprocess.run([sys.executable, "-c", HANGS.format(end=end)], timeout=60, check=False, capture_output=True)
    assert ended.returncode == status, ended.stderr.decode()


def test_calls_are_made_one_after_the_other_and_the_last_one_behind_them() -> None:
    """Catches a client that is closed while a call that was given up is still in it."""
    caller, back, ended = Caller("one"), threading.Event(), threading.Event()
    done: list[str] = []

    def hangs() -> None:
        back.wait()
        done.append("given up")

    def last() -> None:
        done.append("last")
        ended.set()

    with pytest.raises(TimeoutError):
        caller.call(hangs, 0.05)
    caller.end(last)
    assert not done
    back.set()
    assert ended.wait(5)
    assert done == ["given up", "last"]


def test_what_a_call_raises_keeps_nothing_alive() -> None:
    """Catches a batch of frames that stays until the garbage collector comes by, after every failed transaction."""

    class Batch:
        pass

    def fails() -> None:
        raise ValueError("said")

    def transact() -> weakref.ref[Batch]:
        batch = Batch()
        try:
            caller.call(fails, 5)
        except ValueError:
            return weakref.ref(batch)
        raise AssertionError

    caller = Caller("fails")
    gc.disable()
    try:
        kept = transact()
        wait_until(lambda: kept() is None, 5, "the batch to be forgotten")  # its thread may hold it for a moment still
    finally:
        gc.enable()


def test_a_call_that_raises_a_timeout_of_its_own_is_back() -> None:
    """Catches a wait that takes the answer for no answer, and spins until its own time is over."""

    def fails() -> None:
        raise TimeoutError("the disk's")

    with pytest.raises(TimeoutError, match="the disk's"):
        Caller("times out").call(fails, 60)
