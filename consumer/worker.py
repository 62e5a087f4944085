"""Infer: the inference thread and the decode pool. Frames go in, batch results come out, in order.

Two threads touch the open batch: the main thread admits frames to it, and the inference thread, when idle, takes what
it holds. `_changed` is the one lock around the batcher, the ring and the queue of closed batches. Decoding starts at
admission, straight into the ring, so that batch k+1 is decoded while batch k is in the engine.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from consumer.batcher import Batcher, Due
from consumer.config import BatchingConfig, DecodeConfig
from consumer.decoder import Decoder
from consumer.detectors.base import Detector
from consumer.detectors.resilient import ResilientDetector
from consumer.errors import EngineError, SluiceError
from consumer.ring import Buffer, Ring
from consumer.types import (
    Batch,
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

# One in the engine, one closed and decoded, one being decoded, one to admit to while those three are busy.
BUFFERS = 4
# Frames per decoding job. A job per frame costs twice the CPU; larger ones leave a decode thread without work.
CHUNK = 8
# How often the device is asked for its memory.
_MEMORY_EVERY_S = 1.0


@dataclass(slots=True, eq=False)
class _Lease:
    """A ring buffer while batches use it. A batch has a contiguous range of slots; two batches may share a buffer."""

    buffer: Buffer
    verdicts: list[Outcome | Letterbox | None]  # per slot, written by the decode pool
    used: int = 0  # slots assigned
    unfinished: int = 0  # of those, slots whose batch is not through the engine
    filling: bool = True  # the open batch may still assign slots


@dataclass(frozen=True, slots=True)
class _Work:
    """A closed batch: its frames lie in slots [start, start + len(frames)) of the lease's buffer."""

    batch: Batch
    lease: _Lease
    start: int
    decoding: Sequence[_Chunk]


class _Chunk(NamedTuple):
    """A decoding job, and the slots that it writes to: [first, stop). It returns the seconds that it took."""

    first: int
    stop: int
    job: Future[float]


@dataclass(slots=True)
class _Open:
    """Where the open batch lies. `decoding`: jobs that may still write to its slots."""

    lease: _Lease
    start: int = 0
    decoding: list[_Chunk] = field(default_factory=list)


