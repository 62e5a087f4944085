"""Where reading of an assigned partition stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import confluent_kafka

from consumer.kafka.topic_ids import to_metadata
from consumer.types import TopicPartition

_UNKNOWN: Final = -1  # as the client writes it


@dataclass(slots=True)
class Position:
    """One partition during one epoch. Offsets; `timestamp_ms` is that of the last record, Unix milliseconds."""

    epoch: int
    start: int = confluent_kafka.OFFSET_INVALID  # where reading begins; invalid: where the client chooses
    first_offset: int | None = None  # of the first frame since the assignment; a rewind keeps it
    next_offset: int | None = None  # behind the last frame, or behind the end that the client reported
    timestamp_ms: int | None = None
    floor: int = -1  # what the group had committed at the assignment, or our transactions since; a rewind keeps it
    topic_id: str = ""  # of the topic that was assigned; a rewind keeps it
    # (offset, leader epoch) of the records at which the epoch changed, rising. What commits have passed is dropped.
    leader_epochs: list[tuple[int, int]] = field(default_factory=list)

    def age_s(self, now_ms: int) -> float | None:
        """Seconds since the timestamp of the last record. None: it had none, or there was no record yet."""
        return None if self.timestamp_ms is None else max(0.0, (now_ms - self.timestamp_ms) / 1000)

    def read(self, offset: int, timestamp_ms: int | None, leader_epoch: int | None) -> None:
        """A record was handed out."""
        if self.first_offset is None:
            self.first_offset = offset
        self.next_offset = offset + 1
        self.timestamp_ms = timestamp_ms
        epochs = self.leader_epochs
        if leader_epoch is not None and (not epochs or epochs[-1][1] != leader_epoch):
            epochs.append((offset, leader_epoch))

    def reached(self, end: int) -> bool:
        """The client has read up to `end`. Whether that is news: markers or aborted records lie before it."""
        at = self.start if self.next_offset is None else self.next_offset
        if end <= max(at, 0):
            return False
        self.next_offset = end
        if self.leader_epochs and self.leader_epochs[-1][1] != _UNKNOWN:
            self.leader_epochs.append((end - 1, _UNKNOWN))  # that of a marker may be newer than that of the last frame
        return True

    def commit_of(self, partition: TopicPartition, next_offset: int) -> confluent_kafka.TopicPartition:
        """`next_offset` as a commit carries it: with the topic ID, and the leader epoch of the record before it.

        The epoch lets the next owner notice that the log was cut below its start (KIP-320). Of a marker or an aborted
        record it is not known, and left out: with an older one the client takes the log for cut, although it is whole.
        """
        epochs = self.leader_epochs
        while len(epochs) > 1 and epochs[1][0] < next_offset:
            epochs.pop(0)
        known = bool(epochs) and epochs[0][0] < next_offset
        return confluent_kafka.TopicPartition(
            *partition, next_offset, to_metadata(self.topic_id), epochs[0][1] if known else _UNKNOWN
        )
