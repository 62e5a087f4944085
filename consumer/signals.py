"""Stops `sluice run` on a signal: the first one stops the loop, a second one ends the process immediately."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Final, NoReturn

import structlog

from consumer.concurrency import Stop

_log = structlog.get_logger(__name__)

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals(stop: Stop) -> None:
    """Set `stop` on the first SIGTERM or SIGINT, and end the process on the second. Call this from the main thread.

    A separate thread receives the signals. Python runs signal handlers on the main thread, and only after a call of the
    client library has returned, which can take ten seconds.

    Args:
        stop: Set on the first signal. The exit code after the second signal is 128 plus its number.
    """
    ours, written = socket.socketpair()
    written.setblocking(False)  # noqa: FBT003 - the signature of the socket
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    for number in _STOPPING:
        signal.signal(number, lambda *_: stop.set())
    # The thread holds a reference to both ends, because the wake-up descriptor must stay open.
    threading.Thread(target=_watch, args=(ours, written, stop), name="signals", daemon=True).start()


def _watch(ours: socket.socket, _written: socket.socket, stop: Stop) -> None:
    seen = 0
    while numbers := ours.recv(16):
        for number in numbers:
            if number in _STOPPING:
                seen += 1
                stop.set()
                if seen > 1:
                    _end_at_once(number)


def _end_at_once(number: int) -> NoReturn:
    """Log the reason and exit without a drain: the second signal shows that the user does not want to wait."""
    code = 128 + number
    # On a separate thread: if the main thread hangs while it writes a log line, it holds the lock of the log.
    said = threading.Thread(
        target=_log.critical,
        args=("second signal: ended without draining; frames in flight were not committed and will be repeated",),
        kwargs={"signal": signal.Signals(number).name, "exit_code": code, "restart_helps": True},
        daemon=True,
    )
    said.start()
    said.join(1.0)
    os._exit(code)
