"""Child processes of the tools: any module of the package, and `sluice run` in particular."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from prometheus_client.parser import text_string_to_metric_families

from consumer.config import ENV_PREFIX
from consumer.errors import SluiceError
from consumer.observability.logging import printable
from consumer.tools.embedded import dies_with_parent, free_port, tail_of

_LOG_LINES: Final = 12
_KILL_AFTER_S: Final = 2.0
_READY_S: Final = 180.0  # a model may take a minute to load
_POLL_EVERY_S: Final = 0.05


class ProcessError(SluiceError):
    """A child process did not start, or did not end as expected."""


class ChildProcess:
    """A Python module in its own process. It ends at the end of the `with` block, or when this process ends."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        name: str | None = None,
    ) -> None:
        """Start the process.

        Args:
            module: The module to run, as for `python -m`.
            arguments: The arguments of the module.
            environment: The environment of the process. Default: the environment of this process.
            log: The file for its stdout and stderr. Default: a temporary file.
            name: What error messages call the process. Default: the name of the module.
        """
        self._name = name or module
        self._is_log_kept = log is not None
        if log is None:
            handle, path = tempfile.mkstemp(prefix="sluice-", suffix=".log")
            os.close(handle)
            log = Path(path)
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - a module of this package, without a shell
                dies_with_parent([sys.executable, "-m", module, *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                process_group=0,  # Ctrl-C reaches only the tool, which then ends its children in order
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(_KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if not self._is_log_kept:
            self.log.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def check_running(self) -> None:
        """Raise ProcessError with the end of the log if the process has ended."""
        if not self.running:
            raise self.failure(f"has ended {self.exit_description()}")

    def wait(self, timeout_s: float) -> None:
        """Wait until the process has ended.

        Raises:
            ProcessError: It still runs after `timeout_s`, or its exit status is not 0.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.failure(f"has not ended within {timeout_s:.0f} s") from None
        if status:
            raise self.failure(f"has ended {self.exit_description()}")

    def terminate(self, timeout_s: float) -> None:
        """Send SIGTERM and wait for exit status 0. Raises ProcessError as `wait` does."""
        self._process.terminate()
        self.wait(timeout_s)

    def exit_description(self) -> str:
        """The exit status, or the signal that ended the process."""
        status = self._process.returncode
        return f"by {signal.Signals(-status).name}" if status is not None and status < 0 else f"with status {status}"

    def failure(self, what: str) -> ProcessError:
        """An error that shows the end of the log."""
        where = f" ({self.log})" if self._is_log_kept else ""
        return ProcessError(f"{self._name} {what}. Its log{where} ends:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the log, in readable form."""
        return "\n".join(f"  {readable_log_line(line)}" for line in tail_of(self.log).splitlines()[-_LOG_LINES:])


class Metrics(NamedTuple):
    """The metrics of `sluice run` that the tools use: for progress and for the busy share, not for checks."""

    assigned: int
    outcomes: int
    busy_s: float
    model: str
    device: str


class SluiceProcess(ChildProcess):
    """`sluice run` as a child process, configured by its environment as a pod is."""

    def __init__(
        self, options: Mapping[str, Any], *, log: Path | None = None, not_inherited: Sequence[str] = ()
    ) -> None:
        """Start the process.

        Args:
            options: Option path to value, such as `{"input.topics": ["frames"]}`.
            log: The file for its log. Default: a temporary file.
            not_inherited: Sections whose SLUICE_* variables of this process do not apply. All others do.
        """
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        settings = {**options, "http.host": "127.0.0.1", "http.port": port, "log.format": "json"}
        variables = {
            ENV_PREFIX + path.replace(".", "__").upper(): value if isinstance(value, str) else json.dumps(value)
            for path, value in settings.items()
        }
        dropped = tuple(ENV_PREFIX + section for section in not_inherited)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        super().__init__("consumer", "run", environment={**inherited, **variables}, log=log, name="the consumer")

    def wait_ready(
        self, partitions: int = 0, timeout_s: float = _READY_S, on_wait: Callable[[str], None] = lambda _: None
    ) -> None:
        """Wait until the model is warm and the group has assigned `partitions` partitions.

        Args:
            partitions: The number of partitions to wait for; joining the group would count as latency otherwise.
            timeout_s: The time limit in seconds.
            on_wait: Called with the current state before each pause.

        Raises:
            ProcessError: The process has ended, or is not ready after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self._missing_state(partitions)) is not None:
            on_wait(state)
            self.check_running()
            if time.monotonic() > deadline:
                raise self.failure(f"is still {state} after {timeout_s:.0f} s")
            time.sleep(_POLL_EVERY_S)

    def metrics(self) -> Metrics | None:
        """The current metrics; None if the process does not answer."""
        if (text := self._get("/metrics")) is None:
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

    def _missing_state(self, partitions: int) -> str | None:
        """What the process still does before it is ready; None if it is ready."""
        if self._get("/readyz") is None:
            return "loading the model"
        if partitions and ((metrics := self.metrics()) is None or metrics.assigned < partitions):
            return "joining the consumer group"
        return None

    def _get(self, path: str) -> str | None:
        with contextlib.suppress(OSError), urllib.request.urlopen(self._url + path, timeout=5) as answer:  # noqa: S310
            text: str = answer.read().decode()
            return text
        return None


def readable_log_line(line: str) -> str:
    """A JSON log line as `level event name=value ...`; any other line escaped."""
    try:
        entry = json.loads(line)
        level, event = entry.pop("level"), entry.pop("event")
    except (ValueError, KeyError, AttributeError):
        return printable(line)
    shown = " ".join(f"{name}={value}" for name, value in entry.items() if name not in ("timestamp", "logger"))
    return printable(f"{level} {event} {shown}".strip())
