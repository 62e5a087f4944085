"""Decides which frames form a batch, and when the batch closes.

Each source has a queue of waiting frames. Frames are admitted from the queues to the open batch, one frame per source
in turn, and their decoding starts at admission. `due` decides whether the open batch closes, and `take` closes it.

Pure: clocks are injected; no I/O, no locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from consumer.config import BatchingConfig
from consumer.types import Batch, Clock, ClosedBy, Frame, Skipped, TopicPartition

# The maximum number of waiting frames, in batches. So if a fetch brings many frames of one source, others get a turn.
WAITING_BATCHES = 4


class Due(NamedTuple):
    """The decision to close the open batch now, with its first `size` frames."""

    size: int
    closed_by: ClosedBy


class Batcher:
    """Forms batches with the policies `dynamic`, `window` and `static` of `BatchingConfig`.

    Args:
        config: The `batching` options.
        clock: The clock of `Frame.received_at`, in monotonic seconds.
        wall_clock_ms: Unix time in milliseconds, for the age of frames.
    """

    def __init__(self, config: BatchingConfig, *, clock: Clock, wall_clock_ms: Callable[[], int]) -> None:
        self._config = config
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._delay_s = config.max_queue_delay_ms / 1000
        self._preferred = sorted(set(config.preferred_batch_sizes), reverse=True)
        self._lines: dict[str, deque[Frame]] = {}  # by source ID, in the order of the next turns; no queue is empty
        self._waiting = 0
        self._admitted: dict[TopicPartition, tuple[int, int]] = {}  # the highest (epoch, offset) that was admitted
        self._open: list[Frame] = []
        self._open_bytes = 0
        self._capacity = 0  # the number of frames that the open batch can hold
        self._bytes_full = False  # whether the next frame would exceed max_batch_bytes

    @property
    def room(self) -> int:
        """The number of frames that may be offered now."""
        return max(0, WAITING_BATCHES * self._config.max_batch_size - self._waiting)

    @property
    def waiting(self) -> int:
        """The number of frames in the queues, not yet admitted."""
        return self._waiting

    @property
    def open_size(self) -> int:
        """The number of frames in the open batch."""
        return len(self._open)

    def offer(self, frame: Frame) -> None:
        """Append a frame to the queue of its source."""
        line = self._lines.get(frame.source_id)
        if line is None:
            self._lines[frame.source_id] = line = deque()
        line.append(frame)
        self._waiting += 1

    def reserve(self, slots: int) -> None:
        """Set the capacity of the open batch. The capacity of a new batch is 0.

        Args:
            slots: The number of frames. `max_batch_size` limits it.

        Raises:
            ValueError: The open batch already has more frames.
        """
        if slots < len(self._open):
            raise ValueError(f"{len(self._open)} frames are in the open batch already: {slots} slots are too few")
        self._capacity = min(slots, self._config.max_batch_size)

    def admit(self) -> list[Frame]:
        """Move waiting frames into the open batch, one frame per source in turn.

        A frame that is too old by now is marked as skipped here, before it is decoded.

        Returns:
            The admitted frames, in the order of their slots.
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
            del self._lines[source_id]  # its next turn comes after those of all other sources
            if line:
                self._lines[source_id] = line
            self._open.append(frame)
            self._open_bytes += size
            partition, offset, epoch = frame.receipt
            self._admitted[partition] = max(self._admitted.get(partition, (0, -1)), (epoch, offset))
            admitted.append(frame)
        return admitted

    def due(self, *, idle: bool, draining: bool = False, decoded: int | None = None) -> Due | None:
        """Decide whether the open batch closes now.

        Args:
            idle: Whether the detector is idle.
            draining: Whether no more frames will come.
            decoded: The number of frames at the start of the open batch that may close without the others, which are
                still being decoded. None: the batch can only close with all its frames.

        Returns:
            The decision, or None if the batch stays open.
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
            # Waiting for the last frames would delay the whole batch, so they go with the next batch instead.
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
        """Return the seconds until the delay closes the open batch, or None if only a new frame can close it."""
        if not self._open or self._config.policy == "static":
            return None
        return max(0.0, self._delay_s - self._age_s())

    def take(self, due: Due) -> Batch:
        """Close the open batch with its first `due.size` frames.

        The other frames form the new open batch. They keep their order and their slots. The new batch is full until
        `reserve` is called.
        """
        batch = Batch(tuple(self._open[: due.size]), due.closed_by)
        del self._open[: due.size]
        self._capacity = len(self._open)
        self._open_bytes = sum(len(frame.payload) for frame in self._open)
        # The frame that did not fit can join the new open batch, or starts the one after it.
        self._bytes_full = False
        return batch

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop waiting frames of some partitions. The open batch stays as it is.

        A frame is overtaken if a frame with a later offset of its partition was admitted before it. If overtaken frames
        are finished too, the watermark can advance over the later offsets, which would be repeated otherwise.

        Args:
            partitions: The partitions.
            overtaken: Whether to drop overtaken frames too.

        Returns:
            The dropped frames.
        """
        chosen = frozenset(partitions)  # for speed: thousands of frames may wait, and the worker's lock is held

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
