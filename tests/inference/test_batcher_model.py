"""With any schedule of offer, admit, take and discard, no frame is lost, repeated, or overtaken within its source."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consumer.config import BatchingConfig
from consumer.inference.batcher import Batcher
from consumer.types import Frame
from made_frames import P0, P1, P2, VirtualClock, frame

PARTITIONS = [P0, P1, P2]
SOURCES = ["a", "b", "c", "d"]


class BatcherMachine(RuleBasedStateMachine):
    """`slots` is the capacity of the open batch, also for the frames that remain after a batch was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.offset = 0
        self.waiting: list[Frame] = []
        self.open: list[Frame] = []
        self.left: list[Frame] = []  # taken or discarded
        self.slots = 0

    @initialize(
        policy=st.sampled_from(["dynamic", "window", "static"]),
        size=st.integers(1, 9),
        preferred=st.sets(st.integers(1, 9), max_size=3),
        limit=st.sampled_from([1024, 3000, 2**26]),
        age=st.sampled_from([None, 1000.0]),
    )
    def configure(self, policy: str, size: int, preferred: set[int], limit: int, age: float | None) -> None:
        self.config = BatchingConfig(
            policy=policy,  # type: ignore[arg-type]
            max_batch_size=size,
            preferred_batch_sizes=[n for n in preferred if n <= size],
            max_batch_bytes=limit,
            max_frame_age_ms=age,
        )
        self.batcher = Batcher(self.config, clock=self.clock, wall_clock_ms=self.clock.unix_ms)

    @rule(
        source_id=st.sampled_from(SOURCES),
        partition=st.sampled_from(PARTITIONS),
        count=st.integers(1, 12),
        size=st.sampled_from([0, 10, 400, 5000]),
    )
    def offer(self, source_id: str, partition: object, count: int, size: int) -> None:
        for _ in range(count):
            at = self.clock.now
            item = frame(
                self.offset,
                source_id,
                partition,
                payload=bytes(size),
                at=at,
                captured_at_ms=round(at * 1000),  # type: ignore[arg-type]
            )
            self.offset += 1
            self.batcher.offer(item)
            self.waiting.append(item)

    @rule()
    def admit(self) -> None:
        if not self.open and not self.slots:
            self.slots = self.config.max_batch_size
            self.batcher.reserve(self.slots)
        waiting_sources = {f.source_id for f in self.waiting}
        admitted = self.batcher.admit()
        for position, item in enumerate(admitted):
            first = next(f for f in self.waiting if f.source_id == item.source_id)
            assert item.receipt == first.receipt, "overtaken by a later frame of its source"
            self.waiting.remove(first)
            # Fair: a source has its second turn only after everyone who waits has had one.
            again = any(f.source_id == item.source_id for f in admitted[:position])
            if again:
                seen = {f.source_id for f in admitted[:position]}
                assert waiting_sources <= seen | {item.source_id}
        self.open += admitted
        if self.slots and not self.open:
            assert not self.waiting, "an empty batch takes at least one frame"

    @rule(more=st.integers(0, 9))
    def reserve(self, more: int) -> None:
        if self.open:
            self.slots = min(len(self.open) + more, self.config.max_batch_size)
            self.batcher.reserve(len(self.open) + more)

    @rule(
        idle=st.booleans(),
        draining=st.booleans(),
        after=st.sampled_from([0.0, 0.02, 5.0]),
        decoded=st.none() | st.integers(0, 9),
    )
    def take(self, idle: bool, draining: bool, after: float, decoded: int | None) -> None:
        self.clock.advance(after)
        decoded = None if decoded is None else min(decoded, len(self.open))
        due = self.batcher.due(idle=idle, draining=draining, decoded=decoded)
        whole = self.batcher.due(idle=idle, draining=draining)
        assert (due is None) == (whole is None), "whether a batch is due does not depend on what is decoded"
        if due is not None and whole is not None and due != whole:
            assert (due.closed_by, whole.closed_by) == ("idle_engine", "idle_engine")
            assert decoded is not None
            assert due.size <= decoded
            assert due.size * 3 >= whole.size * 2
        if self.open and draining:
            assert due is not None, "a drain waits for nobody"
        if due is None:
            assert len(self.open) < max(1, self.slots)
            return
        assert 1 <= due.size <= len(self.open)
        batch = self.batcher.take(due)
        assert list(batch.frames) == self.open[: due.size]
        encoded = sum(len(f.payload) for f in batch.frames)
        assert len(batch.frames) == 1 or encoded <= self.config.max_batch_bytes
        del self.open[: due.size]
        self.slots = len(self.open)
        self.left += batch.frames

    @rule(partitions=st.sets(st.sampled_from(PARTITIONS), min_size=1))
    def discard(self, partitions: set[object]) -> None:
        dropped = self.batcher.discard(partitions, overtaken=True)  # type: ignore[arg-type]
        assert {f.receipt for f in dropped} == {f.receipt for f in self.waiting if f.receipt.partition in partitions}
        self.waiting = [f for f in self.waiting if f.receipt.partition not in partitions]
        self.left += dropped

    @invariant()
    def every_frame_is_in_exactly_one_place(self) -> None:
        if not hasattr(self, "batcher"):
            return
        assert (self.batcher.waiting, self.batcher.open_size) == (len(self.waiting), len(self.open))
        assert len(self.open) <= max(self.slots, 0)
        known = sorted(f.receipt.offset for f in self.waiting + self.open + self.left)
        assert known == list(range(self.offset))


TestAnySchedule = BatcherMachine.TestCase
TestAnySchedule.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
