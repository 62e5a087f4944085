"""Blocking calls of librdkafka that come back in time, whatever the library does.

`send_offsets_to_transaction` can block for ever when the group's coordinator goes away under it: the library never
looks at the time limit of a request to a coordinator (librdkafka issue 5456, open in 2.16).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import confluent_kafka
import structlog
from confluent_kafka import KafkaException

_log = structlog.get_logger(__name__)

# What a call, or a row of calls with one deadline, may take beyond it.
GRACE_S: Final = 1.0
# How soon a stop is noticed.
_LOOK_EVERY_S: Final = 0.1

T = TypeVar("T")


class StoppedError(Exception):
    """The process was told to stop while a call was waited for."""


class Caller:
    """A thread that makes the blocking calls of one client, one after the other. Use it from one thread."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(
        self, function: Callable[[float], T], timeout_s: float, grace_s: float, stop: threading.Event | None = None
    ) -> T:
        """`function(timeout_s)`: what it returns or raises. Blocks for `timeout_s` and `grace_s` at most.

        Raises KafkaException with _TIMED_OUT, not retriable, where the call is not back by then, and StoppedError as
        soon as `stop` is set. Then it goes on; make no other but `end`.
        """
        answer: queue.SimpleQueue[tuple[T] | BaseException] = queue.SimpleQueue()

        def job() -> bool:
            try:
                answer.put((function(timeout_s),))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that asked
                answer.put(error)
            return True

        self._jobs.put(job)
        until = time.monotonic() + timeout_s + grace_s
        while (left_s := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                found = answer.get(timeout=left_s if stop is None else min(_LOOK_EVERY_S, left_s))
                if isinstance(found, BaseException):
                    try:
                        raise found
                    finally:
                        del found  # it holds this frame, and so the client and the frames of a batch
                return found[0]
            if stop is not None and stop.is_set():
                raise StoppedError
        text = f"the client library did not come back {grace_s:.1f} s after its own timeout of {timeout_s:.1f} s"
        _log.warning("call hangs", error=text)
        raise KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT, text))  # noqa: SLF001

    def end(self, last: Callable[[], object]) -> None:
        """Make one last call once the others are back, and end the thread. Does not wait for it."""

        def job() -> bool:
            last()
            return False

        self._jobs.put(job)

    def _run(self) -> None:
        while self._jobs.get()():
            pass
