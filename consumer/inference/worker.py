"""The inference thread, and what the main thread may ask of it.

Two threads touch the open batch: the main thread admits frames to it, and the inference thread, when idle, takes what
it holds. `_changed` is the one lock around the assembly of batches. Between two batches the inference thread does as
little as it can: slots are given back, and outcomes put together, by the main thread when it takes the results.
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

# Batches that `results` waits for at most; it returns what else is there. While it does, the engine lives on what waits
# in the batcher.
_MOST_TOGETHER = WAITING_BATCHES
# How often the device is asked for its memory.
_MEMORY_EVERY_S = 1.0
# How often a decoding job that takes long is asked how far it is.
_LOOK_EVERY_S = 1.0


class _Inferred(NamedTuple):
    """A batch that is through the engine. `looked_at`: what was seen in those of its frames that were decoded."""

    work: Work
    looked_at: Sequence[Detections | Rejected]
    timings: StageTimings
    taken_at: float


class Worker:
    """Owns the detector (on its own thread), the decode pool, the ring and the batcher.

    All public methods are for the main thread. `load` builds the detector and may take a minute; it runs on the
    inference thread, because each thread has a current CUDA device of its own.
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
        # Known once the detector is: how canvases are laid out, and how many make a batch, is its choice.
        self._assembly: Assembly
        self._pool: DecodePool | None = None
        self._detector: ResilientDetector

    # Main thread: life

    def start(self, stop: Stop) -> bool:
        """Load and warm the detector; block until it is ready. False where `stop` was set before it was.

        Raises what loading raised: a ModelError or EngineError with a message for a person.
        """
        self._thread.start()
        while not self._loaded.wait(0.1):
            if stop.is_set():
                return False
        self.results()  # raises what loading raised
        return True

    def close(self, timeout_s: float) -> bool:
        """End the threads; work that is not done is dropped. False where the engine did not return in time."""
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
        """The model that is loaded. Only after `start`."""
        if self._info is None:
            raise RuntimeError("the worker has not loaded its model yet; call start() first")
        return self._info

    @property
    def device(self) -> str:
        """Where the detector runs. Empty before `start`."""
        return self._device

    @property
    def device_memory(self) -> DeviceMemory | None:
        """The device's memory, a second old at most while batches come; None where the device has none of its own."""
        return self._device_memory

    # Main thread: work

    @property
    def room(self) -> int:
        """Frames that `admit` takes now."""
        with self._changed:
            return self._assembly.room

    @property
    def in_flight(self) -> int:
        """Frames admitted whose result was not handed out yet."""
        return self._in_flight

    @property
    def expecting(self) -> bool:
        """Whether a result may come without another frame or a delay: the engine works, or is about to."""
        with self._changed:
            return self._busy_since is not None or not self._results.empty() or self._assembly.has_work

    @property
    def busy_since(self) -> float | None:
        """Since when the batch in the engine has shown no sign of life, on the injected clock; None while it is idle.

        That is when it was taken, when one of its frames was last decoded, or when it was handed to the detector.
        """
        return self._busy_since

    def admit(self, frames: Sequence[Frame]) -> None:
        """Take frames in; their decoding starts now where slots are free. Does not block."""
        with self._changed:
            self._in_flight += len(frames)
            self._assembly.admit(frames)
            self._changed.notify()

    def results(self, timeout_s: float = 0.0, gather_s: float = 0.0) -> list[BatchResult]:
        """Finished batches, oldest first; blocks up to `timeout_s` for the first, and from there `gather_s` for more.

        For those it does not wait where none is on its way, or where the engine alone needed longer for the last.

        Raises what ended the inference thread, once what was finished before it has been handed out, and every time
        from then on: nothing more will come.
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
                    results.append(self._take_out(item))  # its slots serve the next batch while others are awaited
        except queue.Empty:
            pass
        if self._failure is not None and not results:
            raise self._failure
        return results

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop the waiting frames of these partitions and return them; see `Batcher.discard`."""
        with self._changed:
            dropped = self._assembly.discard(partitions, overtaken=overtaken)
            self._in_flight -= len(dropped)
            return dropped

    def drain(self, *, draining: bool) -> None:
        """While draining, what is open goes to the engine without waiting for more."""
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
                self._busy_since = None  # not before: the main thread would think that nothing is coming
        except SluiceError as error:
            self._results.put(error)
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            failure = EngineError(f"the inference thread failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._results.put(failure)
        finally:
            self._loaded.set()
            if self._stopping and self._pool is not None:
                self._pool.close()  # it may have been made after `close` had looked for it
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
        """The next batch for an idle engine; blocks until there is one. None when stopping."""
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
            if chunk.stop <= work.stop:  # else its last frames belong to the next batch, which counts all of it
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
        """The seconds that its decoding took. A batch of pictures that cost seconds each takes minutes: no hang."""
        decided = 0
        while True:
            try:
                return chunk.job.result(_LOOK_EVERY_S)
            except TimeoutError:
                if chunk.job.done():
                    return chunk.job.result()  # it ended just now, or this was its own
            verdicts = self._assembly.verdicts[chunk.first : chunk.stop]
            before, decided = decided, sum(verdict is not None for verdict in verdicts)
            if decided > before:
                self._busy_since = self._clock()

    def _canvases(self, work: Work, decoded: int) -> NDArray[np.uint8]:
        """The slots of the frames that were decoded, moved together in place: a GPU copies from this memory alone."""
        slots = self._assembly.slots[work.places]
        if decoded < len(slots):
            verdicts = self._assembly.verdicts[work.places]
            rows = (row for row, verdict in enumerate(verdicts) if isinstance(verdict, Letterbox))
            for place, row in enumerate(rows):
                if place < row:
                    slots[place] = slots[row]
        return slots[:decoded]


def _merged(verdicts: Sequence[Verdict | None], looked_at: Sequence[Detections | Rejected]) -> Iterator[Outcome]:
    """One outcome per verdict: the detector's, in order, where the frame was decoded; else the verdict itself."""
    remaining = iter(looked_at)
    for verdict in verdicts:
        if isinstance(verdict, Letterbox):
            seen = next(remaining)
            yield Detected(seen, verdict.width, verdict.height) if isinstance(seen, Detections) else seen
        elif verdict is not None:
            yield verdict
