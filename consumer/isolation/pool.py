"""Killable decoders: one process per decoding thread, each with shared memory of its own, one frame at a time.

A process that crashes, hangs or asks for too much memory is killed and replaced. Its frame gets one more look in the
fresh process, because the machine may have been at fault (an OOM killer, a stolen CPU); if that one fails too, the
frame is rejected. No other frame is in that process, so none is lost with it.

The memory is anonymous (memfd): it needs no room in /dev/shm, and the kernel takes it back with the last process that
has it, however that one ends. The ring is not shared: a process that a picture has taken over can spoil the canvas of
the frames that it is given, and no other memory.
"""

from __future__ import annotations

import mmap
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from consumer.config import DecodeConfig
from consumer.decoder import Decoder
from consumer.errors import ConfigError, EngineError
from consumer.isolation import protocol
from consumer.isolation.protocol import Settings
from consumer.types import Letterbox, LetterboxPolicy, Rejected

_log = structlog.get_logger(__name__)

COMMAND: Sequence[str] = (sys.executable, "-I", "-m", "consumer.isolation.child")
# Not the program's: passwords may be in that. One thread each, as everywhere in a decode pool.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# Imports take a second on a busy machine.
_START_S: Final = 60.0


class _FailedError(Exception):
    """The process did not answer as a sound one does. `reason` is one of `types.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Process:
    """One decoding process. Whoever has taken it from the pool is its only user."""

    def __init__(self, settings: Settings, slot_bytes: int) -> None:
        self._settings = settings
        memory = os.memfd_create("sluice-decode")
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.ftruncate(memory, settings.max_bytes + slot_bytes)
            self._shared = mmap.mmap(memory, settings.max_bytes + slot_bytes)
            self._canvas = np.frombuffer(self._shared, np.uint8, slot_bytes, settings.max_bytes)
            self._child = subprocess.Popen(  # noqa: S603 - our own module, by this interpreter
                [*COMMAND, str(theirs.fileno()), str(memory), settings.to_text()],
                env=_ENVIRONMENT,
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            os.close(memory)
            theirs.close()

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
        raise EngineError(f"a decoding process cannot start: {problem}; see stderr, or set decode.isolation: none")

    def decode(self, payload: bytes, slot: NDArray[np.uint8]) -> Letterbox | Rejected:
        """Raises _FailedError, and must be killed then."""
        limit_s = self._settings.timeout_s
        self._shared[: len(payload)] = payload
        try:
            self._channel.send(protocol.request(len(payload)))
            message = self._receive(limit_s)
        except TimeoutError:
            raise _FailedError("decoder_timeout", f"not decoded within decode.timeout_s ({limit_s:g} s)") from None
        except OSError:
            message = b""
        if not message:
            raise _FailedError("decoder_crashed", f"the decoding process ended: {self._end()}")
        try:
            outcome = protocol.read_answer(message, self._settings)
        except ValueError as error:
            raise _FailedError("decoder_crashed", f"the decoding process gave {error}") from None
        if outcome is None:
            limit = self._settings.memory_bytes
            raise _FailedError("decoder_memory", f"needs more than decode.memory_limit_bytes ({limit}) to be decoded")
        if isinstance(outcome, Letterbox):
            canvas_bytes = outcome.canvas_width * outcome.canvas_height * 3
            slot[:canvas_bytes] = self._canvas[:canvas_bytes]
        return outcome

    def kill(self) -> None:
        """End it for good. Returns when it is gone."""
        self._child.kill()
        self._child.wait()
        self._channel.close()

    def _receive(self, timeout_s: float) -> bytes:
        self._channel.settimeout(timeout_s)
        return self._channel.recv(protocol.MAX_ANSWER)

    def _end(self) -> str:
        """How it ended, for a person."""
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its channel is closed"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class IsolatedDecoder:
    """`Decoder` with the work done elsewhere: the same call, the same outcomes, and three more reasons.

    Any thread may call `decode`; with more threads than processes some wait. Raises EngineError where processes cannot
    be started.
    """

    def __init__(
        self,
        config: DecodeConfig,
        policy: LetterboxPolicy,
        *,
        processes: int,
        on_replaced: Callable[[], None] = lambda: None,
    ) -> None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("decode.isolation: process needs Linux; set it to none")
        self._settings = Settings.of(config, policy)
        self._guard = Decoder(config, policy)
        self._on_replaced = on_replaced
        self._lock = threading.Lock()  # around `_processes` and `_closed`
        self._processes: set[_Process] = set()
        self._closed = False
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        try:
            starting = [self._launch() for _ in range(processes)]  # side by side: each takes a second
            for process in starting:
                process.wait_ready()
                self._idle.put(process)
        except BaseException:
            self.close()
            raise

    @property
    def slot_bytes(self) -> int:
        """Bytes that a slot must have: the largest canvas."""
        return self._guard.slot_bytes

    @property
    def pids(self) -> list[int]:
        """The processes that there are now."""
        with self._lock:
            return [process.pid for process in self._processes]

    def decode(self, payload: bytes, slot: NDArray[np.uint8]) -> Letterbox | Rejected:
        """As `Decoder.decode`; a frame that twice crashed, hung or starved its process is a `Rejected`."""
        if not 0 < len(payload) <= self._settings.max_bytes:
            return self._guard.decode(payload, slot)  # refused there before any native code sees it
        process = self._idle.get()
        try:
            try:
                return process.decode(payload, slot)
            except _FailedError as first:
                process = self._replace(process, first)
            try:
                return process.decode(payload, slot)
            except _FailedError as second:
                process = self._replace(process, second)
                return Rejected("decode", second.reason, f"{second.detail}; so it went in a fresh process too")
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Kill the processes. A frame that is in one of them gets an error."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, set()
        for process in processes:
            process.kill()

    def _launch(self) -> _Process:
        with self._lock:
            if self._closed:
                raise EngineError("the decoding processes are closed")
            try:
                process = _Process(self._settings, self.slot_bytes)
            except OSError as error:  # no memory, process or file descriptor is left: no frame is to blame
                raise EngineError(
                    f"a decoding process cannot be started: {error}; raise the limits, or set decode.isolation: none"
                ) from error
            self._processes.add(process)
        return process

    def _replace(self, failed: _Process, why: _FailedError) -> _Process:
        _log.warning("decoding process replaced", pid=failed.pid, reason=why.reason, detail=why.detail)
        with self._lock:
            self._processes.discard(failed)
        failed.kill()
        self._on_replaced()
        fresh = self._launch()
        fresh.wait_ready()
        return fresh