class Worker:
    """Owns the detector (on its own thread), the decode pool, the ring and the batcher.

    All public methods are for the main thread. `load` builds the detector; it runs on the inference thread, because a
    CUDA context belongs to the thread that made it, and may take a minute.
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
    ) -> None:
        self._load = load
        self._batching = batching
        self._decode_config = decode
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._on_retry = on_retry
        self._changed = threading.Condition()
        self._closed: deque[_Work] = deque()
        self._open: _Open | None = None
        self._draining = False
        self._stopping = False
        self._results: queue.SimpleQueue[BatchResult | BaseException] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._pool = ThreadPoolExecutor(decode.thread_count, thread_name_prefix="decode")
        self._in_flight = 0
        self._busy_since: float | None = None
        self._info: ModelInfo | None = None
        self._device = ""
        self._device_memory: DeviceMemory | None = None
        self._looked_at = 0.0
        self._batcher: Batcher
        self._ring: Ring
        self._decoder: Decoder
        self._detector: ResilientDetector

    # Main thread: life

    def start(self, stop: threading.Event) -> bool:
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
        self._pool.shutdown(wait=False, cancel_futures=True)
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
            return self._batcher.room

    @property
    def in_flight(self) -> int:
        """Frames admitted whose result was not handed out yet."""
        return self._in_flight

    @property
    def expecting(self) -> bool:
        """Whether a result may come without another frame or a delay: the engine works, or is about to."""
        with self._changed:
            return bool(
                self._busy_since is not None
                or self._closed
                or not self._results.empty()
                or self._batcher.due(idle=True, draining=self._draining)
            )

    @property
    def busy_since(self) -> float | None:
        """When the engine took the batch that it works on, on the injected clock; None while it is idle."""
        return self._busy_since

    def admit(self, frames: Sequence[Frame]) -> None:
        """Take frames in; their decoding starts now where a buffer is free. Does not block."""
        with self._changed:
            for frame in frames:
                self._batcher.offer(frame)
            self._in_flight += len(frames)
            self._fill()
            self._changed.notify()

    def results(self, timeout_s: float = 0.0) -> list[BatchResult]:
        """Finished batches, oldest first; blocks up to `timeout_s` for the first one.

        Raises what ended the inference thread, once what was finished before it has been handed out, and every time
        from then on: nothing more will come.
        """
        finished: list[BatchResult] = []
        try:
            while self._failure is None:
                # Blocks for the first one alone.
                item = self._results.get(timeout_s > 0 and not finished, timeout_s or None)
                if isinstance(item, BatchResult):
                    self._in_flight -= len(item.batch.frames)
                    finished.append(item)
                else:
                    self._failure = item
        except queue.Empty:
            return finished
        if finished:
            return finished
        raise self._failure

    def discard(self, partitions: Collection[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop the waiting frames of these partitions and return them; see `Batcher.discard`."""
        with self._changed:
            dropped = self._batcher.discard(partitions, overtaken=overtaken)
            self._in_flight -= len(dropped)
            return dropped

    def drain(self, *, draining: bool) -> None:
        """While draining, what is open goes to the engine without waiting for more."""
        with self._changed:
            self._draining = draining
            self._changed.notify()

    # Under the lock, on either thread

    def _fill(self) -> None:
        """Admit waiting frames while there are slots; close batches that are full."""
        while self._batcher.waiting:
            if self._open is None:
                buffer = self._ring.take()
                if buffer is None:
                    return
                size = len(buffer.slots)
                self._open = _Open(_Lease(buffer, [None] * size))
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
        for i in range(0, len(frames), CHUNK):
            chunk = frames[i : i + CHUNK]
            first, stop = lease.used, lease.used + len(chunk)
            into.decoding.append(_Chunk(first, stop, self._pool.submit(self._decode_chunk, lease, first, chunk)))
            lease.used = stop
            lease.unfinished += len(chunk)

    def _close_batch(self, opened: _Open, due: Due) -> _Work:
        batch = self._batcher.take(due)
        stop = opened.start + due.size
        awaited = [chunk for chunk in opened.decoding if chunk.first < stop]
        work = _Work(batch, opened.lease, opened.start, awaited)
        opened.start = stop
        opened.decoding = [chunk for chunk in opened.decoding if chunk.stop > stop]
        if not self._batcher.open_size:
            # The rest of this buffer would make a smaller batch than a fresh one can hold.
            opened.lease.filling = False
            self._open = None
        return work

    def _release(self, work: _Work) -> None:
        lease = work.lease
        lease.unfinished -= len(work.batch.frames)
        if not lease.unfinished and not lease.filling:
            self._ring.give_back(lease.buffer)
            self._fill()

    # Decode pool

    def _decode_chunk(self, lease: _Lease, first: int, frames: Sequence[Frame]) -> float:
        began = self._clock()
        decode, slots, verdicts = self._decoder.decode, lease.buffer.slots, lease.verdicts
        for slot, frame in enumerate(frames, first):
            try:
                verdicts[slot] = frame.verdict or decode(frame.payload, slots[slot])
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - decoding is deterministic: a restart would meet it again
                verdicts[slot] = Rejected("decode", "damaged", f"{type(error).__name__}: {error}")
        return self._clock() - began

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
                result = self._infer(work)
                with self._changed:
                    self._release(work)
                self._results.put(result)
        except SluiceError as error:
            self._results.put(error)
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            failure = EngineError(f"the inference thread failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._results.put(failure)
        finally:
            self._loaded.set()
            detector.close()

    def _prepare(self, detector: Detector) -> None:
        batching = self._batching
        limit = detector.max_batch_size
        if limit is not None and limit < batching.max_batch_size:
            _log.warning("batches are smaller than configured: the model takes no more", max_batch_size=limit)
            preferred = [size for size in batching.preferred_batch_sizes if size <= limit]
            batching = batching.model_copy(update={"max_batch_size": limit, "preferred_batch_sizes": preferred})
        self._batcher = Batcher(batching, clock=self._clock, wall_clock_ms=self._wall_clock_ms)
        self._decoder = Decoder(self._decode_config, detector.policy)
        self._ring = Ring(
            buffers=BUFFERS,
            batch_size=batching.max_batch_size,
            slot_bytes=self._decoder.slot_bytes,
            allocate=detector.allocate,
        )
        self._detector = ResilientDetector(detector, self._on_retry)
        self._detector.warm_up(batching.max_batch_size)
        self._device_memory = self._detector.device_memory()
        self._info, self._device = detector.info, detector.device

    def _next(self) -> _Work | None:
        """The next batch for an idle engine; blocks until there is one. None when stopping."""
        with self._changed:
            while not self._stopping:
                if self._closed:
                    return self._closed.popleft()
                if self._open is not None:
                    due = self._batcher.due(idle=True, draining=self._draining)
                    if due is not None:
                        work = self._close_batch(self._open, due)
                        self._fill()
                        return work
                self._changed.wait(self._batcher.wake_in_s())
            return None

    def _infer(self, work: _Work) -> BatchResult:
        self._busy_since = taken_at = self._clock()
        frames, stop = work.batch.frames, work.start + len(work.batch.frames)
        decode_s = 0.0
        for chunk in work.decoding:
            spent_s = chunk.job.result()
            if chunk.stop <= stop:  # else its last frames belong to the next batch, which counts all of it
                decode_s += spent_s
        decoded_at = self._clock()
        verdicts = work.lease.verdicts[work.start : stop]
        rows = [row for row, verdict in enumerate(verdicts) if isinstance(verdict, Letterbox)]
        looked_at: list[Detections | Rejected] = []
        if rows:
            slots = work.lease.buffer.slots[work.start : stop]
            # Without rejected frames this is a view; with some, one copy of the others.
            looked_at = self._detector.detect(
                slots if len(rows) == len(frames) else slots[rows],
                [verdict for verdict in verdicts if isinstance(verdict, Letterbox)],
            )
        done_at = self._clock()
        self._busy_since = None
        if done_at - self._looked_at >= _MEMORY_EVERY_S:
            self._device_memory, self._looked_at = self._detector.device_memory(), done_at
        timings = StageTimings((decoded_at - taken_at) * 1000, (done_at - decoded_at) * 1000, decode_s * 1000)
        return BatchResult(work.batch, _merge(verdicts, looked_at), timings, taken_at)


def _merge(verdicts: Sequence[Outcome | Letterbox | None], looked_at: Sequence[Detections | Rejected]) -> list[Outcome]:
    """One outcome per verdict: the detector's, in order, where the frame was decoded; else the verdict itself."""
    remaining = iter(looked_at)
    outcomes: list[Outcome] = []
    for verdict in verdicts:
        if isinstance(verdict, Letterbox):
            seen = next(remaining)
            outcomes.append(Detected(seen, verdict.width, verdict.height) if isinstance(seen, Detections) else seen)
        elif verdict is not None:
            outcomes.append(verdict)
    return outcomes
