"""Seeded bugs of reading and committing: ends behind markers, topics that are created again, librdkafka's time-outs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import confluent_kafka

from consumer.delivery.offsets import OffsetTracker
from consumer.kafka import consumer as client
from consumer.kafka import producer as plain
from consumer.kafka.commits import Commits
from consumer.kafka.producer import Publisher
from consumer.kafka.producer_settings import producer_settings
from consumer.kafka.topic_ids import TopicIds
from consumer.types import Receipt
from patching import Bug, Patch, real_bug


def _ends_ignored() -> list[Patch]:
    """The watermark stays behind the last frame, below the markers that follow it."""
    return [Patch(OffsetTracker, "read_to", lambda self, receipt: None)]


def _end_is_done_when_it_is_read() -> list[Patch]:
    """The end of a partition is its watermark at once, although frames before it are in flight."""

    def read_to(self: OffsetTracker, receipt: Receipt) -> None:
        assignment = self._current(receipt)
        if assignment is not None and receipt.offset > assignment.read_to:
            assignment.read_to = assignment.watermark = receipt.offset

    return [Patch(OffsetTracker, "read_to", read_to)]


def _no_topic_watch() -> list[Patch]:
    """Nobody looks at the topic IDs while frames are read: reading goes on in the new topic, at the old offset."""
    return [Patch(TopicIds, "watch", lambda self, ids: None)]


def _old_offset_for_the_new_topic() -> list[Patch]:
    """The process ends with a last commit of the old topic's offset, and its successor starts there."""

    def start_offsets(
        committed: Sequence[confluent_kafka.TopicPartition], ids: Mapping[str, str], *, without_commit: int
    ) -> list[confluent_kafka.TopicPartition]:
        starts = [(each, each.offset if each.offset >= 0 else without_commit) for each in committed]
        return [confluent_kafka.TopicPartition(each.topic, each.partition, offset) for each, offset in starts]

    return [
        Patch(client, "start_offsets", start_offsets),
        Patch(Commits, "withhold", lambda self, consumer, partitions: None),
    ]


def _time_out_of_the_library() -> list[Patch]:
    """librdkafka gives old results up, and sends those behind them before the program hears of it."""
    return [
        Patch(plain, "plain_settings", producer_settings),
        Patch(Publisher, "_check_timeout", lambda self: None),
    ]


def _sent_again_after_a_time_out() -> list[Patch]:
    """A result that was given up is written again, behind those that followed it."""
    failed = Publisher._failed

    def again(self: Publisher, pending: Any, error: confluent_kafka.KafkaError) -> None:
        if error.code() != confluent_kafka.KafkaError._MSG_TIMED_OUT:
            failed(self, pending, error)
            return
        self.publish([_kept(self)[pending.frame.receipt]])

    publish = Publisher.publish

    def remember(self: Publisher, finished: Sequence[Any], *judge: Any) -> None:
        _kept(self).update({item.frame.receipt: item for item in finished})
        publish(self, finished, *judge)

    return [
        Patch(plain, "plain_settings", producer_settings),
        Patch(Publisher, "_check_timeout", lambda self: None),
        Patch(Publisher, "_failed", again),
        Patch(Publisher, "publish", remember),
    ]


def _kept(publisher: Publisher) -> dict[Receipt, Any]:
    """What the bug remembers of what was published."""
    kept: dict[Receipt, Any] = publisher.__dict__.setdefault("_kept_by_a_bug", {})
    return kept


SOURCE_BUGS: Mapping[str, Bug] = {
    "ends-ignored": Bug("the end is committed", "at_least_once", _ends_ignored, "records-deleted-marker"),
    "end-done-when-read": Bug(
        "committed after published", "at_least_once", _end_is_done_when_it_is_read, "input-in-transactions"
    ),
    # With the other protocol, the coordinator takes the partitions of a deleted topic away from the members.
    "no-topic-watch": real_bug("complete", "at_least_once", _no_topic_watch, "topic-remade-longer", protocol="classic"),
    "old-offset-for-the-new-topic": real_bug(
        "complete", "at_least_once", _old_offset_for_the_new_topic, "topic-remade"
    ),
    "time-out-of-the-library": real_bug("ordered", "at_least_once", _time_out_of_the_library, "outage-one-broker"),
    "sent-again-after-a-time-out": real_bug(
        "ordered", "at_least_once", _sent_again_after_a_time_out, "outage-one-broker"
    ),
}
