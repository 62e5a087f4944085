"""A world for the pipeline: a log, a group, an engine and brokers, in virtual time, with a history checker.

Everything that may go either way is decided by `Chance`, which reads a string of bytes: Hypothesis finds the string,
and shrinks it, because an empty one means that nothing unusual happens. Each promise is checked at the very call that
would break it, by an AssertionError out of that call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from consumer.batcher import WAITING_BATCHES, Batcher
from consumer.config import Config
from consumer.delivery import AtLeastOnce, Delivery, Judge, SourceLike
from consumer.errors import EngineError, PublishError
from consumer.health import Health
from consumer.metrics import Metrics
from consumer.offsets import Committable, OffsetTracker
from consumer.pipeline import Pipeline
from consumer.source import BURST, RebalanceListener
from consumer.types import (
    Acknowledged,
    BatchResult,
    Detected,
    DeviceMemory,
    Finished,
    Frame,
    Lag,
    Outcome,
    Receipt,
    Rejected,
    StageTimings,
    TopicPartition,
)
from made_frames import REJECTED, VirtualClock, detected, frame

T = TypeVar("T")
BAD = b"bad"  # how the payload of a frame begins that the engine rejects
UNPUBLISHABLE = b"nan"  # ... whose result the publisher cannot write


class Chance:
    """Decisions from bytes; when they run out, the first alternative of everything."""

    def __init__(self, entropy: bytes = b"") -> None:
        self._left = iter(entropy)

    def of(self, count: int) -> int:
        """One of 0 to `count` - 1."""
        return next(self._left, 0) % count

    def pick(self, options: Sequence[T]) -> T:
        return options[self.of(len(options))]


@dataclass
class Log:
    """What outlives a consumer: records, acknowledged outcomes, committed offsets."""

    records: dict[TopicPartition, list[tuple[int, str, bytes]]]  # offset, source, payload
    acknowledged: set[tuple[TopicPartition, int]] = field(default_factory=set)
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    resolve: Callable[[], None] = lambda: None  # what is in an open transaction becomes committed, or not
    _last: dict[tuple[TopicPartition, str], int] = field(default_factory=dict)  # the last offset first seen, by source
    _seen_in: dict[tuple[TopicPartition, int], set[int]] = field(default_factory=dict)  # offsets, by epoch

    def acknowledge(self, partition: TopicPartition, offset: int, epoch: int = 0) -> None:
        """A reader sees an outcome. One that drops repeats must see those of a source in the order of its frames."""
        self._seen_in.setdefault((partition, epoch), set()).add(offset)
        if (partition, offset) in self.acknowledged:
            return
        self.acknowledged.add((partition, offset))
        (source,) = [source for each, source, _ in self.records[partition] if each == offset]
        last = self._last.get((partition, source), -1)
        assert last < offset, f"{partition}: {source}: {offset} came after {last}"
        self._last[partition, source] = offset

    def check_nothing_is_repeated(self, owned: Mapping[TopicPartition, int]) -> None:
        """After a clean end of these epochs, what they wrote is committed: nobody has to write it again."""
        for partition, epoch in owned.items():
            committed = self.committed.get(partition, 0)
            repeated = sorted(o for o in self._seen_in.get((partition, epoch), ()) if o >= committed)
            assert not repeated, f"{partition}: a clean end at {committed} leaves {repeated} to be repeated"

    def append(self, partition: TopicPartition, source_id: str, payload: bytes, gap: int = 0) -> None:
        line = self.records[partition]
        line.append((line[-1][0] + 1 + gap if line else gap, source_id, payload))

    def check_commit(self, partition: TopicPartition, next_offset: int) -> None:
        ahead = [
            o for o, _, _ in self.records[partition] if o < next_offset and (partition, o) not in self.acknowledged
        ]
        assert not ahead, f"{partition}: {next_offset} committed, but {ahead} have no acknowledged outcome"
        assert next_offset >= self.committed.get(partition, 0), f"{partition}: the commit went back to {next_offset}"

    @property
    def finished(self) -> bool:
        """Every record has its outcome, and is committed."""
        return all(not line or self.committed.get(p, 0) == line[-1][0] + 1 for p, line in self.records.items())

    def check_complete(self) -> None:
        lost = [(p, o) for p, line in self.records.items() for o, _, _ in line if (p, o) not in self.acknowledged]
        assert not lost, f"no outcome: {lost}"
        assert self.finished, f"not committed to the end: {self.committed}"


class FakeSource:
    """As `source.Source`. `rebalances` come in the next polls, before the frame of that index in a burst."""

    def __init__(self, log: Log, clock: VirtualClock, listener: RebalanceListener) -> None:
        self.log, self.clock, self.listener = log, clock, listener
        self.owned: dict[TopicPartition, int] = {}  # with its epoch
        self.positions: dict[TopicPartition, int] = {}
        self.stored: dict[TopicPartition, int] = {}
        self.rebalances: list[tuple[int, Callable[[], None]]] = []
        self.paused = False
        self.subscribed = self.closed = False
        self.member = True
        self.rewind_fails: Callable[[], bool] = lambda: False
        self.longest_rebalance_s = 0.0
        self.patience_s = 0.0  # a revocation that took less was not cut short
        self.handed_over: set[tuple[TopicPartition, int]] = set()  # epochs that ended so
        self._epoch = 0
        self._failure: BaseException | None = None

    def subscribe(self) -> None:
        self.subscribed = True

    def poll(self, room: int, timeout_s: float, max_bytes: float = math.inf) -> list[Frame]:
        assert self.subscribed
        assert room > 0 or self.paused, "polled without room, so frames are prefetched that nobody can take"
        due, self.rebalances = self.rebalances, []
        frames: list[Frame] = []
        for index in range(min(max(room, 1), BURST)):
            for _, event in [item for item in due if item[0] == index]:
                event()
            if self._failure is not None or (item := self._next()) is None:
                break
            frames.append(item)
            max_bytes -= item.record.size_bytes
            if max_bytes < 0:
                break
        for _, event in [item for item in due if item[0] > len(frames)]:
            event()
        if self._failure is not None:
            raise self._failure
        if not frames:
            self.clock.advance(timeout_s)
        return frames

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def membership(self) -> object | None:
        return self._epoch if self.member else None

    def rewind(self) -> dict[TopicPartition, int] | None:
        if self.rewind_fails():
            return None
        self.paused = False
        for partition in self.owned:
            self._begin_epoch(partition)
        return dict(self.owned)

    def transacted(self, offsets: Iterable[Committable]) -> None:
        for partition, _ in offsets:
            assert partition in self.owned, f"committed for {partition}, which is not ours"

    def store(self, offsets: Iterable[Committable]) -> None:
        for partition, next_offset in offsets:
            assert partition in self.owned, f"stored for {partition}, which is not ours"
            self.log.check_commit(partition, next_offset)
            self.stored[partition] = next_offset

    def commit(self, offsets: Sequence[Committable]) -> None:
        self.store(offsets)
        self.commit_stored([partition for partition, _ in offsets])

    def lag(self) -> list[Lag]:
        return []

    def close(self, timeout_s: float) -> bool:
        assert not self.closed
        self.commit_stored()
        self.closed = True
        return True

    # What the group and the client library do

    def commit_stored(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        for partition in list(self.stored if partitions is None else partitions):
            if partition in self.stored:
                self.log.committed[partition] = max(self.log.committed.get(partition, 0), self.stored.pop(partition))

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        epochs = {partition: self._begin_epoch(partition) for partition in partitions}
        self._tell(lambda: self.listener.assigned(epochs))

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        before = self.clock.now
        self._tell(lambda: self.listener.revoked(partitions))
        took_s = self.clock.now - before
        self.longest_rebalance_s = max(self.longest_rebalance_s, took_s)
        self.commit_stored(partitions)
        if self._failure is None and took_s < self.patience_s:
            ended = {partition: self.owned[partition] for partition in partitions}
            self.log.check_nothing_is_repeated(ended)
            self.handed_over |= set(ended.items())
        self._end(partitions)

    def lose(self, partitions: Sequence[TopicPartition]) -> None:
        self._end(partitions)
        self._tell(lambda: self.listener.lost(partitions))

    def _begin_epoch(self, partition: TopicPartition) -> int:
        self._epoch += 1
        self.owned[partition] = self._epoch
        self.log.resolve()
        self.positions[partition] = self.log.committed.get(partition, 0)
        return self._epoch

    def _end(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self.owned.pop(partition, None)
            self.stored.pop(partition, None)

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again by poll, as Source does
            self._failure = error

    def _next(self) -> Frame | None:
        if self.paused:
            return None
        for partition, epoch in self.owned.items():
            for offset, source_id, payload in self.log.records[partition]:
                if offset >= self.positions[partition]:
                    self.positions[partition] = offset + 1
                    # The next poll looks at another partition first.
                    self.owned[partition] = self.owned.pop(partition)
                    return frame(offset, source_id, partition, epoch, payload=payload, at=self.clock.now)
        return None


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
        if not self.batcher.open_size:
            self.batcher.open(self.size)
        self.batcher.admit()
        due = self.batcher.due(idle=True, draining=self.draining) if self.busy is None else None
        if due is not None:
            batch = self.batcher.take(due)
            outcomes: list[Outcome] = [REJECTED if f.payload.startswith(BAD) else detected() for f in batch.frames]
            service_s = self.service_s()
            done = BatchResult(batch, outcomes, StageTimings(0.0, service_s * 1000), self.clock.now)
            self.busy = (self.clock.now, self.clock.now + service_s, done)


class FakePublisher:
    """Each source has a lane in which acknowledgements come in order; between lanes they do not. `fail` breaks one."""

    def __init__(self, source: FakeSource, clock: VirtualClock, delay_s: Callable[[], float]) -> None:
        self.source, self.clock, self.delay_s = source, clock, delay_s
        self.published: list[tuple[Frame, Outcome]] = []
        self.lanes: dict[str, list[tuple[float, Acknowledged]]] = {}
        self.held_bytes = 0
        self.fail = False
        self._seen: set[Receipt] = set()
        self._last: dict[tuple[str, TopicPartition, int], int] = {}

    @property
    def outstanding(self) -> int:
        return sum(map(len, self.lanes.values()))

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
        if isinstance(outcome, Detected) and item.payload.startswith(UNPUBLISHABLE):
            outcome = Rejected("publish", "unpublishable", "a number of the result is not finite")
        self.published.append((item, outcome))
        line = self.lanes.setdefault(item.source_id, [])
        line.append((self.clock.now + self.delay_s(), Acknowledged(item, outcome, self.clock.now)))
        self.held_bytes += item.record.size_bytes
        return outcome

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
            partition, offset, epoch = item.frame.receipt
            late = (partition, epoch) in self.source.handed_over
            assert not late, f"{partition}: handed over before {offset} was acknowledged, so it is repeated"
            self.source.log.acknowledge(partition, offset, epoch)
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
