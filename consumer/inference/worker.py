"""Runs the inference thread, and provides its interface for the main thread.

Two threads use the open batch: the main thread admits frames to it, and the idle inference thread takes frames from it.
`_changed` is the only lock around the assembly of batches.

Between two batches the inference thread does as little as possible. So the main thread frees the slots and builds the
outcomes when it takes the results.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from consumer.concurrency import Stop
from consumer.config import BatchingConfig, DecodeConfig
from consumer.decoding.pool import DecodePool, Verdict, make_decoder
from consumer.detectors.base import Detector
from consumer.detectors.resilient import ResilientDetector
from consumer.errors import EngineError, SluiceError
from consumer.inference.batcher import WAITING_BATCHES, Batcher
from consumer.inference.ring_buffer import Ring
from consumer.inference.slots import BATCHES, Assembly, Chunk, Work
from consumer.types import (
    BatchResult,
    Clock,
    Detected,
    Detections,
    DeviceMemory,
    Frame,
    Letterbox,
    ModelInfo,
    Outcome,
    Rejected,
    StageTimings,
    TopicPartition,
)

_log = structlog.get_logger(__name__)

# The maximum number of batches that `results` waits for. During the wait the detector processes the frames that wait in
# the batcher. Batches that are finished already are returned without a limit.
_MOST_TOGETHER = WAITING_BATCHES
# The minimum time between two readings of the device memory.
_MEMORY_EVERY_S = 1.0
# The time between two checks of the progress of a slow decoding job.
_LOOK_EVERY_S = 1.0


class _Inferred(NamedTuple):
    """A batch that the detector has processed. `looked_at`: the results of those frames that were decoded."""

    work: Work
    looked_at: Sequence[Detections | Rejected]
    timings: StageTimings
    taken_at: float


class Worker:
    """Owns the inference thread with the detector, the decode pool, the ring buffer and the batcher.

    All public methods and properties are for the main thread.

    Args:
        load: Builds the detector; may take a minute. It runs on the inference thread, because the current CUDA device
            is a property of the thread.
        batching: The `batching` options.
        decode: The `decode` options.
        clock: Monotonic seconds.
        wall_clock_ms: Unix time in milliseconds, for the age of frames.
        on_retry: Called on the inference thread after each failed call of the detector.
        on_decoder_replaced: Called on a decode thread for each decoding process that was replaced.
    """

    def __init__(
        self,
        load: Callable[[], Detector],
        batching: BatchingConfig,
        decode: DecodeConfig,
        *,
        clock: Clock,
        wall_clock_ms: Callable[[], int],
        on_retry: Callable[[], None] = lambda: None,
        on_decoder_replaced: Callable[[], None] = lambda: None,
    ) -> None:
        self._load = load
        self._batching = batching
        self._decode_config = decode
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._on_retry = on_retry
        self._on_decoder_replaced = on_decoder_replaced
        self._changed = threading.Condition()
        self._stopping = False
        self._results: queue.SimpleQueue[_Inferred | BaseException] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._in_flight = 0
        self._busy_since: float | None = None
        self._info: ModelInfo | None = None
        self._device = ""
        self._device_memory: DeviceMemory | None = None
        self._looked_at = 0.0
        # Created after the detector, which determines the canvas layout and can limit the batch size.
        self._assembly: Assembly
        self._pool: DecodePool | None = None
        self._detector: ResilientDetector

    # Main thread: life

    def start(self, stop: Stop) -> bool:
        """Load the detector and warm it up. Blocks until it is ready.

        Args:
            stop: Ends the wait.

        Returns:
            True if the detector is ready, False if `stop` was set first.

        Raises:
            Exception: The error of loading, usually a ModelError or EngineError with a message for a person.
        """
        self._thread.start()
        while not self._loaded.wait(0.1):
            if stop.is_set():
                return False
        self.results()  # raises what loading raised
        return True

    def close(self, timeout_s: float) -> bool:
        """End the threads and drop unfinished work.

        Args:
            timeout_s: The maximum time to wait for the inference thread, in seconds.

        Returns:
            False if the detector did not return in time.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._pool is not None:
            self._pool.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def info(self) -> ModelInfo:
        """The loaded model. Raises RuntimeError before `start` has returned."""
        if self._info is None:
            raise RuntimeError("the worker has not loaded its model yet; call start() first")
        return self._info

    @property
    def device(self) -> str:
        """The device that the detector runs on. Empty before `start`."""
        return self._device

    @property
    def device_memory(self) -> DeviceMemory | None:
        """The memory of the device, updated at most once a second. None if the device has no memory of its own."""
        return self._device_memory

    # Main thread: work

    @property
    def room(self) -> int:
        """The number of frames that `admit` accepts now."""
        with self._changed:
            return self._assembly.room

    @property
    def in_flight(self) -> int:
        """The number of admitted frames whose result `results` has not returned yet."""
        return self._in_flight

    @property
    def expecting(self) -> bool:
        """Whether a result may come without another frame or a delay: the detector is busy, or will be at once."""
        with self._changed:
            return self._busy_since is not None or not self._results.empty() or self._assembly.has_work

    @property
    def busy_since(self) -> float | None:
        """The time of the last progress of the current batch, on the injected clock. None while the thread is idle.

        Progress is: the thread took the batch, a frame of it was decoded, or the decoded batch went to the detector.
        """
        return self._busy_since

    def admit(self, frames: Sequence[Frame]) -> None:
        """Accept frames. If slots are free, their decoding starts now. Does not block."""
        with self._changed:
            self._in_flight += len(frames)
            self._assembly.admit(frames)
            self._changed.notify()

    def results(self, timeout_s: float = 0.0, gather_s: float = 0.0) -> list[BatchResult]:
        """Return finished batches.

        After the first batch it waits for more. It does not wait if the detector is idle, or if its last batch took
        longer than the remaining time.

        Args:
            timeout_s: The maximum time to wait for the first batch, in seconds.
            gather_s: The maximum time to wait for more batches after the first one, in seconds.

        Returns:
            The finished batches, oldest first; may be empty.

        Raises:
            Exception: The error that ended the inference thread, usually a SluiceError. It is raised after all finished
                batches were returned, and again by every later call.
        """
        results: list[BatchResult] = []
        until = 0.0
        try:
            while self._failure is None:
                wait_s = self._gather_s(results, until) if results else timeout_s
                item = self._results.get(wait_s > 0, wait_s or None)
                if isinstance(item, BaseException):
                    self._failure = item
                else:
                    until = until or self._clock() + gather_s
                    results.append(self._take_out(item))  # frees its slots, so that decoding continues during the wait
        except queue.Empty:
            pass
        if self._failure is not None and not results:
            raise self._failure
        return results

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop waiting frames of some partitions and return them; see `Batcher.discard`."""
        with self._changed:
            dropped = self._assembly.discard(partitions, overtaken=overtaken)
            self._in_flight -= len(dropped)
            return dropped

    def drain(self, *, draining: bool) -> None:
        """Start or stop draining. While draining, the open batch does not wait for more frames."""
        with self._changed:
            self._assembly.draining = draining
            self._changed.notify()

    def _gather_s(self, results: Sequence[BatchResult], until: float) -> float:
        left_s = until - self._clock()
        hopeless = len(results) >= _MOST_TOGETHER or results[-1].timings.infer_ms >= left_s * 1000
        return 0.0 if hopeless or not self.expecting else left_s

    def _take_out(self, finished: _Inferred) -> BatchResult:
        work = finished.work
        verdicts = self._assembly.verdicts[work.places]
        with self._changed:
            self._assembly.release(work)
            self._changed.notify()
        self._in_flight -= len(work.batch.frames)
        outcomes = list(_merged(verdicts, finished.looked_at))
        return BatchResult(work.batch, outcomes, finished.timings, finished.taken_at)

    # Inference thread

    def _run(self) -> None:
        try:
            detector = self._load()
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            self._results.put(error)
            self._loaded.set()
            return
        try:
            self._prepare(detector)
            self._loaded.set()
            while (work := self._next()) is not None:
                self._results.put(self._infer(work))
                self._busy_since = None  # after `put`: else `expecting` could be false although a result is coming
        except SluiceError as error:
            self._results.put(error)
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            failure = EngineError(f"the inference thread failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._results.put(failure)
        finally:
            self._loaded.set()
            if self._stopping and self._pool is not None:
                self._pool.close()  # the pool may have been created after `close` had checked for it
            detector.close()

    def _prepare(self, detector: Detector) -> None:
        batching = self._batching
        limit = detector.max_batch_size
        if limit is not None and limit < batching.max_batch_size:
            _log.warning("batches are smaller than configured: the model takes no more", max_batch_size=limit)
            preferred = [size for size in batching.preferred_batch_sizes if size <= limit]
            batching = batching.model_copy(update={"max_batch_size": limit, "preferred_batch_sizes": preferred})
        shape = (BATCHES * batching.max_batch_size, detector.policy.slot_bytes)
        decoder, memory = make_decoder(
            self._decode_config, detector.policy, shape, on_replaced=self._on_decoder_replaced
        )
        batcher = Batcher(batching, clock=self._clock, wall_clock_ms=self._wall_clock_ms)
        self._pool = DecodePool(decoder, self._decode_config.thread_count, clock=self._clock)
        self._assembly = Assembly(batcher, Ring(memory, batching.max_batch_size), self._pool)
        self._detector = ResilientDetector(detector, self._on_retry)
        detector.pin(memory)
        self._detector.warm_up(batching.max_batch_size)
        self._device_memory = self._detector.device_memory()
        self._info, self._device = detector.info, detector.device

    def _next(self) -> Work | None:
        """Return the next batch for the detector. Blocks until there is one; None when stopping."""
        with self._changed:
            while not self._stopping:
                if (work := self._assembly.next()) is not None:
                    self._busy_since = self._clock()  # under the lock: `expecting` must never miss this batch
                    return work
                self._changed.wait(self._assembly.wake_in_s)
            return None

    def _infer(self, work: Work) -> _Inferred:
        taken_at = self._clock()
        decode_s = 0.0
        for chunk in work.decoding:
            spent_s = self._await(chunk)
            if chunk.stop <= work.stop:  # else its last frames belong to the next batch, which counts the whole job
                decode_s += spent_s
        self._busy_since = decoded_at = self._clock()
        boxes = [verdict for verdict in self._assembly.verdicts[work.places] if isinstance(verdict, Letterbox)]
        looked_at = self._detector.detect(self._canvases(work, len(boxes)), boxes) if boxes else []
        done_at = self._clock()
        if done_at - self._looked_at >= _MEMORY_EVERY_S:
            self._device_memory, self._looked_at = self._detector.device_memory(), done_at
        timings = StageTimings((decoded_at - taken_at) * 1000, (done_at - decoded_at) * 1000, decode_s * 1000)
        return _Inferred(work, looked_at, timings, taken_at)

    def _await(self, chunk: Chunk) -> float:
        """Wait for a decoding job and return the time that it took, in seconds.

        Each decoded frame counts as progress. A batch of images that need seconds each takes minutes, and is no hang.
        """
        decided = 0
        while True:
            try:
                return chunk.job.result(_LOOK_EVERY_S)
            except TimeoutError:
                if chunk.job.done():
                    return chunk.job.result()  # it has just ended, or the job itself raised TimeoutError
            verdicts = self._assembly.verdicts[chunk.first : chunk.stop]
            before, decided = decided, sum(verdict is not None for verdict in verdicts)
            if decided > before:
                self._busy_since = self._clock()

    def _canvases(self, work: Work, decoded: int) -> NDArray[np.uint8]:
        """Move the slots of the decoded frames together, in place, because a GPU copies only from this memory.

        Returns:
            uint8 (decoded, slot_bytes), a view of the ring buffer.
        """
        slots = self._assembly.slots[work.places]
        if decoded < len(slots):
            verdicts = self._assembly.verdicts[work.places]
            rows = (row for row, verdict in enumerate(verdicts) if isinstance(verdict, Letterbox))
            for place, row in enumerate(rows):
                if place < row:
                    slots[place] = slots[row]
        return slots[:decoded]


def _merged(verdicts: Sequence[Verdict | None], looked_at: Sequence[Detections | Rejected]) -> Iterator[Outcome]:
    """Yield one outcome per frame: the result of the detector if the frame was decoded, else its early outcome."""
    remaining = iter(looked_at)
    for verdict in verdicts:
        if isinstance(verdict, Letterbox):
            seen = next(remaining)
            yield Detected(seen, verdict.width, verdict.height) if isinstance(seen, Detections) else seen
        elif verdict is not None:
            yield verdict
