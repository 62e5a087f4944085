"""Assigns frames to slots, from their admission until the detector has processed their batch.

Frames are decoded at admission, directly into the slots of the open batch. So batch k+1 is decoded while the detector
processes batch k.

Not thread-safe: every call is made under the lock of the worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from consumer.decoding.pool import DecodePool, Verdict
from consumer.inference.batcher import Batcher, Due
from consumer.inference.ring_buffer import Ring
from consumer.types import Batch, Frame, TopicPartition

# The number of batches in the ring buffer. One is in the detector, and two are decoded for it. The main thread has yet
# to give the fourth one back, or to admit frames to it.
BATCHES = 4
# The maximum number of frames per decoding job. Each job costs CPU time, so jobs are long under load. A few frames that
# arrive together are divided among all threads, because their latency counts then.
CHUNK = 32
# If a closed batch and more frames wait, two batches are decoded at the same time, so a job may be twice as long.
_AT_ONCE = 2


class Chunk(NamedTuple):
    """A decoding job and the slots [first, stop) that it writes to.

    Attributes:
        first: The first slot.
        stop: The slot after the last one.
        job: The job. Its result is the time that it took, in seconds.
        since: The first slot of all frames that arrived together with these.
    """

    first: int
    stop: int
    job: Future[float]
    since: int


@dataclass(frozen=True, slots=True)
class Work:
    """A closed batch, whose frames are in the slots [start, stop).

    Attributes:
        batch: The frames.
        start: The first slot.
        decoding: The jobs that write to its slots. The last one may also write to slots of the next batch.
    """

    batch: Batch
    start: int
    decoding: Sequence[Chunk]

    @property
    def stop(self) -> int:
        """The slot after its last frame."""
        return self.start + len(self.batch.frames)

    @property
    def places(self) -> slice:
        """The range of its slots in `Assembly.slots` and `Assembly.verdicts`."""
        return slice(self.start, self.stop)


@dataclass(slots=True)
class _Open:
    """The slots [start, used) of the open batch, and the decoding jobs that may still write to them."""

    start: int
    used: int
    decoding: list[Chunk] = field(default_factory=list)


class Assembly:
    """Puts frames into batches, and batches into slots.

    Attributes:
        slots: uint8 (slots, slot_bytes), the memory of the ring buffer.
        verdicts: One entry per slot: the result of decoding its frame. The decode pool writes it; None until then.
        draining: If true, the open batch does not wait for more frames.
    """

    def __init__(self, batcher: Batcher, ring: Ring, pool: DecodePool) -> None:
        self._batcher = batcher
        self._ring = ring
        self._pool = pool
        self.slots = ring.slots
        self.verdicts: list[Verdict | None] = [None] * len(ring.slots)
        self._closed: deque[Work] = deque()
        self._open: _Open | None = None
        self.draining = False

    @property
    def room(self) -> int:
        """The number of frames that `admit` accepts now."""
        return self._batcher.room

    @property
    def has_work(self) -> bool:
        """Whether a batch is closed, or is due for an idle detector."""
        return bool(self._closed or self._batcher.due(idle=True, draining=self.draining))

    @property
    def wake_in_s(self) -> float | None:
        """The seconds until `next` may return a batch without another frame. None if it cannot."""
        return self._batcher.wake_in_s()

    def admit(self, frames: Sequence[Frame]) -> None:
        """Accept frames. If slots are free, their decoding starts now."""
        for frame in frames:
            self._batcher.offer(frame)
        self._fill()

    def next(self) -> Work | None:
        """Return the next batch for an idle detector, decoded or not; or None if there is none yet."""
        if self._closed:
            return self._closed.popleft()
        if self._open is not None:
            due = self._batcher.due(idle=True, draining=self.draining, decoded=self._may_go(self._open))
            if due is not None:
                work = self._close_batch(self._open, due)
                self._fill()
                return work
        return None

    def release(self, work: Work) -> None:
        """Free the slots of a batch that the detector has processed. Batches are released in the order of `next`."""
        self._ring.give_back(work.start, work.stop)
        self._fill()

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop waiting frames of some partitions and return them; see `Batcher.discard`."""
        return self._batcher.discard(partitions, overtaken=overtaken)

    def _fill(self) -> None:
        """Admit waiting frames while slots are free, and close batches that are due for a busy detector."""
        while self._batcher.waiting:
            if self._open is None:
                start = self._ring.begin()
                if start is None:
                    return
                self._open = _Open(start, start)
            elif self._ring.free <= 0:  # the frames that remained when the last batch closed must wait too
                return
            self._batcher.reserve(self._ring.room(self._open.start))
            due = self._batcher.due(idle=False)  # the delay may have passed since the last frame was admitted
            if due is None:
                self._start_decoding(self._open, self._batcher.admit())
                due = self._batcher.due(idle=False)
            if due is None:
                return
            self._closed.append(self._close_batch(self._open, due))

    def _start_decoding(self, into: _Open, frames: Sequence[Frame]) -> None:
        at_once = _AT_ONCE if self._closed and self._batcher.waiting >= len(frames) else 1
        size = min(CHUNK, -(-len(frames) * at_once // self._pool.threads))
        since = into.used
        for i in range(0, len(frames), size or 1):
            chunk = frames[i : i + size]
            first, stop = into.used, into.used + len(chunk)
            self.verdicts[first:stop] = [None] * len(chunk)
            job = self._pool.submit(chunk, self.slots, self.verdicts, first)
            into.decoding.append(Chunk(first, stop, job, since))
            into.used = stop

    def _may_go(self, opened: _Open) -> int | None:
        """Return the number of frames at the start of the open batch that may close without the others.

        These are the frames before the first one that is not decoded, and before all frames that arrived together with
        that one. Frames that arrive together stay together: the threads decode them in parallel, so none is later.

        Returns:
            The number of frames, or None if the batch can only close with all its frames. That is so if everything is
            decoded, or if the other frames could not become a full batch in the slots where they stay.
        """
        for chunk in opened.decoding:
            if not chunk.job.done():
                whole = self._ring.free > 1 and self._ring.room(chunk.since) == self._ring.batch_size
                return max(0, chunk.since - opened.start) if whole else None
        return None

    def _close_batch(self, opened: _Open, due: Due) -> Work:
        batch = self._batcher.take(due)
        stop = opened.start + due.size
        self._ring.hold(opened.start, stop)
        work = Work(batch, opened.start, [chunk for chunk in opened.decoding if chunk.first < stop])
        opened.start = stop
        opened.decoding = [chunk for chunk in opened.decoding if chunk.stop > stop]
        if self._batcher.open_size:
            self._batcher.reserve(self._ring.room(stop))
        else:
            self._open = None
        return work
