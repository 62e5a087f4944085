"""Learns from a failed transaction how to write the next: other messages, smaller batches or shorter dead letters."""

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
    """Adjusts the limits of the topics after failed transactions.

    Args:
        limits: The limits of the topics. Changes by `learn` and `watch` apply from the next producer on.
    """

    def __init__(self, limits: TopicLimits) -> None:
        self._limits = limits
        # Partitions whose next outcome is a dead letter that a transaction, with no other outcome, could not write in
        # time.
        self._late: set[TopicPartition] = set()

    def committed(self, finished: Sequence[Finished]) -> None:
        """Record that a transaction with these outcomes succeeded. The state of other partitions does not change."""
        self._late -= {item.frame.receipt.partition for item in finished}

    def learn(self, publisher: Publisher, reports: Sequence[Report], failure: Exception) -> None:
        """Learn from refused messages, so that the next transaction writes them in another form.

        Args:
            publisher: The producer of the failed transaction.
            reports: Its delivery reports.
            failure: The error of the transaction.

        Raises:
            PublishError: There is no other form.
        """
        batches_lowered = False
        for pending, error in reports:
            if error is None or error.code() not in ADVICE:
                continue
            if error.code() in TOO_LARGE and pending.size < publisher.batch_bytes:
                # Another message of its batch may be too large, or only the batch as a whole.
                batches_lowered = batches_lowered or self._limits.refused_batch(publisher.batch_bytes)
                if batches_lowered:
                    continue
            if not publisher.learn(pending, error):
                raise publisher.refused(pending, error) from failure

    def watch(self, finished: Sequence[Finished], late_bytes: int) -> None:
        """Learn from a transaction that ran out of time.

        If the same dead letter, alone in its transaction, is late twice, dead letters are cut. Otherwise it would never
        be written. Transactions of other partitions may succeed in between.

        Args:
            finished: The outcomes of the transaction.
            late_bytes: Bytes of its messages that have no delivery report.
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
