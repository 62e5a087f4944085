"""Distributes frames to decoding processes, one process per decode thread.

Decoding in threads slows down the decoding and the other threads. Each frame takes the lock of the interpreter several
times, while other threads need it for milliseconds. Here a process gets a whole chunk, and the thread waits for it
without the lock.

The process writes directly into the ring buffer, which it has mapped. With `decode.isolation: process` it gets one
frame at a time instead, and its time and memory are limited. It writes into a canvas of its own, which is then copied.

A process that crashes is killed and replaced. So is an isolated process that hangs or needs too much memory. The frames
that it had not answered are decoded again, one at a time. Each frame gets two attempts, because the machine may have
been at fault (an OOM kill, a lack of CPU time). If both fail, that frame is rejected. No other frame is lost.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.decoding.processes import protocol
from consumer.decoding.processes.memory import SharedMemory
from consumer.decoding.processes.process import FailedError, Item, Process
from consumer.decoding.processes.protocol import Settings
from consumer.errors import EngineError
from consumer.types import Letterbox, LetterboxPolicy, Rejected

_log = structlog.get_logger(__name__)

_LOOKS: Final = 2
# The minimum size of the memory for payloads: enough for a chunk of usual frames, also if decode.max_bytes is lower.
_PAYLOAD_BYTES: Final = 4 * 2**20


class _Run(NamedTuple):
    """The frames of one request. `looks`: the number of failed attempts, if it has only one frame."""

    items: Sequence[Item]
    looks: int = 0


class ProcessDecoder:
    """A `SlotDecoder` that decodes in other processes.

    The outcomes are those of `Decoder`, with three more reasons for a rejection: `decoder_crashed`, `decoder_timeout`
    and `decoder_memory`. Any thread may call it. If there are more threads than processes, some threads wait.

    Args:
        config: The `decode` options.
        policy: The canvas layout that the detector requires.
        ring: The memory that contains the slots; `close` closes it. None: isolated processes, and the slots may be
            anywhere.
        processes: The number of processes.
        on_replaced: Called on a decode thread for each process that was replaced.

    Raises:
        EngineError: Processes cannot be started.
    """

    def __init__(
        self,
        config: DecodeConfig,
        policy: LetterboxPolicy,
        ring: SharedMemory | None,
        *,
        processes: int,
        on_replaced: Callable[[], None] = lambda: None,
    ) -> None:
        isolated = ring is None
        self._settings = Settings(
            strict=config.strict,
            max_bytes=config.max_bytes,
            max_pixels=config.max_pixels,
            max_scans=config.max_scans,
            timeout_s=config.timeout_s if isolated else 0.0,
            memory_bytes=config.memory_limit_bytes if isolated else 0,
            size=policy.size,
            stride=policy.stride,
            rect=policy.rect,
            payload_bytes=max(config.max_bytes, _PAYLOAD_BYTES),
            canvas_bytes=policy.slot_bytes if ring is None else ring.array.nbytes,
        )
        self._at_once = 1 if isolated else protocol.MAX_FRAMES
        self._ring = ring
        self._guard = Decoder(config, policy)
        self._on_replaced = on_replaced
        self._lock = threading.Lock()  # around `_processes` and `_closed`
        self._processes: set[Process] = set()
        self._closed = False
        self._idle: queue.SimpleQueue[Process] = queue.SimpleQueue()
        try:
            starting = [self._launch() for _ in range(processes)]  # in parallel, because each takes 0.2 s
            for process in starting:
                process.wait_ready()
                self._idle.put(process)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The IDs of the current processes."""
        with self._lock:
            return [process.pid for process in self._processes]

    def decode_into(
        self, payloads: Sequence[bytes], slots: NDArray[np.uint8], places: Sequence[int]
    ) -> Iterator[tuple[int, Letterbox | Rejected]]:
        """Decode several images, each into its row of `slots`; see `SlotDecoder.decode_into`.

        A frame that fails in two processes is rejected.

        Raises:
            EngineError: A process cannot be replaced, or processes are killed from outside.
            MemoryError: A process has no memory for a frame.
        """
        items: list[Item] = []
        for payload, place in zip(payloads, places, strict=True):
            if 0 < len(payload) <= self._settings.max_bytes:
                items.append(Item(payload, place))
            else:  # empty or too large: refused here, before any native code processes it
                yield place, self._guard.judge(payload, slots[place])
        process = self._idle.get()
        try:
            todo = deque(self._runs(items))
            while todo:
                batch, looks = todo.popleft()
                answered = 0
                try:
                    for outcome in process.decode(batch, slots):
                        yield batch[answered].place, outcome
                        answered += 1
                    continue
                except FailedError as failure:
                    process = self._replace(process, failure)
                    looks = looks + 1 if len(batch) == 1 else 0
                    blame = None if looks < _LOOKS else self._blame(failure)
                if blame is not None:
                    yield batch[0].place, blame
                else:
                    todo.extendleft(_Run([item], looks) for item in reversed(batch[answered:]))
        finally:
            if process.busy:  # it could still write into slots that other frames have by then, or send old answers
                process.kill()  # the next user finds that it has ended, and replaces it
            self._idle.put(process)

    def close(self) -> None:
        """Kill the processes. Calls of `decode_into` that are in progress raise an error."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, set()
        for process in processes:
            process.kill()
        if self._ring is not None:
            self._ring.close()

    def _blame(self, failure: FailedError) -> Rejected:
        """Return the outcome of a frame whose last attempt failed. Raises EngineError if no frame is at fault."""
        if failure.killed and self._ring is not None:
            # Only the machine limits these processes. So it is short of memory, and no frame is at fault.
            raise EngineError(
                f"a decoding process was killed from outside, and a fresh one too ({failure.detail}): most likely this "
                "machine or container has no memory left; raise its limit, or lower batching.max_batch_size"
            )
        return Rejected("decode", failure.reason, f"{failure.detail}; so it went in a fresh process too")

    def _runs(self, items: Sequence[Item]) -> Iterator[_Run]:
        """Divide frames into requests. Each has as many frames as the memory for payloads can hold."""
        first = used = 0
        for index, item in enumerate(items):
            if index - first == self._at_once or used + len(item.payload) > self._settings.payload_bytes:
                yield _Run(items[first:index])
                first, used = index, 0
            used += len(item.payload)
        if first < len(items):
            yield _Run(items[first:])

    def _launch(self) -> Process:
        with self._lock:
            if self._closed:
                raise EngineError("the decoding processes are closed")
            try:
                process = Process(self._settings, self._ring)
            except OSError as error:  # no memory, process or file descriptor is left: no frame is at fault
                raise EngineError(
                    f"a decoding process cannot be started: {error}; raise the limits, or set decode.workers: threads"
                ) from error
            self._processes.add(process)
        return process

    def _replace(self, failed: Process, why: FailedError) -> Process:
        with self._lock:
            if self._closed:
                raise EngineError("the decoding processes are closed")
            self._processes.discard(failed)
        _log.warning("decoding process replaced", pid=failed.pid, reason=why.reason, detail=why.detail)
        failed.kill()
        self._on_replaced()
        fresh = self._launch()
        fresh.wait_ready()
        return fresh
