"""How `sluice run` hears that it is to end: the first signal stops the loop, a second one ends the process at once."""

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
    """Set `stop` at the first SIGTERM or SIGINT. End the process at the second, with 128 plus its number.

    A thread looks at the signals, because Python runs handlers on the main thread, and only once a call of the client
    library is back: that can take ten seconds. Call this from the main thread.
    """
    ours, written = socket.socketpair()
    written.setblocking(False)  # noqa: FBT003 - the signature of the socket
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    for number in _STOPPING:
        signal.signal(number, lambda *_: stop.set())
    # The thread keeps both ends: the wake-up descriptor must stay open.
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
    """The user does not want to wait for the drain."""
    code = 128 + number
    # On a thread of its own: the main thread may hang in a log line, and holds the lock of the log then.
    said = threading.Thread(
        target=_log.critical,
        args=("second signal: ended without draining; frames in flight were not committed and will be repeated",),
        kwargs={"signal": signal.Signals(number).name, "exit_code": code, "restart_helps": True},
        daemon=True,
    )
    said.start()
    said.join(1.0)
    os._exit(code)
