"""The partitions that this process holds: where reading of each stands, and under which epoch. No client, no I/O.

Each assignment and each rewind gives a partition a new epoch, which is stamped on each frame, because a consumer that
has lost its partitions does not know it until its next poll.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import confluent_kafka
import structlog

from consumer.delivery.offsets import Committable
from consumer.errors import TopicReplacedError
from consumer.kafka.position import Position
from consumer.kafka.topic_ids import from_metadata, is_another
from consumer.messages import parse_frame, read_record
from consumer.types import Frame, Lag, Receipt, TopicPartition

_log = structlog.get_logger(__name__)


class Assignment:
    """Positions and epochs of the partitions that are assigned now."""

    def __init__(self) -> None:
        self._positions: dict[TopicPartition, Position] = {}
        self._known: dict[tuple[str, int], TopicPartition] = {}  # one object a partition, not one a frame
        self._ends: list[Receipt] = []
        self._last_epoch = 0

    def __bool__(self) -> bool:
        return bool(self._positions)

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._positions

    @property
    def partitions(self) -> list[confluent_kafka.TopicPartition]:
        """What is assigned, as the client library takes it."""
        return [confluent_kafka.TopicPartition(*partition) for partition in self._positions]

    @property
    def topic_ids(self) -> dict[str, str]:
        """The IDs that the topics of these partitions had when they were assigned, if they are known."""
        return {p.topic: position.topic_id for p, position in self._positions.items() if position.topic_id}

    def begin(self, start: confluent_kafka.TopicPartition, topic_id: str) -> tuple[TopicPartition, int]:
        """A partition is assigned, and is read from `start.offset`. Returns it with its new epoch."""
        partition = TopicPartition(start.topic, start.partition)
        self._known[partition] = partition
        position = self._positions[partition] = Position(self._next_epoch(), start=start.offset, topic_id=topic_id)
        position.floor = max(position.floor, start.offset)
        if start.leader_epoch is not None:
            position.leader_epochs.append((start.offset - 1, start.leader_epoch))
        return partition, position.epoch

    def new_epochs(self) -> dict[TopicPartition, int]:
        """All partitions are read again from an earlier offset, in new epochs."""
        for partition, before in self._positions.items():
            position = self._positions[partition] = Position(self._next_epoch(), start=before.start)
            position.first_offset, position.floor = before.first_offset, before.floor
            position.topic_id = before.topic_id
            if before.next_offset is not None:  # it did not go back; the client does not report this end again
                position.next_offset = before.next_offset
                self._ends.append(Receipt(partition, before.next_offset, position.epoch))
        return {partition: position.epoch for partition, position in self._positions.items()}

    def end(self, partitions: Iterable[TopicPartition]) -> None:
        """They are ours no more."""
        for partition in partitions:
            self._positions.pop(partition, None)

    def frame(self, message: Any, received_at: float) -> Frame:  # Any: the stubs make every part of a message optional
        """A record that the client has handed out, as a frame.

        Raises:
            TopicReplacedError: The offsets of the partition went back.
        """
        partition = self._known[message.topic(), message.partition()]
        position = self._positions[partition]
        offset, record = message.offset(), read_record(message)
        if position.next_offset is not None and offset < position.next_offset:
            raise TopicReplacedError(
                f"the offsets of {partition} went back from {position.next_offset} to {offset}: the log was cut, or "
                "the topic was created again. A restart reads it from there",
                partition.topic,
            )
        position.read(offset, record.timestamp_ms, message.leader_epoch())
        return parse_frame(record, Receipt(partition, offset, position.epoch), received_at)

    def reached(self, partition: TopicPartition, end: int) -> None:
        """The client has handed out every record of the partition below `end`."""
        position = self._positions.get(partition)
        if position is not None and position.reached(end):
            self._ends.append(Receipt(partition, end, position.epoch))

    def take_ends(self) -> list[Receipt]:
        """Ends that lie behind markers or aborted records, since the last call; see `Source.ends`."""
        ends, self._ends = self._ends, []
        return ends

    def topic_id(self, partition: TopicPartition) -> str:
        """The ID of its topic when it was assigned; "" if that is not known."""
        position = self._positions.get(partition)
        return position.topic_id if position is not None else ""

    def commit_positions(self, offsets: Iterable[Committable]) -> list[confluent_kafka.TopicPartition]:
        """These offsets as a commit carries them; see `Position.commit_of`."""
        return [
            position.commit_of(partition, next_offset)
            for partition, next_offset in offsets
            if (position := self._positions.get(partition)) is not None
        ]

    def mark_committed(self, offsets: Iterable[Committable]) -> None:
        """A transaction has committed these: a rewind never goes below them."""
        for partition, next_offset in offsets:
            if (position := self._positions.get(partition)) is not None:
                position.floor = max(position.floor, next_offset)

    def rewound(
        self, committed: confluent_kafka.TopicPartition, seek: Callable[[confluent_kafka.TopicPartition], None]
    ) -> int:
        """Go back to what the group has committed, but not below what our transactions have. Returns where that is.

        If nothing was committed yet, or only for an earlier topic of this name, that is where this assignment began.
        """
        position = self._positions[TopicPartition(committed.topic, committed.partition)]
        of_another = is_another(from_metadata(committed.metadata), position.topic_id)
        offset = max(-1 if of_another else committed.offset, position.floor)
        if offset < 0:
            if position.first_offset is None:  # no frame was read: there is nothing to go back from
                return position.start
            offset = position.first_offset
        seek(confluent_kafka.TopicPartition(committed.topic, committed.partition, offset))
        position.start = offset
        position.next_offset = None  # it may go back now, even if the seek of another partition fails
        return offset

    def lag(self, watermarks: Callable[[confluent_kafka.TopicPartition], tuple[int, int]], now_ms: int) -> list[Lag]:
        """See `Source.lag`. `watermarks`: the first offset and the one behind the last, negative if not known."""
        behind = []
        for partition, position in self._positions.items():
            low, high = watermarks(confluent_kafka.TopicPartition(*partition))
            at = position.start if position.next_offset is None else position.next_offset
            if at == confluent_kafka.OFFSET_BEGINNING:
                at = low
            if min(at, high) < 0:  # librdkafka does not know them yet
                continue
            records = max(0, high - at)
            behind.append(Lag(partition, records, position.age_s(now_ms) if records else 0.0))
        return behind

    def _next_epoch(self) -> int:
        self._last_epoch += 1
        return self._last_epoch


def start_offsets(
    committed: Sequence[confluent_kafka.TopicPartition], ids: Mapping[str, str], *, without_commit: int
) -> list[confluent_kafka.TopicPartition]:
    """What to assign: the committed offset of each partition, with its leader epoch.

    A commit for a topic that was deleted and created again since says nothing about the new one: that partition starts
    at its beginning. A commit without a topic ID (an older version, a reset by hand) is taken as it is.

    Args:
        committed: What the group has committed; a negative offset if it has nothing.
        ids: The topic IDs of today, by topic name.
        without_commit: The logical offset for a partition that has no committed offset.
    """
    starts = []
    for item in committed:
        offset, leader_epoch = item.offset, -1 if item.leader_epoch is None else item.leader_epoch
        before, now = from_metadata(item.metadata), ids.get(item.topic, "")
        if offset < 0:
            offset, leader_epoch = without_commit, -1
        elif is_another(before, now):
            _log.warning(
                "the topic was created again since its offsets were committed; it is read from its beginning",
                partition=f"{item.topic}[{item.partition}]",
                committed=offset,
                topic_id=now,
                committed_for=before,
            )
            offset, leader_epoch = confluent_kafka.OFFSET_BEGINNING, -1
        starts.append(confluent_kafka.TopicPartition(item.topic, item.partition, offset, "", leader_epoch))
    return starts
