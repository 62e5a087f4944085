"""Health: `/healthz`, `/readyz` and `/metrics` over HTTP, and the watchdog that ends a process whose loop hangs.

The threads here read a heartbeat and a state, nothing else. A consumer group member whose loop has hung can keep its
partitions for ever (KIP-848 heartbeats go on in the background), so the program must notice it by itself.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from consumer.config import HttpConfig
from consumer.errors import ConfigError, StalledError
from consumer.observability.metrics import Metrics
from consumer.types import Clock

_log = structlog.get_logger(__name__)

# Probes and a scraper need a handful.
MAX_CONNECTIONS = 32
# Of the stack of a loop that hangs: from the step of the loop down.
_CALLS_SHOWN = 12


class State(enum.IntEnum):
    """What the process is doing. The numbers are exported, so they stay."""

    STARTING = 0
    RUNNING = 1
    DRAINING = 2
    FAILED = 3


class Health:
    """Written by the main thread, read by others: one state and one time, each set in one step."""

    def __init__(self, *, clock: Clock, stall_timeout_s: float) -> None:
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._beat = clock()
        self.state = State.STARTING

    def beat(self) -> None:
        """The main loop has turned."""
        self._beat = self._clock()

    @property
    def loop_age_s(self) -> float:
        """Seconds since the loop last turned."""
        return self._clock() - self._beat

    @property
    def stalled(self) -> bool:
        """The loop should have turned long ago. While starting it need not: loading a model takes its time."""
        return self.state is not State.STARTING and self.loop_age_s > self._stall_timeout_s

    @property
    def ready(self) -> bool:
        """Warm, in the loop, and the loop turns."""
        return self.state is State.RUNNING and self.loop_age_s < min(self._stall_timeout_s, 10.0)

    @property
    def alive(self) -> bool:
        """A restart would not help."""
        return self.state is not State.FAILED and not self.stalled


class Watchdog:
    """Ends the process with StalledError's exit code once `health` says that the loop hangs."""

    def __init__(self, health: Health, end: Callable[[int], object] = os._exit) -> None:
        self._health = health
        self._end = end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            if self._health.stalled:
                # On a thread of its own: the loop may hang in a write to stderr, holding the lock of the log.
                saying = threading.Thread(target=self._say, daemon=True)
                saying.start()
                saying.join(1.0)
                self._end(StalledError.exit_code)
                return

    def _say(self) -> None:
        _log.critical(
            "the main loop hangs; ending the process so that another takes over",
            loop_age_s=round(self._health.loop_age_s, 1),
            at=_where(threading.main_thread()),
            exit_code=StalledError.exit_code,
        )


def _where(thread: threading.Thread) -> list[str]:
    """What a thread is in, the innermost call last: the file, the line and the function of each."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented, for debuggers
    calls = traceback.extract_stack(frame) if frame is not None else []
    return [f"{'/'.join(Path(call.filename).parts[-2:])}:{call.lineno} {call.name}" for call in calls[-_CALLS_SHOWN:]]


class _Answer(NamedTuple):
    ok: bool
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class _Server(ThreadingHTTPServer):
    """A thread for each connection, and a bound on both: one too many costs the oldest, so that a probe gets in."""

    daemon_threads = True
    request_queue_size = 128  # not yet accepted: with 5, the base's, a burst makes a probe wait for seconds

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections: dict[Any, None] = {}  # sockets, the oldest first
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            oldest = next(iter(self._connections)) if len(self._connections) > MAX_CONNECTIONS else None
            self._connections.pop(oldest, None)
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end of the stream, and ends
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in mid-answer is not worth a traceback; the base would print one."""


class HealthServer:
    """The HTTP thread. `port` is the real one where 0 was bound for a test."""

    def __init__(self, config: HttpConfig, health: Health, metrics: Metrics) -> None:
        def answer(path: str) -> _Answer | None:
            if path == "/healthz":
                return _Answer(health.alive, health.state.name.lower().encode() + b"\n")
            if path == "/readyz":
                return _Answer(health.ready, health.state.name.lower().encode() + b"\n")
            if path == "/metrics":
                metrics.loop_age.set(health.loop_age_s)
                metrics.ready.set(health.ready)
                metrics.state.set(health.state)
                return _Answer(ok=True, body=generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)
            return None

        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # a client that says nothing does not keep a thread

            def do_GET(self) -> None:
                found = answer(self.path.partition("?")[0])
                self.send_response(404 if found is None else 200 if found.ok else 503)
                self.send_header("Content-Type", found.content_type if found else "text/plain")
                body = found.body if found else b"try /healthz, /readyz or /metrics\n"
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of the base
                """Probes every few seconds are not worth a line."""

        try:
            self._server = _Server((config.host, config.port), Handler)
        except OSError as error:
            raise ConfigError(f"http: cannot listen on {config.host}:{config.port}: {error.strerror}") from None
        self.port: int = self._server.server_address[1]
        # A stop waits for this interval to end; the default of 0.5 s was most of the time from SIGTERM to exit.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="http", daemon=True)

    def start(self) -> None:
        """Answer until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        if self._thread.ident is not None:  # it would wait for a thread that never ran
            self._server.shutdown()
        self._server.server_close()
