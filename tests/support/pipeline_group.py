"""A log and its group in virtual time: partitions come and go, offsets are committed, a history checker watches.

Everything that may go either way is decided by `Chance`, which reads a string of bytes: Hypothesis finds the string,
and shrinks it, because an empty one means that nothing unusual happens. Each promise is checked at the very call that
would break it, by an AssertionError out of that call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from consumer.delivery.offsets import Committable
from consumer.kafka.consumer import BURST
from consumer.kafka.rebalance_listener import RebalanceListener
from consumer.types import (
    Frame,
    Lag,
    Receipt,
    TopicPartition,
)
from made_frames import VirtualClock, frame

T = TypeVar("T")


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
    rejected: tuple[bytes, ...] = ()  # how payloads begin whose outcomes have an order of their own, in another topic
    resolve: Callable[[], None] = lambda: None  # what is in an open transaction becomes committed, or not
    markers: dict[TopicPartition, int] = field(
        default_factory=dict
    )  # offsets behind the last record that are no frames
    _last: dict[tuple[TopicPartition, str], int] = field(default_factory=dict)  # the last offset first seen, by source
    _seen_in: dict[tuple[TopicPartition, int], set[int]] = field(default_factory=dict)  # offsets, by epoch

    def acknowledge(self, partition: TopicPartition, offset: int, epoch: int = 0) -> None:
        """A reader sees an outcome. One that drops repeats must see those of a source in the order of its frames."""
        self._seen_in.setdefault((partition, epoch), set()).add(offset)
        if (partition, offset) in self.acknowledged:
            return
        self.acknowledged.add((partition, offset))
        ((_, source, payload),) = [record for record in self.records[partition] if record[0] == offset]
        if payload.startswith(self.rejected):
            source = f"dead letters of {source}"
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
        offset = self.end(partition) + gap
        self.markers.pop(partition, None)
        self.records[partition].append((offset, source_id, payload))

    def mark(self, partition: TopicPartition, count: int) -> None:
        """The markers of transactions, and what was aborted: offsets that no consumer ever receives."""
        self.markers[partition] = self.markers.get(partition, 0) + count

    def end(self, partition: TopicPartition) -> int:
        """The offset of what comes next."""
        line = self.records[partition]
        return (line[-1][0] + 1 if line else 0) + self.markers.get(partition, 0)

    def check_commit(self, partition: TopicPartition, next_offset: int) -> None:
        ahead = [
            o for o, _, _ in self.records[partition] if o < next_offset and (partition, o) not in self.acknowledged
        ]
        assert not ahead, f"{partition}: {next_offset} committed, but {ahead} have no acknowledged outcome"
        assert next_offset >= self.committed.get(partition, 0), f"{partition}: the commit went back to {next_offset}"

    @property
    def finished(self) -> bool:
        """Every record has its outcome, and the group has committed the end of each partition."""
        return all(self.committed.get(partition, 0) == self.end(partition) for partition in self.records)

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
        self._ends: list[Receipt] = []
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

    def ends(self) -> list[Receipt]:
        ends, self._ends = self._ends, []
        return ends

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

    def commit_positions(self, offsets: Iterable[Committable]) -> list[Committable]:
        return list(offsets)

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
        if self._failure is None and took_s < self.patience_s - 1e-6:  # the clock is a float
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
            if (end := self.log.end(partition)) > self.positions[partition]:
                self.positions[partition] = end
                self._ends.append(Receipt(partition, end, epoch))
        return None
