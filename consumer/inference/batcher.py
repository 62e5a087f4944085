"""Batch: which frames go through the detector together, and when. Pure: clocks are injected; no I/O, no locks.

Frames pass two places. Each source has a waiting line; from the lines, one frame a source in turn, they are admitted
to the open batch, where their decoding starts. `due` says whether the open batch should close, and `take` closes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from consumer.config import BatchingConfig
from consumer.types import Batch, Clock, ClosedBy, Frame, Skipped, TopicPartition

# Waiting frames, in batches. Enough for each source to have its turn when a fetch brings many frames of one.
WAITING_BATCHES = 4


class Due(NamedTuple):
    """Close the open batch now, with its first `size` frames."""

    size: int
    closed_by: ClosedBy


class Batcher:
    """Policies `dynamic`, `window` and `static` of `BatchingConfig`.

    clock: monotonic seconds, the one of `Frame.received_at`. wall_clock_ms: Unix milliseconds, for the age of frames.
    """

    def __init__(self, config: BatchingConfig, *, clock: Clock, wall_clock_ms: Callable[[], int]) -> None:
        self._config = config
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._delay_s = config.max_queue_delay_ms / 1000
        self._preferred = sorted(set(config.preferred_batch_sizes), reverse=True)
        self._lines: dict[str, deque[Frame]] = {}  # never an empty line; in order of the next turn
        self._waiting = 0
        self._admitted: dict[TopicPartition, tuple[int, int]] = {}  # (epoch, offset) of the furthest frame admitted
        self._open: list[Frame] = []
        self._open_bytes = 0
        self._capacity = 0  # frames that the open batch can hold
        self._bytes_full = False  # the next frame would break max_batch_bytes

    @property
    def room(self) -> int:
        """Frames that may be offered now."""
        return max(0, WAITING_BATCHES * self._config.max_batch_size - self._waiting)

    @property
    def waiting(self) -> int:
        """Frames in the waiting lines, not yet admitted."""
        return self._waiting

    @property
    def open_size(self) -> int:
        """Frames in the open batch."""
        return len(self._open)

    def offer(self, frame: Frame) -> None:
        """Put a frame at the end of its source's line."""
        line = self._lines.get(frame.source_id)
        if line is None:
            self._lines[frame.source_id] = line = deque()
        line.append(frame)
        self._waiting += 1

    def reserve(self, slots: int) -> None:
        """Let the open batch hold `slots` frames. Each one begins with none. Raises ValueError where it holds more."""
        if slots < len(self._open):
            raise ValueError(f"{len(self._open)} frames are in the open batch already: {slots} slots are too few")
        self._capacity = min(slots, self._config.max_batch_size)

    def admit(self) -> list[Frame]:
        """Move waiting frames into the open batch, one a source in turn, and return those, in slot order.

        A frame that is too old by now gets its verdict here, before any work is spent on it.
        """
        admitted: list[Frame] = []
        while self._lines and len(self._open) < self._capacity and not self._bytes_full:
            source_id = next(iter(self._lines))
            line = self._lines[source_id]
            frame = line[0] = self._judge(line[0])
            size = len(frame.payload)
            if self._open and self._open_bytes + size > self._config.max_batch_bytes:
                self._bytes_full = True
                break
            line.popleft()
            self._waiting -= 1
            del self._lines[source_id]  # its next turn comes after everyone else's
            if line:
                self._lines[source_id] = line
            self._open.append(frame)
            self._open_bytes += size
            partition, offset, epoch = frame.receipt
            self._admitted[partition] = max(self._admitted.get(partition, (0, -1)), (epoch, offset))
            admitted.append(frame)
        return admitted

    def due(self, *, idle: bool, draining: bool = False, decoded: int | None = None) -> Due | None:
        """Whether to close now. `idle`: the engine waits for work. `draining`: nothing more will come.

        decoded: how many frames at the front may go without the others, which are being decoded. None: all go together.
        """
        ready = len(self._open)
        if not ready:
            return None
        if ready >= self._capacity or self._bytes_full:
            return Due(self._preferred_size(ready), "bytes" if self._bytes_full else "size")
        if draining:
            return Due(ready, "drain")
        if self._config.policy == "dynamic" and idle:
            most = self._preferred_size(ready)
            soon = most if decoded is None else self._preferred_size(decoded)
            # Each moment that the engine waits for the last few is one for all: they go with the next batch instead.
            for size in (soon, most):
                if size * 3 >= most * 2 and (not self._preferred or size in self._preferred):
                    return Due(size, "idle_engine")
        if (
            self._config.policy != "static"
            and (idle or self._config.policy == "window")
            and self._age_s() >= self._delay_s
        ):
            return Due(ready, "delay")
        return None

    def wake_in_s(self) -> float | None:
        """Seconds until the delay makes the open batch due for an idle engine; None: only a new frame can."""
        if not self._open or self._config.policy == "static":
            return None
        return max(0.0, self._delay_s - self._age_s())

    def take(self, due: Due) -> Batch:
        """Close the open batch with its first `due.size` frames. The others stay open, in order, in their slots.

        With those it is full until more is reserved for it.
        """
        batch = Batch(tuple(self._open[: due.size]), due.closed_by)
        del self._open[: due.size]
        self._capacity = len(self._open)
        self._open_bytes = sum(len(frame.payload) for frame in self._open)
        # What stays behind can take the frame that did not fit, or it goes next.
        self._bytes_full = False
        return batch

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop the waiting frames of these partitions and return them. The open batch is left alone.

        Without `overtaken`, frames stay that a later offset of their partition has overtaken: finishing them lets the
        watermark rise over what was finished beyond them, which would be repeated otherwise.
        """
        chosen = frozenset(partitions)  # thousands of frames wait, and the worker's lock is held

        def leaves(frame: Frame) -> bool:
            partition, offset, epoch = frame.receipt
            if partition not in chosen:
                return False
            return overtaken or (epoch, offset) > self._admitted.get(partition, (0, -1))

        dropped: list[Frame] = []
        for source_id, line in list(self._lines.items()):
            kept: deque[Frame] = deque()
            leaving: list[Frame] = []
            for frame in line:
                (leaving if leaves(frame) else kept).append(frame)
            if not leaving:
                continue
            dropped += leaving
            if kept:
                self._lines[source_id] = kept
            else:
                del self._lines[source_id]
        self._waiting -= len(dropped)
        return dropped

    def _age_s(self) -> float:
        return self._clock() - self._open[0].received_at

    def _preferred_size(self, ready: int) -> int:
        return next((size for size in self._preferred if size <= ready), ready)

    def _judge(self, frame: Frame) -> Frame:
        limit = self._config.max_frame_age_ms
        if limit is None or frame.verdict is not None or frame.captured_at_ms is None:
            return frame
        age_ms = self._wall_clock_ms() - frame.captured_at_ms
        return frame if age_ms <= limit else frame._replace(payload=b"", verdict=Skipped("stale", float(age_ms)))
