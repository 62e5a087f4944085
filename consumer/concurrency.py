"""Provides deadlines, the stop flag of the program, and a time limit for blocking calls."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeVar

from consumer.types import Clock

# How often a waiting call checks the stop flag.
_LOOK_EVERY_S: Final = 0.1

T = TypeVar("T")


class Deadline:
    """A time budget that all steps of a rebalance or a shutdown share.

    Args:
        seconds: The budget, from now on.
        clock: Monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._clock = clock
        self._at = clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._at - self._clock())


class Stop:
    """A flag that ends the loop, with the time at which it was set.

    It has no lock, so a signal handler may set it.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.at = math.inf  # time of the first `set`, in seconds on that clock; infinite before

    def set(self) -> None:
        """Set the flag. Only the first call has an effect."""
        self.at = min(self.at, self._clock())

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self.at < math.inf


class StoppedError(Exception):
    """The stop flag was set while the caller waited for a call."""


class Caller:
    """Runs blocking calls with a time limit, one after the other, on a thread of its own. Use it from one thread.

    The thread starts with the first call. Unlike the threads of an executor, it does not keep the process alive.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def call(self, function: Callable[[], T], within_s: float, stop: Stop | None = None) -> T:
        """Return what `function` returns, or raise what it raises. Blocks up to `within_s`.

        After a TimeoutError or a StoppedError, `function` continues to run, and the next call waits until it ends.

        Args:
            function: Runs on the other thread.
            within_s: Seconds to wait for it.
            stop: Ends the wait early when set.

        Raises:
            TimeoutError: `function` did not return in time.
            StoppedError: `stop` was set before `function` returned.
        """
        future: Future[T] = Future()
        self._do(partial(_fulfil, future, function))
        until = time.monotonic() + within_s
        try:
            while (left_s := until - time.monotonic()) > 0:
                try:
                    return future.result(left_s if stop is None else min(_LOOK_EVERY_S, left_s))
                except TimeoutError:
                    if future.done():
                        return future.result()  # it ended in the meantime, or it raised a TimeoutError itself
                if stop is not None and stop.is_set():
                    raise StoppedError
        finally:
            # The exception in it refers to this stack frame. The cycle would keep the objects of all callers alive.
            del future
        raise TimeoutError(f"not back within {within_s:.1f} s")

    def end(self, last: Callable[[], object] = lambda: None) -> None:
        """Run one last call after all earlier ones, then end the thread. Does not wait for either."""

        def job() -> bool:
            last()
            return False

        self._do(job)

    def _do(self, job: Callable[[], bool]) -> None:
        self._jobs.put(job)
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        while self._jobs.get()():
            pass


def _fulfil(future: Future[T], function: Callable[[], T]) -> bool:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - raised again on the calling thread
        future.set_exception(error)
    del future, function  # breaks the same cycle as in `Caller.call`
    return True
