"""Serves `/healthz`, `/readyz` and `/metrics` over HTTP, and ends the process if its main loop hangs.

A member of a consumer group whose loop hangs can keep its partitions indefinitely, because KIP-848 heartbeats continue
in the background. So the process must detect it itself, with a watchdog.

The threads of this module read only a heartbeat and a state.
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

# Probes and a scraper need only a few.
MAX_CONNECTIONS = 32
# The number of calls to log from the stack of a loop that hangs, the innermost ones.
_CALLS_SHOWN = 12


class State(enum.IntEnum):
    """The state of the process. The numbers are exported as a metric, so they must not change."""

    STARTING = 0
    RUNNING = 1
    DRAINING = 2
    FAILED = 3


class Health:
    """The health of the process. The main thread writes it, and other threads read it.

    It needs no lock: it has one state and one time, and each is set in one step.

    Args:
        clock: Monotonic seconds.
        stall_timeout_s: The maximum time without progress of the main loop, in seconds.

    Attributes:
        state: The state of the process.
    """

    def __init__(self, *, clock: Clock, stall_timeout_s: float) -> None:
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._beat = clock()
        self.state = State.STARTING

    def beat(self) -> None:
        """Record progress of the main loop."""
        self._beat = self._clock()

    @property
    def loop_age_s(self) -> float:
        """The seconds since the last `beat`."""
        return self._clock() - self._beat

    @property
    def stalled(self) -> bool:
        """Whether the main loop hangs. Never true during the start, because loading a model takes long."""
        return self.state is not State.STARTING and self.loop_age_s > self._stall_timeout_s

    @property
    def ready(self) -> bool:
        """Whether the process is running and its loop makes progress. `/readyz` reports it."""
        return self.state is State.RUNNING and self.loop_age_s < min(self._stall_timeout_s, 10.0)

    @property
    def alive(self) -> bool:
        """Whether the process has neither failed nor stalled. If not, it needs a restart. `/healthz` reports it."""
        return self.state is not State.FAILED and not self.stalled


class Watchdog:
    """Ends the process with the exit code of `StalledError` if the main loop hangs.

    Args:
        health: The health of the process.
        end: Ends the process with an exit code.
    """

    def __init__(self, health: Health, end: Callable[[int], object] = os._exit) -> None:
        self._health = health
        self._end = end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start to watch the main loop."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            if self._health.stalled:
                # On another thread, because the main loop may hang in a write to stderr and hold the lock of the log.
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
    """Return the stack of a thread, innermost call last: file, line and function of each call."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented, for debuggers
    calls = traceback.extract_stack(frame) if frame is not None else []
    return [f"{'/'.join(Path(call.filename).parts[-2:])}:{call.lineno} {call.name}" for call in calls[-_CALLS_SHOWN:]]


class _Answer(NamedTuple):
    ok: bool
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class _Server(ThreadingHTTPServer):
    """An HTTP server with one thread per connection and a limited number of connections.

    Above the limit it closes the oldest connection, so that a probe is always answered.
    """

    daemon_threads = True
    request_queue_size = 128  # with the default of 5, a burst of connections makes a probe wait for seconds

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections: dict[Any, None] = {}  # sockets, oldest first
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            oldest = next(iter(self._connections)) if len(self._connections) > MAX_CONNECTIONS else None
            self._connections.pop(oldest, None)
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread then reads the end of the stream, and ends
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect during an answer. The base class would print a traceback."""


class HealthServer:
    """Serves the health endpoints and the metrics on a thread of its own.

    Args:
        config: The `http` options.
        health: The health of the process.
        metrics: The metrics of the process.

    Attributes:
        port: The port. If a test binds port 0, it is the port that the system chose.

    Raises:
        ConfigError: The address cannot be bound.
    """

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
            timeout = 5  # seconds, so that a client that sends nothing does not occupy a thread

            def do_GET(self) -> None:
                found = answer(self.path.partition("?")[0])
                self.send_response(404 if found is None else 200 if found.ok else 503)
                self.send_header("Content-Type", found.content_type if found else "text/plain")
                body = found.body if found else b"try /healthz, /readyz or /metrics\n"
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of the base
                """No-op: probes come every few seconds and are not worth a log line."""

        try:
            self._server = _Server((config.host, config.port), Handler)
        except OSError as error:
            raise ConfigError(f"http: cannot listen on {config.host}:{config.port}: {error.strerror}") from None
        self.port: int = self._server.server_address[1]
        # `close` waits for the end of this interval. The default of 0.5 s was most of the time from SIGTERM to exit.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="http", daemon=True)

    def start(self) -> None:
        """Start to answer requests."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering, and free the port."""
        if self._thread.ident is not None:  # `shutdown` would wait for a thread that never ran
            self._server.shutdown()
        self._server.server_close()
