"""Deadlines, the stop of the program, and blocking calls that are given up in time."""

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

# How soon a stop is noticed.
_LOOK_EVERY_S: Final = 0.1

T = TypeVar("T")


class Deadline:
    """One budget of time that everything inside a rebalance or a shutdown shares."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._clock = clock
        self._at = clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._at - self._clock())


class Stop:
    """Tells the loop to end, and remembers since when. A signal handler may set it: it has no lock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.at = math.inf  # on that clock

    def set(self) -> None:
        """End. Only the first time counts."""
        self.at = min(self.at, self._clock())

    def is_set(self) -> bool:
        """Whether to end."""
        return self.at < math.inf


class StoppedError(Exception):
    """The process was told to stop while a call was waited for."""


class Caller:
    """Makes calls one after the other. Use it from one thread.

    Its thread begins with the first call, and does not keep the process from ending, as an executor's would.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def call(self, function: Callable[[], T], within_s: float, stop: Stop | None = None) -> T:
        """What `function` returns or raises. Blocks for `within_s` at most.

        Raises TimeoutError where it is not back by then, and StoppedError as soon as `stop` is set. Then it goes on,
        and whatever is called next waits behind it.
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
                        return future.result()  # in the meantime, or it raised a TimeoutError itself
                if stop is not None and stop.is_set():
                    raise StoppedError
        finally:
            del future  # what it raised holds this frame, and so all that the caller has in hand
        raise TimeoutError(f"not back within {within_s:.1f} s")

    def end(self, last: Callable[[], object] = lambda: None) -> None:
        """Make one last call once the others are back, and end the thread. Does not wait for it."""

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
    except BaseException as error:  # noqa: BLE001 - raised again by the thread that asked
        future.set_exception(error)
    del future, function  # as above
    return True
