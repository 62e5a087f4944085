"""Commits stored offsets: one commit at a time in the background, and a synchronous one at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import confluent_kafka
import structlog
from confluent_kafka import KafkaException, TopicPartition

from consumer.concurrency import Caller
from consumer.kafka import group
from consumer.types import Clock

_log = structlog.get_logger(__name__)
_Code = confluent_kafka.KafkaError

# The time limit of a synchronous commit, so that neither a rebalance nor a shutdown hangs on it.
LAST_COMMIT_S = 5.0
_AGAIN_S = 0.1
_SPARE_S = 0.5  # reserved for the answer to the last try
# A commit without an answer for this long counts as lost. This is longer than any timeout of the client.
_UNANSWERED_S = 120.0
# Error codes of a coordinator while its group rebalances. It accepts commits again after the client has rejoined, which
# the client does in the background.
_REBALANCING = {_Code.REBALANCE_IN_PROGRESS, _Code.ILLEGAL_GENERATION, _Code.STALE_MEMBER_EPOCH}


class Commits:
    """The stored and unstored offsets of one consumer client, and its commits.

    Args:
        every_s: Seconds between two background commits.
        clock: Monotonic seconds.
        on_committed: Called after each commit with the seconds since its first offset was stored; None if the commit
            was refused.
    """

    def __init__(self, every_s: float, clock: Clock, on_committed: Callable[[float | None], None]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._on_committed = on_committed
        self._stored_at: float | None = None  # when the first of the uncommitted offsets was stored
        self._uncommitted = False  # an offset was stored after the last commit was sent, or that commit has failed
        self._sent_at = clock()
        self._is_answered = True
        self._withheld: set[tuple[str, int]] = set()

    def withhold(self, client: confluent_kafka.Consumer, partitions: Sequence[TopicPartition]) -> None:
        """Commit no more offsets of these partitions, not even when the client closes.

        Their offsets may belong to another log.
        """
        self._withheld |= {(item.topic, item.partition) for item in partitions}
        forgotten = [TopicPartition(item.topic, item.partition, confluent_kafka.OFFSET_INVALID) for item in partitions]
        for item in forgotten:  # one by one, so that a partition that is no longer assigned does not affect the others
            try:
                client.store_offsets(offsets=[item])
            except KafkaException as error:
                _log.debug("nothing stored", partition=f"{item.topic}[{item.partition}]", error=group.text_of(error))

    def store(self, client: confluent_kafka.Consumer, offsets: Sequence[TopicPartition]) -> None:
        """Store these offsets for the next commit."""
        offsets = self._allowed(offsets)
        if not offsets:
            return
        try:
            client.store_offsets(offsets=list(offsets))
        except KafkaException as error:
            # The partitions are no longer assigned, but the rebalance callback has not run yet. Their new owner repeats
            # these frames.
            _log.warning("offsets not stored", error=group.text_of(error))
        else:
            self._uncommitted = True
            self._stored_at = self._clock() if self._stored_at is None else self._stored_at

    def send_due(self, client: confluent_kafka.Consumer) -> None:
        """Start a background commit of the stored offsets if the interval has passed and the last commit was answered.

        There are never two commits at a time. While the coordinator is unavailable, librdkafka retries each commit on
        its own, in no certain order. An old commit that arrives last would move the group back.
        """
        if self._is_answered and not self._uncommitted:
            return
        waited_s = self._clock() - self._sent_at
        if waited_s < (self._every_s if self._is_answered else _UNANSWERED_S):
            return
        self._sent_at, self._is_answered, self._uncommitted = self._clock(), False, False
        try:
            client.commit(asynchronous=True)
        except KafkaException as error:
            self._is_answered = self._uncommitted = True
            _log.warning("commit not sent", error=group.text_of(error))

    def commit_now(self, client: confluent_kafka.Consumer, offsets: Sequence[TopicPartition], caller: Caller) -> None:
        """Commit these offsets and wait for the answer, up to `LAST_COMMIT_S`.

        A refusal or a missing answer is only logged.

        Args:
            client: The consumer client.
            offsets: The offsets to commit, with topic ID and leader epoch.
            caller: Runs the call, which may hang.
        """
        offsets = self._allowed(offsets)
        if not offsets:
            return
        try:
            refusal = caller.call(partial(_insist, client, list(offsets)), LAST_COMMIT_S)
        except TimeoutError:
            _log.warning("commit not answered in time; these frames may be repeated", waited_s=LAST_COMMIT_S)
            return
        self._count(ok=not refusal)
        if refusal:
            _log.warning("commit refused; these frames will be repeated", error=refusal)

    def answered(self, error: confluent_kafka.KafkaError | None, _partitions: list[TopicPartition]) -> None:
        """Handle the answer to a background commit. This callback runs inside poll, and never raises."""
        self._is_answered = True
        if error is None:
            self._count(ok=True)
        elif error.code() != _Code._NO_OFFSET:  # noqa: SLF001 - the library's own name
            self._uncommitted = True
            _log.warning("commit failed; the next one makes up for it", error=error.name(), text=error.str())
            self._count(ok=False)

    def _allowed(self, offsets: Sequence[TopicPartition]) -> list[TopicPartition]:
        return [item for item in offsets if (item.topic, item.partition) not in self._withheld]

    def _count(self, *, ok: bool) -> None:
        stored_at = self._stored_at
        if not ok:
            self._on_committed(None)
        elif stored_at is not None:
            self._stored_at = None
            self._on_committed(self._clock() - stored_at)


def _insist(client: confluent_kafka.Consumer, offsets: list[TopicPartition]) -> str:
    """Commit, and retry while the group is rebalancing.

    Returns:
        The reason of the refusal; "" if the commit was accepted.
    """
    until = time.monotonic() + LAST_COMMIT_S - _SPARE_S
    while True:
        # If the group is empty, brokers accept a commit from a consumer that is not a member. It could overwrite newer
        # commits of its successor.
        if group.is_expelled(client):
            return "this process is no member of its group any more"
        try:
            client.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in _REBALANCING or time.monotonic() >= until:
                return group.text_of(error)
            time.sleep(_AGAIN_S)
        else:
            return ""
