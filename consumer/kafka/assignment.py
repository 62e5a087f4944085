"""Tracks the partitions that this process owns, with the read position and the epoch of each.

This module has no client and does no I/O.

Each assignment and each rewind gives a partition a new epoch, which is stamped on each frame. This is necessary because
a consumer that has lost its partitions does not know it until its next poll.
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
    """Positions and epochs of the partitions that are currently assigned."""

    def __init__(self) -> None:
        self._positions: dict[TopicPartition, Position] = {}
        self._known: dict[tuple[str, int], TopicPartition] = {}  # one object per partition, instead of one per frame
        self._ends: list[Receipt] = []
        self._last_epoch = 0

    def __bool__(self) -> bool:
        return bool(self._positions)

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._positions

    @property
    def partitions(self) -> list[confluent_kafka.TopicPartition]:
        """The assigned partitions, in the client library's form."""
        return [confluent_kafka.TopicPartition(*partition) for partition in self._positions]

    @property
    def topic_ids(self) -> dict[str, str]:
        """The known topic IDs of the assigned partitions by topic name, as they were at the assignment."""
        return {p.topic: position.topic_id for p, position in self._positions.items() if position.topic_id}

    def begin(self, start: confluent_kafka.TopicPartition, topic_id: str) -> tuple[TopicPartition, int]:
        """Add a partition that is read from `start.offset`.

        Args:
            start: The partition, its start offset and, if known, the leader epoch of that offset.
            topic_id: The ID of its topic; "" if it is not known.

        Returns:
            The partition and its new epoch.
        """
        partition = TopicPartition(start.topic, start.partition)
        self._known[partition] = partition
        position = self._positions[partition] = Position(self._next_epoch(), start=start.offset, topic_id=topic_id)
        position.floor = max(position.floor, start.offset)
        if start.leader_epoch is not None:
            position.leader_epochs.append((start.offset - 1, start.leader_epoch))
        return partition, position.epoch

    def new_epochs(self) -> dict[TopicPartition, int]:
        """Give every partition a new epoch, after a rewind to an earlier offset. Returns the epochs."""
        for partition, before in self._positions.items():
            position = self._positions[partition] = Position(self._next_epoch(), start=before.start)
            position.first_offset, position.floor = before.first_offset, before.floor
            position.topic_id = before.topic_id
            if before.next_offset is not None:  # it was not rewound, and the client does not report this end again
                position.next_offset = before.next_offset
                self._ends.append(Receipt(partition, before.next_offset, position.epoch))
        return {partition: position.epoch for partition, position in self._positions.items()}

    def end(self, partitions: Iterable[TopicPartition]) -> None:
        """Remove partitions that this process no longer owns."""
        for partition in partitions:
            self._positions.pop(partition, None)

    def frame(self, message: Any, received_at: float) -> Frame:  # Any: the stubs make every part of a message optional
        """Convert a record that the client has returned to a frame, and advance the position of its partition.

        Args:
            message: The client library's message, without an error.
            received_at: Seconds on the clock of the consumer.

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
        """Record that the client has returned every record of the partition below `end`."""
        position = self._positions.get(partition)
        if position is not None and position.reached(end):
            self._ends.append(Receipt(partition, end, position.epoch))

    def take_ends(self) -> list[Receipt]:
        """Return the ends, reached since the last call, that follow markers or aborted records. See `Source.ends`."""
        ends, self._ends = self._ends, []
        return ends

    def topic_id(self, partition: TopicPartition) -> str:
        """Return the ID that the topic had when the partition was assigned; "" if it is not known."""
        position = self._positions.get(partition)
        return position.topic_id if position is not None else ""

    def commit_positions(self, offsets: Iterable[Committable]) -> list[confluent_kafka.TopicPartition]:
        """Return these offsets in the form of a commit, without partitions that are not assigned.

        See `Position.commit_of`.
        """
        return [
            position.commit_of(partition, next_offset)
            for partition, next_offset in offsets
            if (position := self._positions.get(partition)) is not None
        ]

    def mark_committed(self, offsets: Iterable[Committable]) -> None:
        """Record that a transaction has committed these offsets. A rewind never goes below them."""
        for partition, next_offset in offsets:
            if (position := self._positions.get(partition)) is not None:
                position.floor = max(position.floor, next_offset)

    def rewound(
        self, committed: confluent_kafka.TopicPartition, seek: Callable[[confluent_kafka.TopicPartition], None]
    ) -> int:
        """Move one partition back to the group's committed offset, but never below the offsets of our transactions.

        The partition goes back to the start of this assignment if it has no committed offset, or only one for an
        earlier topic of this name.

        Args:
            committed: The partition with its committed offset and the metadata of the commit.
            seek: Moves the client to an offset.

        Returns:
            The offset at which reading continues.
        """
        position = self._positions[TopicPartition(committed.topic, committed.partition)]
        of_another = is_another(from_metadata(committed.metadata), position.topic_id)
        offset = max(-1 if of_another else committed.offset, position.floor)
        if offset < 0:
            if position.first_offset is None:  # no frame was read, so the position is still the start
                return position.start
            offset = position.first_offset
        seek(confluent_kafka.TopicPartition(committed.topic, committed.partition, offset))
        position.start = offset
        position.next_offset = None  # lower offsets are valid from now on, even if the seek of another partition fails
        return offset

    def lag(self, watermarks: Callable[[confluent_kafka.TopicPartition], tuple[int, int]], now_ms: int) -> list[Lag]:
        """Return how far each partition is behind; see `Source.lag`.

        Args:
            watermarks: Returns the first offset of a partition and the one after the last; negative if not known.
            now_ms: Unix milliseconds.
        """
        behind = []
        for partition, position in self._positions.items():
            low, high = watermarks(confluent_kafka.TopicPartition(*partition))
            at = position.start if position.next_offset is None else position.next_offset
            if at == confluent_kafka.OFFSET_BEGINNING:
                at = low
            if min(at, high) < 0:  # librdkafka does not know these offsets yet
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
    """Return the partitions to assign: each with its committed offset and the leader epoch of that offset.

    If a topic was deleted and created again after a commit, that commit is not valid for the new topic. The partition
    then starts at its beginning. A commit without a topic ID (an older version, a manual reset) is used as it is.

    Args:
        committed: The committed offsets of the group; negative if there is none.
        ids: The current topic IDs, by topic name.
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
