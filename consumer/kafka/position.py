"""Stores the read position of an assigned partition, and the leader epochs that its commits need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import confluent_kafka

from consumer.kafka.topic_ids import to_metadata
from consumer.types import TopicPartition

_UNKNOWN: Final = -1  # the client's value for an unknown leader epoch


@dataclass(slots=True)
class Position:
    """The read position of one partition during one epoch."""

    epoch: int
    start: int = confluent_kafka.OFFSET_INVALID  # first offset to read; if invalid, the client chooses
    first_offset: int | None = None  # offset of the first frame since the assignment; a rewind keeps it
    next_offset: int | None = None  # after the last frame, or after the end that the client reported
    timestamp_ms: int | None = None  # timestamp of the last record, Unix milliseconds
    floor: int = -1  # highest offset committed: at the assignment, or by our transactions since; a rewind keeps it
    topic_id: str = ""  # ID of the topic at the assignment; a rewind keeps it
    # (offset, leader epoch) of the records at which the leader epoch changed, rising. Commits drop entries below them.
    leader_epochs: list[tuple[int, int]] = field(default_factory=list)

    def age_s(self, now_ms: int) -> float | None:
        """Return the age of the last record in seconds. None if it has no timestamp, or no record was read yet."""
        return None if self.timestamp_ms is None else max(0.0, (now_ms - self.timestamp_ms) / 1000)

    def read(self, offset: int, timestamp_ms: int | None, leader_epoch: int | None) -> None:
        """Advance the position past a record that the client has returned."""
        if self.first_offset is None:
            self.first_offset = offset
        self.next_offset = offset + 1
        self.timestamp_ms = timestamp_ms
        epochs = self.leader_epochs
        if leader_epoch is not None and (not epochs or epochs[-1][1] != leader_epoch):
            epochs.append((offset, leader_epoch))

    def reached(self, end: int) -> bool:
        """Advance the position to `end`, up to which the client has read.

        Returns:
            Whether the position rose. If so, transaction markers or aborted records are directly below `end`.
        """
        at = self.start if self.next_offset is None else self.next_offset
        if end <= max(at, 0):
            return False
        self.next_offset = end
        if self.leader_epochs and self.leader_epochs[-1][1] != _UNKNOWN:
            self.leader_epochs.append((end - 1, _UNKNOWN))  # a marker may have a newer epoch than the last frame
        return True

    def commit_of(self, partition: TopicPartition, next_offset: int) -> confluent_kafka.TopicPartition:
        """Return `next_offset` in the form of a commit: with the topic ID and the leader epoch of the record before it.

        With the epoch, the next owner can detect that the log was cut below its start (KIP-320). The epoch of a marker
        or an aborted record is unknown, so it is left out. With an older epoch, the client would assume that the log
        was cut, although it is intact.
        """
        epochs = self.leader_epochs
        while len(epochs) > 1 and epochs[1][0] < next_offset:
            epochs.pop(0)
        known = bool(epochs) and epochs[0][0] < next_offset
        return confluent_kafka.TopicPartition(
            *partition, next_offset, to_metadata(self.topic_id), epochs[0][1] if known else _UNKNOWN
        )
