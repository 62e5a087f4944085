"""The child processes of a bench, and a meter that looks at what they use."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from consumer.config import ENV_PREFIX
from consumer.errors import SluiceError
from consumer.tools.embedded import dies_with_parent, free_port, tail_of

_TICK: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_OUTCOMES: Final = re.compile(r"^sluice_outcomes_total\{.*\} (\S+)$", re.MULTILINE)
_READY_S: Final = 180.0  # a model may take a minute to load
_STALL_S: Final = 60.0
_GOODBYE_S: Final = 40.0
_LOOK_EVERY_S: Final = 5.0
_SAMPLE_EVERY_S: Final = 0.1  # between samples the CPU time is interpolated; each takes some from what is measured
_CHILDREN_EVERY_S: Final = 1.0  # to list them takes milliseconds
# Until there are some they are looked for at each sample: what they had used when they were found counts as used then.
_CHILDREN_BY_S: Final = 10.0


class BenchError(SluiceError):
    """A run could not be made, or what came out of it cannot be trusted."""


class Child:
    """A Python module of ours in its own process. It ends with this process, and at the end of the `with` block."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._log = tempfile.NamedTemporaryFile(prefix="sluice-bench-", suffix=".log")  # noqa: SIM115 - see __exit__
        self._out = tempfile.NamedTemporaryFile(prefix="sluice-bench-", suffix=".out")  # noqa: SIM115
        self._process = subprocess.Popen(  # noqa: S603 - our own module, without a shell
            dies_with_parent([sys.executable, "-m", module, *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._log,
            env=environment,
            process_group=0,  # a Ctrl-C is for the bench, which then ends its children in order
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> None:
        """Until it has ended. Raises BenchError where it does not, or not with status 0."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.failure(f"has not ended within {timeout_s:.0f} s") from None
        if status:
            raise self.failure(f"ended with status {status}")

    def result(self, timeout_s: float) -> Any:
        """Wait for its end; the JSON on the last line that it printed."""
        self.wait(timeout_s)
        return json.loads(Path(self._out.name).read_text().splitlines()[-1])

    def terminate(self) -> None:
        """SIGTERM, and wait: it must end with status 0."""
        self._process.terminate()
        self.wait(_GOODBYE_S)

    def failure(self, what: str) -> BenchError:
        """An error that shows the end of the log."""
        return BenchError(f"{self._module} {what}. Its log ends:\n{tail_of(Path(self._log.name))}")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.running:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._out.close()


class Subject(Protocol):
    """What is measured: a process that reads frames from one topic and writes results to another."""

    child: Child

    def wait_handled(self, frames: int) -> None:
        """Until the results of so many frames, in all, are acknowledged."""

    def finish(self) -> None:
        """End it in order."""


class Sluice:
    """`sluice run`, configured by its environment as a pod is. SLUICE_* variables of the caller apply where free."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        port = free_port()
        ours = {ENV_PREFIX + path.replace(".", "__").upper(): value for path, value in options.items()}
        ours[f"{ENV_PREFIX}HTTP__PORT"] = port
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in ours.items()}
        self._url = f"http://127.0.0.1:{port}"
        self.child = Child("consumer", "run", environment={**os.environ, **texts})

    def wait_ready(self) -> None:
        """Until the model is warm and the loop turns."""
        self._wait(lambda: self._get("/readyz") is not None, _READY_S, "to be ready", every_s=0.05)

    def wait_handled(self, frames: int) -> None:
        """Looks seldom: answering costs the program a few milliseconds. Gives up when nothing moves."""
        seen, deadline, began, rate = -1, 0.0, time.monotonic(), 0.0
        while (handled := self._handled()) < frames:
            if handled > seen:
                seen, deadline = handled, time.monotonic() + _STALL_S
                rate = handled / max(time.monotonic() - began, 0.1)
            if time.monotonic() > deadline:
                raise self.child.failure(f"handled {handled} of {frames} frames, and nothing more for {_STALL_S:.0f} s")
            if not self.child.running:
                raise self.child.failure(f"ended after {handled} of {frames} frames")
            time.sleep(min(max(0.7 * (frames - seen) / rate, 0.2), _LOOK_EVERY_S) if seen > 0 else 0.1)

    def finish(self) -> None:
        """SIGTERM: drain, commit, exit 0."""
        self.child.terminate()

    def _handled(self) -> int:
        return sum(int(float(count)) for count in _OUTCOMES.findall(self._get("/metrics") or ""))

    def _wait(self, met: Callable[[], bool], timeout_s: float, what: str, *, every_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not met():
            if not self.child.running:
                raise self.child.failure(f"ended while we waited for it {what}")
            if time.monotonic() > deadline:
                raise self.child.failure(f"took more than {timeout_s:.0f} s {what}")
            time.sleep(every_s)

    def _get(self, path: str) -> str | None:
        with contextlib.suppress(OSError), urllib.request.urlopen(self._url + path, timeout=5) as answer:  # noqa: S310
            text: str = answer.read().decode()
            return text
        return None


class Ending:
    """A subject that handles a fixed number of frames and ends by itself, such as the plain loop."""

    def __init__(self, child: Child, timeout_s: float) -> None:
        self.child = child
        self._timeout_s = timeout_s

    def wait_handled(self, frames: int) -> None:  # noqa: ARG002 - it was told at its start
        """Until it has ended."""
        self.child.wait(self._timeout_s)

    def finish(self) -> None:
        """It has ended."""


class Meter:
    """CPU time and memory of a process and its children over time, from /proc, on a thread of its own.

    Of a child's memory only what it shares with nobody counts: frames lie in memory that the parent has, too.
    """

    def __init__(self, pid: int) -> None:
        self._process = Path("/proc") / str(pid)
        self._samples: list[tuple[float, float, int]] = []  # Unix ms, CPU s, resident bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[Meter]:
        """Measure while the block lasts, or the process does."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    @property
    def known(self) -> bool:
        """False where there is no /proc."""
        return len(self._samples) > 1

    def cpu_s(self, from_ms: float, until_ms: float) -> float:
        """Seconds of CPU, user and system, all threads, between two moments in Unix milliseconds."""
        at, used = [s[0] for s in self._samples], [s[1] for s in self._samples]
        return float(np.interp(until_ms, at, used) - np.interp(from_ms, at, used))

    def resident(self) -> tuple[int, int]:
        """(last, highest) resident bytes."""
        return self._samples[-1][2], max(sample[2] for sample in self._samples)

    def _run(self) -> None:
        children: list[Path] = []
        began, looked_at = time.monotonic(), -math.inf
        while True:
            with contextlib.suppress(OSError):
                now = time.monotonic()
                if now - looked_at > _CHILDREN_EVERY_S or (not children and now - began < _CHILDREN_BY_S):
                    children, looked_at = _children(self._process), now
                used = _used(self._process)
                theirs = [_used(child) for child in children]
                if used is not None:
                    cpu_s = used.cpu_s + sum(child.cpu_s for child in theirs if child)
                    resident = used.resident + sum(child.private for child in theirs if child)
                    self._samples.append((time.time() * 1000, cpu_s, resident))
            if self._stop.wait(_SAMPLE_EVERY_S):
                return


class _Used(NamedTuple):
    """`cpu_s`: of all threads, and of children that have ended. Memory in bytes."""

    cpu_s: float
    resident: int
    private: int


def _used(process: Path) -> _Used | None:
    """None for one that has ended. Raises OSError where it is gone."""
    # The name, in brackets, may have spaces; 11 fields after it come four of CPU time.
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    resident, shared = (int(pages) * _PAGE for pages in (process / "statm").read_text().split()[1:3])
    return _Used(sum(map(int, fields[11:15])) / _TICK, resident, resident - shared)


def _children(process: Path) -> list[Path]:
    """Those that run now. None are found where the kernel was built without that list."""
    return [Path("/proc") / pid for task in (process / "task").glob("*/children") for pid in task.read_text().split()]
