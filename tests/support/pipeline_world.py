"""A world for the pipeline, in virtual time: the log and the group of `pipeline_group`, an engine, and brokers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from consumer.config import Config
from consumer.delivery.at_least_once import AtLeastOnce
from consumer.delivery.base import Delivery, Judge, SourceLike
from consumer.delivery.offsets import OffsetTracker
from consumer.errors import EngineError, PublishError
from consumer.inference.batcher import WAITING_BATCHES, Batcher
from consumer.kafka.dead_letter_fitting import Pending
from consumer.kafka.dead_letter_queue import LetterLine
from consumer.kafka.rebalance_listener import RebalanceListener
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.pipeline import Pipeline
from consumer.types import (
    Acknowledged,
    BatchResult,
    Detected,
    DeviceMemory,
    Finished,
    Frame,
    Outcome,
    Receipt,
    Rejected,
    StageTimings,
    TopicPartition,
)
from made_frames import REJECTED, VirtualClock, check_belongs, seen_on
from pipeline_group import FakeSource, Log

BAD = b"bad"  # how the payload of a frame begins that the engine rejects
UNPUBLISHABLE = b"nan"  # ... whose result the publisher cannot write


def outcome_of(item: Frame) -> Outcome:
    """What the engine says of a frame. No two frames have the same, except for those that it rejects."""
    return REJECTED if item.payload.startswith(BAD) else seen_on(item)


class FakeWorker:
    """The real batcher before an engine that takes `service_s()` a batch."""

    def __init__(self, config: Config, clock: VirtualClock, service_s: Callable[[], float]) -> None:
        self.clock, self.service_s = clock, service_s
        self.batcher = Batcher(config.batching, clock=clock, wall_clock_ms=clock.unix_ms)
        self.size = config.batching.max_batch_size
        self.draining = False
        self.busy: tuple[float, float, BatchResult] | None = None  # since, until, what
        self.in_flight = 0
        self.held_bytes = 0
        self.broken = False  # the engine is, for good
        self.device = "fake"
        self.device_memory: DeviceMemory | None = None

    @property
    def room(self) -> int:
        return self.batcher.room

    @property
    def expecting(self) -> bool:
        return self.in_flight > 0

    @property
    def busy_since(self) -> float | None:
        return self.busy[0] if self.busy else None

    def admit(self, frames: Sequence[Frame]) -> None:
        for item in frames:
            self.batcher.offer(item)
            self.held_bytes += item.record.size_bytes
        self.in_flight += len(frames)
        self._take()

    def results(self, timeout_s: float = 0.0, gather_s: float = 0.0) -> list[BatchResult]:
        if self.broken:
            raise EngineError("the device is lost")
        until, gathered_by = self.clock.now + timeout_s, 0.0
        finished: list[BatchResult] = []
        self._take()
        while self.busy is not None:
            if finished:  # as the real one
                left_s = gathered_by - self.clock.now
                waits = len(finished) < WAITING_BATCHES and finished[-1].timings.infer_ms < left_s * 1000
                until = gathered_by if waits else self.clock.now
            if self.busy[1] > until:
                self.clock.now = until
                break
            self.clock.now = max(self.clock.now, self.busy[1])
            gathered_by = gathered_by if finished else self.clock.now + gather_s
            finished.append(self.busy[2])
            self.busy = None
            self._take()
        if not finished:
            self.clock.now = until
        for item in finished:
            self.in_flight -= len(item.outcomes)
            self.held_bytes -= sum(f.record.size_bytes for f in item.batch.frames)
        return finished

    def discard(self, partitions: Sequence[TopicPartition], *, overtaken: bool) -> list[Frame]:
        dropped = self.batcher.discard(partitions, overtaken=overtaken)
        self.in_flight -= len(dropped)
        self.held_bytes -= sum(f.record.size_bytes for f in dropped)
        return dropped

    def drain(self, *, draining: bool) -> None:
        self.draining = draining

    def _take(self) -> None:
        self.batcher.reserve(self.size)
        self.batcher.admit()
        due = self.batcher.due(idle=True, draining=self.draining) if self.busy is None else None
        if due is not None:
            batch = self.batcher.take(due)
            outcomes = [outcome_of(item) for item in batch.frames]
            service_s = self.service_s()
            done = BatchResult(batch, outcomes, StageTimings(0.0, service_s * 1000), self.clock.now)
            self.busy = (self.clock.now, self.clock.now + service_s, done)


class FakePublisher:
    """Each source has two lanes, for results and dead letters, in which acknowledgements come in order; between lanes
    they do not. `fail` breaks one. Dead letters wait in the real line.
    """

    def __init__(self, source: FakeSource, clock: VirtualClock, delay_s: Callable[[], float]) -> None:
        self.line = LetterLine(math.inf)
        self.source, self.clock, self.delay_s = source, clock, delay_s
        self.published: list[tuple[Frame, Outcome]] = []
        self.lanes: dict[str, list[tuple[float, Acknowledged]]] = {}
        self.held_bytes = 0
        self.fail = False
        self._seen: set[Receipt] = set()
        self._last: dict[tuple[str, TopicPartition, int], int] = {}
        self._sent: dict[tuple[str, TopicPartition, int], int] = {}

    @property
    def outstanding(self) -> int:
        return sum(map(len, self.lanes.values())) + len(self.line)

    @property
    def buffered_bytes(self) -> int:
        """Dead letters hold their record once more."""
        lines = self.lanes.values()
        return sum(d.frame.record.size_bytes for line in lines for _, d in line if isinstance(d.outcome, Rejected))

    def publish(self, finished: Sequence[Finished], judge: Judge) -> None:
        for item in finished:
            judge(item.frame, self._publish(item.frame, item.outcome))

    def _publish(self, item: Frame, outcome: Outcome) -> Outcome:
        partition, offset, epoch = item.receipt
        assert self.source.owned.get(partition) == epoch, f"published for an epoch that has ended: {item.receipt}"
        assert item.receipt not in self._seen, f"published twice: {item.receipt}"
        self._seen.add(item.receipt)
        lane = item.source_id, partition, epoch
        assert offset > self._last.get(lane, -1), f"{item.source_id}: {offset} after {self._last[lane]}"
        self._last[lane] = offset
        check_belongs(item, outcome, outcome_of(item))
        if isinstance(outcome, Detected) and item.payload.startswith(UNPUBLISHABLE):
            outcome = Rejected("publish", "unpublishable", "a number of the result is not finite")
        self.held_bytes += item.record.size_bytes
        if isinstance(outcome, Rejected):
            self.line.add(Pending(item, outcome, self.clock.now))
            self._send_dead_letters()
        else:
            self._send(item.source_id, item, outcome)
        return outcome

    def _send_dead_letters(self) -> None:
        while (pending := self.line.next(self.buffered_bytes)) is not None:
            self.line.sent()
            self._send(f"dead letters of {pending.frame.source_id}", pending.frame, pending.outcome)

    def _send(self, lane: str, item: Frame, outcome: Outcome) -> None:
        partition, offset, epoch = item.receipt
        assert self.source.owned.get(partition) == epoch, f"sent for an epoch that has ended: {item.receipt}"
        before = self._sent.get((lane, partition, epoch), -1)
        assert offset > before, f"{lane}: {offset} is sent after {before}"
        self._sent[lane, partition, epoch] = offset
        self.published.append((item, outcome))
        line = self.lanes.setdefault(lane, [])
        line.append((self.clock.now + self.delay_s(), Acknowledged(item, outcome, self.clock.now)))

    def forget(self, partitions: Collection[TopicPartition]) -> list[Frame]:
        dropped = self.line.forget(partitions)
        self.held_bytes -= sum(item.record.size_bytes for item in dropped)
        return dropped

    def poll(self, timeout_s: float = 0.0) -> list[Acknowledged]:
        heads = [line[0][0] for line in self.lanes.values() if line]
        self.clock.now = max(self.clock.now, min([*heads, self.clock.now + timeout_s]))
        done: list[Acknowledged] = []
        for line in self.lanes.values():
            while line and line[0][0] <= self.clock.now:
                done.append(line.pop(0)[1])
        if self.fail and done:
            raise PublishError("the brokers refuse it")
        for item in done:
            self.held_bytes -= item.frame.record.size_bytes
            if isinstance(item.outcome, Rejected):
                self.line.reported()
            partition, offset, epoch = item.frame.receipt
            late = (partition, epoch) in self.source.handed_over
            assert not late, f"{partition}: handed over before {offset} was acknowledged, so it is repeated"
            self.source.log.acknowledge(partition, offset, epoch)
        self._send_dead_letters()
        return done


class World:
    """A pipeline among fakes. `service_s` and `delay_s` may be replaced at any time."""

    def __init__(self, log: Log, config: Config, metrics: Metrics | None = None) -> None:
        self.log = log
        self.limits = config.limits
        self.clock = VirtualClock()
        self.service_s: Callable[[], float] = lambda: 0.001
        self.delay_s: Callable[[], float] = lambda: 0.001
        self.worker = FakeWorker(config, self.clock, self._service_s)
        self.health = Health(clock=self.clock, stall_timeout_s=config.limits.stall_timeout_s)
        self.metrics = metrics or Metrics()
        self.source: FakeSource
        self.pipeline = Pipeline(
            config,
            self._make_source,
            self.worker,
            self._make_delivery,
            health=self.health,
            metrics=self.metrics,
            clock=self.clock,
            wall_clock_ms=self.clock.unix_ms,
        )
        self.source.patience_s = config.limits.drain_timeout_s / 2

    def steps(self, count: int = 1) -> None:
        for _ in range(count):
            self.pipeline.step()
            self.check()

    def check(self) -> None:
        held = self.worker.held_bytes + self._published_bytes()
        assert self.pipeline._held_bytes == held, f"{self.pipeline._held_bytes} bytes counted, {held} held"

    def check_bounds(self) -> None:
        """One frame may pass the limit of bytes, and what the worker has room for that of acknowledgements."""
        assert self.pipeline._held_bytes <= self.limits.max_in_flight_bytes + self.largest_frame
        room = (WAITING_BATCHES + 2) * self.worker.size
        assert self.worker.in_flight <= room, f"{self.worker.in_flight} frames in the worker"
        assert self.pipeline._delivery.outstanding <= self.limits.max_unacknowledged + room

    @property
    def largest_frame(self) -> int:
        lines = self.log.records.values()
        return max((len(source) + len(payload) for line in lines for _, source, payload in line), default=0)

    def _published_bytes(self) -> int:
        return self.publisher.held_bytes

    def _make_source(self, listener: RebalanceListener) -> FakeSource:
        self.source = FakeSource(self.log, self.clock, listener)
        return self.source

    def _make_delivery(self, source: SourceLike, offsets: OffsetTracker, judge: Judge) -> Delivery:
        self.publisher = FakePublisher(self.source, self.clock, self._delay_s)
        return AtLeastOnce(source, self.publisher, judge)

    def _service_s(self) -> float:
        return self.service_s()

    def _delay_s(self) -> float:
        return self.delay_s()
