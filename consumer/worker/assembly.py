"""Which frame lies in which slot of which buffer, from admission until its batch is through the engine.

Not thread-safe: every call is made under the worker's lock. Frames are decoded at admission, straight into the open
batch's buffer, so that batch k+1 is decoded while batch k is in the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from consumer.batcher import Batcher, Due
from consumer.ring import Buffer, Ring
from consumer.types import Batch, Frame, TopicPartition
from consumer.worker.decoding import DecodePool, Verdict

# One in the engine, two that are decoded for it, and one that the main thread has yet to give back, or to admit to.
BUFFERS = 4
# Frames per decoding job at most. Under load jobs are as long as all threads allow, because each costs CPU; of a few
# frames that come together each thread gets a part, because then it is their latency that counts.
CHUNK = 32
# Behind a closed batch, and with more frames waiting, two batches are decoded at once: a job may have twice its share.
_AT_ONCE = 2


@dataclass(slots=True, eq=False)
class Lease:
    """A ring buffer while batches use it. A batch has a contiguous range of slots; two batches may share a buffer."""

    buffer: Buffer
    verdicts: list[Verdict | None]  # per slot, written by the decode pool
    used: int = 0  # slots assigned
    unfinished: int = 0  # of those, slots whose batch is not through the engine
    filling: bool = True  # the open batch may still assign slots


class Chunk(NamedTuple):
    """A decoding job, and the slots that it writes to: [first, stop). It returns the seconds that it took."""

    first: int
    stop: int
    job: Future[float]


@dataclass(frozen=True, slots=True)
class Work:
    """A closed batch: its frames lie in slots [start, start + len(frames)) of the lease's buffer."""

    batch: Batch
    lease: Lease
    start: int
    decoding: Sequence[Chunk]

    @property
    def stop(self) -> int:
        """The slot behind its last frame."""
        return self.start + len(self.batch.frames)


@dataclass(slots=True)
class _Open:
    """Where the open batch lies. `decoding`: jobs that may still write to its slots."""

    lease: Lease
    start: int = 0
    decoding: list[Chunk] = field(default_factory=list)


class Assembly:
    """Puts frames into batches and batches into buffers. `draining`: what is open goes without waiting for more."""

    def __init__(self, batcher: Batcher, ring: Ring, pool: DecodePool) -> None:
        self._batcher = batcher
        self._ring = ring
        self._pool = pool
        self._closed: deque[Work] = deque()
        self._open: _Open | None = None
        self.draining = False

    @property
    def room(self) -> int:
        """Frames that `admit` takes now."""
        return self._batcher.room

    @property
    def has_work(self) -> bool:
        """Whether `next` would return something."""
        return bool(self._closed or self._batcher.due(idle=True, draining=self.draining))

    @property
    def wake_in_s(self) -> float | None:
        """Seconds until `next` may return something without another frame; None: never."""
        return self._batcher.wake_in_s()

    def admit(self, frames: Sequence[Frame]) -> None:
        """Take frames in; their decoding starts now where a buffer is free."""
        for frame in frames:
            self._batcher.offer(frame)
        self._fill()

    def next(self) -> Work | None:
        """The next batch for an idle engine, decoded or not; None: there is none yet."""
        if self._closed:
            return self._closed.popleft()
        if self._open is not None:
            due = self._batcher.due(idle=True, draining=self.draining)
            if due is not None:
                work = self._close_batch(self._open, due)
                self._fill()
                return work
        return None

    def release(self, work: Work) -> None:
        """The batch is through the engine, and nobody reads its slots any more."""
        lease = work.lease
        lease.unfinished -= len(work.batch.frames)
        if not lease.unfinished and not lease.filling:
            self._ring.give_back(lease.buffer)
            self._fill()

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop the waiting frames of these partitions and return them; see `Batcher.discard`."""
        return self._batcher.discard(partitions, overtaken=overtaken)

    def _fill(self) -> None:
        """Admit waiting frames while there are slots; close batches that are full."""
        while self._batcher.waiting:
            if self._open is None:
                buffer = self._ring.take()
                if buffer is None:
                    return
                size = len(buffer.slots)
                self._open = _Open(Lease(buffer, [None] * size))
                self._batcher.open(size)
            due = self._batcher.due(idle=False)  # a window may have passed since the last frame came
            if due is None:
                self._start_decoding(self._open, self._batcher.admit())
                due = self._batcher.due(idle=False)
            if due is None:
                return
            self._closed.append(self._close_batch(self._open, due))

    def _start_decoding(self, into: _Open, frames: Sequence[Frame]) -> None:
        lease = into.lease
        at_once = _AT_ONCE if self._closed and self._batcher.waiting >= len(frames) else 1
        size = min(CHUNK, -(-len(frames) * at_once // self._pool.threads))
        for i in range(0, len(frames), size or 1):
            chunk = frames[i : i + size]
            first, stop = lease.used, lease.used + len(chunk)
            job = self._pool.submit(chunk, lease.buffer.slots, lease.verdicts, first)
            into.decoding.append(Chunk(first, stop, job))
            lease.used = stop
            lease.unfinished += len(chunk)

    def _close_batch(self, opened: _Open, due: Due) -> Work:
        batch = self._batcher.take(due)
        stop = opened.start + due.size
        awaited = [chunk for chunk in opened.decoding if chunk.first < stop]
        work = Work(batch, opened.lease, opened.start, awaited)
        opened.start = stop
        opened.decoding = [chunk for chunk in opened.decoding if chunk.stop > stop]
        if not self._batcher.open_size:
            # The rest of this buffer would make a smaller batch than a fresh one can hold.
            opened.lease.filling = False
            self._open = None
        return work
