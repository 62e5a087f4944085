"""Wait for a state by looking at it, never by sleeping for as long as it usually takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float, what: str, *, interval: float = 0.02) -> T:
    """Call `predicate` until it gives something true, and return that.

    After `timeout` seconds it raises `TimeoutError` with `what` was waited for and the last value seen. An exception
    in the predicate is not a "not yet": it goes through.
    """
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}; the last value was {value!r}")
        time.sleep(interval)
    return value
