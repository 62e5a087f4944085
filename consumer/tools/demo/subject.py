"""The real `sluice run` as a child process, configured through its environment as a pod is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from consumer.config import ENV_PREFIX
from consumer.errors import SluiceError
from consumer.observability.logging import printable
from consumer.tools.embedded import dies_with_parent, free_port, tail_of

_LOG_LINES: Final = 12
_GOODBYE_S: Final = 2.0
# What the caller's shell says about brokers, topics and files is meant for another consumer than the demo's. The rest
# (batching, detector, decode, limits) applies: trying it out is what a demo is for.
_NOT_INHERITED: Final = tuple(ENV_PREFIX + name for name in ("CONFIG", "KAFKA", "INPUT", "OUTPUT", "DEAD_LETTER"))


class DemoError(SluiceError):
    """The demo could not be run, or what came out of it breaks a promise."""


class Metrics(NamedTuple):
    """What the consumer says about itself: for the live line and the busy share, not for the judgement."""

    assigned: int
    outcomes: int
    busy_s: float
    model: str
    device: str


class Subject:
    """The consumer process. It ends with this process, and at the end of the `with` block."""

    def __init__(self, options: Mapping[str, Any], log: Path) -> None:
        self.log = log
        self._port = free_port()
        settings = {**options, "http.host": "127.0.0.1", "http.port": self._port, "log.format": "json"}
        ours = {
            ENV_PREFIX + path.replace(".", "__").upper(): value if isinstance(value, str) else json.dumps(value)
            for path, value in settings.items()
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, without a shell
                dies_with_parent([sys.executable, "-m", "consumer", "run"]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**inherited, **ours},
                # A Ctrl-C is for the demo, which then ends its children in order.
                process_group=0,
            )

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_GOODBYE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def wait_ready(self, partitions: int, timeout_s: float, on_wait: Callable[[str], None]) -> None:
        """Until the model is warm and all partitions are assigned: a join would look like latency."""
        deadline = time.monotonic() + timeout_s
        state = "loading the model"
        while True:
            if self._answers("/readyz"):
                state = "joining the consumer group"
                if (metrics := self.metrics()) is not None and metrics.assigned >= partitions:
                    return
            on_wait(state)
            self.check_running()
            if time.monotonic() > deadline:
                raise self.failure(f"is still {state} after {timeout_s:.0f} s")
            time.sleep(0.05)

    def metrics(self) -> Metrics | None:
        """None where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        values: dict[str, float] = {}
        labels: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
                if sample.name == "sluice_build_info":
                    labels = sample.labels
        return Metrics(
            assigned=int(values.get("sluice_assigned_partitions", 0)),
            outcomes=int(values.get("sluice_outcomes_total", 0)),
            busy_s=values.get("sluice_engine_busy_seconds_total", 0.0),
            model=labels.get("model", ""),
            device=labels.get("device", ""),
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def check_running(self) -> None:
        """Raises DemoError with the end of the log where it has ended."""
        if not self.running:
            raise self.failure(f"has ended {self.how_it_ended()}")

    def drain(self, timeout_s: float) -> str:
        """SIGTERM, and wait for its end. What went wrong, or nothing."""
        if not self.running:
            return f"the consumer has ended {self.how_it_ended()} before it was asked to"
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"the consumer has not drained within {timeout_s:.0f} s"
        return "" if self._process.returncode == 0 else f"the consumer has ended {self.how_it_ended()}"

    def how_it_ended(self) -> str:
        """With which status or by which signal."""
        status = self._process.returncode
        return f"by {signal.Signals(-status).name}" if status is not None and status < 0 else f"with status {status}"

    def failure(self, what: str) -> DemoError:
        """An error that shows the end of the log."""
        return DemoError(f"the consumer {what}. Its log ({self.log}) ends:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of its log, for a person."""
        return "\n".join(f"  {_readable(line)}" for line in tail_of(self.log).splitlines()[-_LOG_LINES:])

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=2):
            return True
        return False


def _readable(line: str) -> str:
    """A JSON log line as `level event name=value ...`; anything else, escaped, as it is."""
    try:
        entry = json.loads(line)
        level, event = entry.pop("level"), entry.pop("event")
    except (ValueError, KeyError, AttributeError):
        return printable(line)
    shown = " ".join(f"{name}={value}" for name, value in entry.items() if name not in ("timestamp", "logger"))
    return printable(f"{level} {event} {shown}".strip())
