"""Controls one decoding process from the parent: starts it, sends it frames, kills it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumer.decoding.processes import protocol
from consumer.decoding.processes.memory import SharedMemory
from consumer.decoding.processes.protocol import Settings
from consumer.errors import EngineError
from consumer.types import Letterbox, Rejected

COMMAND: Sequence[str] = (sys.executable, "-I", "-m", "consumer.decoding.processes.child")
# Not the environment of the parent, which may contain passwords. One thread per library, as in every decode thread.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# Generous: the imports take a second on a busy machine.
_START_S: Final = 60.0


class FailedError(Exception):
    """The process ended, timed out, or sent an invalid answer.

    Args:
        reason: One of `types.REASONS`.
        detail: An explanation for a person.
        killed: Whether SIGKILL ended the process. SIGKILL comes from outside: no image can cause it in a library.
    """

    def __init__(self, reason: str, detail: str, *, killed: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.killed = killed


class Item(NamedTuple):
    """A frame to decode. `place` is the row of the slots for its canvas."""

    payload: bytes
    place: int


class Process:
    """One decoding process. The thread that took it from the pool is its only user.

    Args:
        settings: The limits and the canvas layout.
        ring: The memory that the process writes canvases to. None: it writes to memory of its own, and each canvas is
            copied from there.

    Attributes:
        busy: Whether a request has not been answered completely.

    Raises:
        OSError: The machine has no process, memory or file descriptor left.
    """

    def __init__(self, settings: Settings, ring: SharedMemory | None) -> None:
        self._settings = settings
        self._ring = ring
        self._reader = protocol.Reader(settings)
        self.busy = False
        with contextlib.ExitStack() as stack:  # closes what only the child needs afterwards
            payloads = SharedMemory("sluice-payloads", (settings.payload_bytes,))
            stack.callback(payloads.close)
            canvases = ring
            if canvases is None:
                canvases = SharedMemory("sluice-canvas", (settings.canvas_bytes,))
                stack.callback(canvases.close)
            self._payloads = memoryview(payloads.array)  # type: ignore[arg-type]
            self._canvas = canvases.array
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(theirs)
            descriptors = theirs.fileno(), payloads.fd, canvases.fd
            try:
                self._child = subprocess.Popen(  # noqa: S603 - our own module, by this interpreter
                    [*COMMAND, *map(str, descriptors), settings.to_text()],
                    env=_ENVIRONMENT,
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    # Not a new session: the kernel would first divide the cores between sessions, and the thread that
                    # feeds all processes would have to wait.
                    process_group=0,
                )
            except BaseException:
                self._channel.close()
                raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_ready(self) -> None:
        """Wait until the process has started and has decoded a valid image.

        Raises:
            EngineError: The process cannot start, or cannot decode a valid image. No frame is at fault.
        """
        try:
            if self._receive(_START_S) == protocol.READY:
                return
            problem = f"it ended with {self._child.wait(_START_S)}"
        except (TimeoutError, subprocess.TimeoutExpired):
            problem = f"it was not ready after {_START_S:.0f} s"
        except OSError as error:
            problem = str(error)
        self.kill()
        raise EngineError(f"a decoding process cannot start: {problem}; see stderr, or set decode.workers: threads")

    def decode(self, items: Sequence[Item], slots: NDArray[np.uint8]) -> Iterator[Letterbox | Rejected]:
        """Decode frames and yield each outcome as soon as the process has sent it.

        Args:
            items: The frames. Together they must fit into the memory for payloads. A process with a canvas of its own
                takes one frame at a time.
            slots: uint8 (n, slot_bytes), contiguous, for the canvases.

        Yields:
            The outcome of each frame, in the order of `items`.

        Raises:
            FailedError: The process failed. The caller must kill it.
            MemoryError: The process has no memory for a frame, and no configured limit is the cause.
        """
        self._send(items, slots)
        self.busy = True
        answered = 0
        while answered < len(items):
            outcomes = self._outcomes(self._answer())
            if answered + len(outcomes) > len(items):
                raise FailedError("decoder_crashed", "the decoding process gave an answer too many")
            for outcome in outcomes:
                if self._ring is None and isinstance(outcome, Letterbox):
                    canvas_bytes = outcome.canvas_width * outcome.canvas_height * 3
                    slots[items[answered].place, :canvas_bytes] = self._canvas[:canvas_bytes]
                answered += 1
                self.busy = answered < len(items)
                yield outcome

    def kill(self) -> None:
        """Kill the process. Returns when it has ended."""
        self._child.kill()
        self._child.wait()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # ends a wait for an answer, also if another process has its end
        self._channel.close()
        self.busy = False

    def _send(self, items: Sequence[Item], slots: NDArray[np.uint8]) -> None:
        base, slot_bytes = (0, 0) if self._ring is None else (self._ring.offset(slots), slots.shape[1])
        asked: list[int] = []
        start = 0
        for payload, place in items:
            stop = start + len(payload)
            self._payloads[start:stop] = payload
            asked += (start, stop, base + place * slot_bytes)
            start = stop
        with contextlib.suppress(OSError):  # the process has ended; `_answer` finds that out
            self._channel.send(protocol.request(asked))

    def _answer(self) -> bytes:
        """Return the next message. Raises FailedError if the process has ended or exceeds the time for a frame."""
        limit_s = self._settings.timeout_s
        message = b""
        try:
            message = self._receive(limit_s or None)
        except TimeoutError:
            raise FailedError("decoder_timeout", f"not decoded within decode.timeout_s ({limit_s:g} s)") from None
        except OSError:
            pass
        if not message:
            end = self._end()
            killed = self._child.returncode == -signal.SIGKILL
            raise FailedError("decoder_crashed", f"the decoding process ended: {end}", killed=killed)
        return message

    def _outcomes(self, message: bytes) -> list[Letterbox | Rejected]:
        try:
            outcomes = self._reader.read(message)
        except ValueError as error:
            raise FailedError("decoder_crashed", f"the decoding process gave {error}") from None
        sound = [outcome for outcome in outcomes if outcome is not None]
        if len(sound) == len(outcomes):
            return sound
        if limit := self._settings.memory_bytes:
            raise FailedError("decoder_memory", f"needs more than decode.memory_limit_bytes ({limit}) to be decoded")
        raise MemoryError("a decoding process has no memory for a frame: see decode.max_pixels and the pod's limit")

    def _receive(self, timeout_s: float | None) -> bytes:
        self._channel.settimeout(timeout_s)
        return self._channel.recv(protocol.MAX_MESSAGE)

    def _end(self) -> str:
        """Describe for a person how the process ended."""
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its channel is closed"
        return f"signal {-code}" if code < 0 else f"exit code {code}"
