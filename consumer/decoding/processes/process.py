"""One decoding process, as the program sees it: started, asked, killed."""

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
# Not the program's: passwords may be in that. One thread each, as everywhere in a decode pool.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# Imports take a second on a busy machine.
_START_S: Final = 60.0


class FailedError(Exception):
    """The process did not answer as a sound one does. `reason` is one of `types.REASONS`.

    `killed`: by SIGKILL, which comes from outside: no picture can raise it in a library.
    """

    def __init__(self, reason: str, detail: str, *, killed: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.killed = killed


class Item(NamedTuple):
    """A frame, and the row of the slots that its canvas goes to."""

    payload: bytes
    place: int


class Process:
    """Whoever has taken it from the pool is its only user.

    `ring` is the memory that it writes canvases to; None: to memory of its own, and its canvas is copied from there.
    Raises OSError where the machine has no process, memory or file descriptor left.
    """

    def __init__(self, settings: Settings, ring: SharedMemory | None) -> None:
        self._settings = settings
        self._ring = ring
        self._reader = protocol.Reader(settings)
        self.busy = False  # it was asked what it has not answered yet
        with contextlib.ExitStack() as stack:  # of what only the child needs from here on
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
                    # Not a session of its own: the kernel would share the cores out between sessions first, and the
                    # thread that feeds all of them would wait for its turn.
                    process_group=0,
                )
            except BaseException:
                self._channel.close()
                raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_ready(self) -> None:
        """Raises EngineError where it cannot decode a sound picture: then no frame is to blame."""
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
        """Their outcomes, in their order, as the process says them. Raises FailedError, and must be killed then.

        The payloads must fit into the shared memory together; a process with memory of its own takes one at a time.
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
        """End it for good. Returns when it is gone."""
        self._child.kill()
        self._child.wait()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # ends a wait for its answer, also if its end was handed on
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
        with contextlib.suppress(OSError):  # it has ended; the answer says so
            self._channel.send(protocol.request(asked))

    def _answer(self) -> bytes:
        """What it says next. Raises FailedError where it has ended, or took longer than a frame may."""
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
        """How it ended, for a person."""
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its channel is closed"
        return f"signal {-code}" if code < 0 else f"exit code {code}"
