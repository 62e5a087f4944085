"""What a transaction that failed teaches for the next one: other messages, smaller batches, shorter dead letters."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from consumer.kafka.producer import Publisher, Report
from consumer.kafka.producer_errors import ADVICE, TOO_LARGE
from consumer.kafka.topic_limits import LADDER, TopicLimits
from consumer.messages import record_id
from consumer.types import Finished, TopicPartition

_log = structlog.get_logger(__name__)


class RefusalHandling:
    """`limits`: of the topics. What `learn` and `watch` change in them counts for the next producer."""

    def __init__(self, limits: TopicLimits) -> None:
        self._limits = limits
        # Partitions whose next outcome is a lone dead letter that a transaction could not write in time.
        self._late: set[TopicPartition] = set()

    def committed(self, finished: Sequence[Finished]) -> None:
        """A transaction with these outcomes succeeded. Other partitions stay late: each has its turns."""
        self._late -= {item.frame.receipt.partition for item in finished}

    def learn(self, publisher: Publisher, reports: Sequence[Report], failure: Exception) -> None:
        """From what the brokers refused: the next transaction writes it in another way.

        Raises PublishError if there is no other way.
        """
        batches_lowered = False
        for pending, error in reports:
            if error is None or error.code() not in ADVICE:
                continue
            if error.code() in TOO_LARGE and pending.size < publisher.batch_bytes:
                # Any message of its batch may be the large one, or all together.
                batches_lowered = batches_lowered or self._limits.refused_batch(publisher.batch_bytes)
                if batches_lowered:
                    continue
            if not publisher.learn(pending, error):
                raise publisher.refused(pending, error) from failure

    def watch(self, finished: Sequence[Finished], late_bytes: int) -> None:
        """From what was not written in time: a lone dead letter that is late twice is cut, or it never passes.

        Transactions of other partitions may succeed in between. `late_bytes`: of the messages without a report.
        """
        if len(finished) != 1 or late_bytes <= LADDER[-1]:
            return
        receipt = finished[0].frame.receipt
        if receipt.partition not in self._late:
            self._late.add(receipt.partition)
            return
        self._late.discard(receipt.partition)
        _log.warning(
            "a dead letter does not pass within a transaction; dead letters are cut for a while",
            id=record_id(receipt),
            bytes=late_bytes,
            cut_to=self._limits.too_slow(late_bytes),
        )
