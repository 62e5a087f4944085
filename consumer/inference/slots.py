"""Which frame lies in which slot, from admission until its batch is through the engine.

Not thread-safe: every call is made under the worker's lock. Frames are decoded at admission, straight into the slots of
the open batch, so that batch k+1 is decoded while batch k is in the engine.
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

# Batches that the ring has room for: one in the engine, two that are decoded for it, and one that the main thread has
# yet to give back, or to admit to.
BATCHES = 4
# Frames per decoding job at most. Under load jobs are as long as all threads allow, because each costs CPU; of a few
# frames that come together each thread gets a part, because then it is their latency that counts.
CHUNK = 32
# Behind a closed batch, and with more frames waiting, two batches are decoded at once: a job may have twice its share.
_AT_ONCE = 2


class Chunk(NamedTuple):
    """A decoding job, and the slots that it writes to: [first, stop). It returns the seconds that it took.

    `since`: the first slot of all frames that came together with these.
    """

    first: int
    stop: int
    job: Future[float]
    since: int


@dataclass(frozen=True, slots=True)
class Work:
    """A closed batch: its frames lie in the slots [start, stop)."""

    batch: Batch
    start: int
    decoding: Sequence[Chunk]

    @property
    def stop(self) -> int:
        """The slot behind its last frame."""
        return self.start + len(self.batch.frames)

    @property
    def places(self) -> slice:
        """Its part of `Assembly.slots` and `verdicts`."""
        return slice(self.start, self.stop)


@dataclass(slots=True)
class _Open:
    """Where the open batch lies: [start, used). `decoding`: jobs that may still write to its slots."""

    start: int
    used: int
    decoding: list[Chunk] = field(default_factory=list)


class Assembly:
    """Puts frames into batches and batches into slots. `draining`: what is open goes without waiting for more.

    `verdicts`: per slot, of the frame that has it; written by the decode pool, None until then.
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
        """Take frames in; their decoding starts now where slots are free."""
        for frame in frames:
            self._batcher.offer(frame)
        self._fill()

    def next(self) -> Work | None:
        """The next batch for an idle engine, decoded or not; None: there is none yet."""
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
        """The batch is through the engine, and nobody reads its slots any more. In the order in which they came."""
        self._ring.give_back(work.start, work.stop)
        self._fill()

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop the waiting frames of these partitions and return them; see `Batcher.discard`."""
        return self._batcher.discard(partitions, overtaken=overtaken)

    def _fill(self) -> None:
        """Admit waiting frames while there are slots; close batches that are full."""
        while self._batcher.waiting:
            if self._open is None:
                start = self._ring.begin()
                if start is None:
                    return
                self._open = _Open(start, start)
            elif self._ring.free <= 0:  # what was left over of the last batch waits too
                return
            self._batcher.reserve(self._ring.room(self._open.start))
            due = self._batcher.due(idle=False)  # a window may have passed since the last frame came
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
        """How many frames at the front of the open batch are decoded, without any that came with one that is not.

        Those that came together go together: of a burst each thread has a part, and none of them is the later one.
        None where all must go: the others stay in their slots, and could not become a full batch there.
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
