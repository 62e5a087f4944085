"""Decoding in processes: one per decoding thread, each with memory of its own for payloads.

Decoding beside the program's Python costs both of them: every frame takes the interpreter's lock several times, from
threads that need it for milliseconds. A process is given a whole chunk, and the thread that gave it waits without the
lock. It writes straight into the ring, which it has in its memory too; `decode.isolation: process` gives it one frame
at a time and a canvas of its own instead, limits its time and memory, and copies what it made.

A process that crashes (or, isolated, hangs or asks for too much memory) is killed and replaced. What it had not
answered is decoded again, one frame at a time, and each frame gets two looks, because the machine may have been at
fault (an OOM killer, a stolen CPU); if both fail, that frame is rejected. No other frame is lost with it.
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
# Room for a chunk of usual frames, where decode.max_bytes asks for less.
_PAYLOAD_BYTES: Final = 4 * 2**20


class _Run(NamedTuple):
    """Frames of one request. `looks`: how often its only frame has failed already."""

    items: Sequence[Item]
    looks: int = 0


class ProcessDecoder:
    """`Decoder.decode_into` with the work done elsewhere: the same outcomes, and three more reasons.

    `ring` is what the slots lie in, closed with this; None, for isolated processes: they may lie anywhere. Any thread
    may call; with more threads than processes some wait. Raises EngineError where processes cannot be started or are
    killed from outside, and MemoryError.
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
            starting = [self._launch() for _ in range(processes)]  # side by side: each takes a fifth of a second
            for process in starting:
                process.wait_ready()
                self._idle.put(process)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The processes that there are now."""
        with self._lock:
            return [process.pid for process in self._processes]

    def decode_into(
        self, payloads: Sequence[bytes], slots: NDArray[np.uint8], places: Sequence[int]
    ) -> Iterator[tuple[int, Letterbox | Rejected]]:
        """As `Decoder.decode_into`, in any order; a frame that twice ended its process is a `Rejected`."""
        items: list[Item] = []
        for payload, place in zip(payloads, places, strict=True):
            if 0 < len(payload) <= self._settings.max_bytes:
                items.append(Item(payload, place))
            else:  # refused there before any native code sees it
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
            if process.busy:  # it would write into slots that others have by then, and answer what others ask
                process.kill()  # its next user finds it ended, and replaces it
            self._idle.put(process)

    def close(self) -> None:
        """Kill the processes. A frame that is in one of them gets an error."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, set()
        for process in processes:
            process.kill()
        if self._ring is not None:
            self._ring.close()

    def _blame(self, failure: FailedError) -> Rejected:
        """The outcome of a frame that failed for the last time."""
        if failure.killed and self._ring is not None:
            # Nothing limits these processes but the machine: it is short of memory, and no frame is at fault.
            raise EngineError(
                f"a decoding process was killed from outside, and a fresh one too ({failure.detail}): most likely this "
                "machine or container has no memory left; raise its limit, or lower batching.max_batch_size"
            )
        return Rejected("decode", failure.reason, f"{failure.detail}; so it went in a fresh process too")

    def _runs(self, items: Sequence[Item]) -> Iterator[_Run]:
        """What goes into one request each: as many frames as the memory for payloads holds."""
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
            except OSError as error:  # no memory, process or file descriptor is left: no frame is to blame
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
