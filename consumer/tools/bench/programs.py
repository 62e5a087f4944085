"""The programs that a bench measures, each as a child process: `sluice run` and the plain loop.

Each reads frames from one topic and writes results to another. `wait_handled` waits until the results of a number of
frames, in total, are acknowledged; `finish` ends the process in order.
"""

from __future__ import annotations

import time
from typing import Final

from consumer.tools.processes import ChildProcess, SluiceProcess

_STALL_S: Final = 60.0
_DRAIN_S: Final = 40.0
_POLL_AT_MOST_EVERY_S: Final = 5.0


class MeasuredSluice(SluiceProcess):
    """`sluice run`. The SLUICE_* variables of the caller apply to options that the bench does not set."""

    def wait_handled(self, frames: int) -> None:
        """Wait for outcomes. Polls seldom, because an answer costs the program a few milliseconds.

        Raises:
            ProcessError: The process has ended, or there was no new outcome for 60 s.
        """
        seen, deadline, began, rate = -1, 0.0, time.monotonic(), 0.0
        while (handled := self._handled()) < frames:
            if handled > seen:
                seen, deadline = handled, time.monotonic() + _STALL_S
                rate = handled / max(time.monotonic() - began, 0.1)
            if time.monotonic() > deadline:
                raise self.failure(f"handled {handled} of {frames} frames, and no more for {_STALL_S:.0f} s")
            if not self.running:
                raise self.failure(f"has ended after {handled} of {frames} frames")
            time.sleep(min(max(0.7 * (frames - seen) / rate, 0.2), _POLL_AT_MOST_EVERY_S) if seen > 0 else 0.1)

    def finish(self) -> None:
        """Send SIGTERM; the process drains, commits and exits with 0."""
        self.terminate(_DRAIN_S)

    def _handled(self) -> int:
        metrics = self.metrics()
        return metrics.outcomes if metrics is not None else 0


class PlainLoopProcess(ChildProcess):
    """The plain loop, which ends by itself after its number of frames."""

    def __init__(self, argument: str, timeout_s: float) -> None:
        super().__init__("consumer.tools.bench.plain_loop", argument)
        self._timeout_s = timeout_s

    def wait_handled(self, frames: int) -> None:  # noqa: ARG002 - the number is in the argument of the process
        """Wait until the process has ended."""
        self.wait(self._timeout_s)

    def finish(self) -> None:
        """No-op: the process has ended."""


MeasuredProgram = MeasuredSluice | PlainLoopProcess
