"""Commits of what was stored: one at a time, in the background; and one at the end that is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import confluent_kafka
import structlog
from confluent_kafka import KafkaException, TopicPartition

from consumer.source import group
from consumer.types import Clock

_log = structlog.get_logger(__name__)
_Code = confluent_kafka.KafkaError

# A synchronous commit is given up after this, so that neither a rebalance nor a shutdown hangs on it.
LAST_COMMIT_S = 5.0
_AGAIN_S = 0.1
# A commit that is not answered for longer is taken for lost. Longer than any timeout of the client.
_UNANSWERED_S = 120.0
# Answers of a coordinator while its group rebalances: it takes commits again once the client has joined anew, which it
# does in the background.
_REBALANCING = {_Code.REBALANCE_IN_PROGRESS, _Code.ILLEGAL_GENERATION, _Code.STALE_MEMBER_EPOCH}


class Commits:
    """`on_committed` is told the seconds since the first offset of a commit was stored; None where it was refused."""

    def __init__(self, every_s: float, clock: Clock, on_committed: Callable[[float | None], None]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._on_committed = on_committed
        self._stored_at: float | None = None  # when the first offset was stored that is not committed yet
        self._uncommitted = False  # something was stored since the last commit was sent, or that one has failed
        self._sent_at = clock()
        self._is_answered = True

    def store(self, client: confluent_kafka.Consumer, offsets: Sequence[TopicPartition]) -> None:
        """Hand these to the next commit."""
        if not offsets:
            return
        try:
            client.store_offsets(offsets=list(offsets))
        except KafkaException as error:
            # The assignment has gone and the callback that says so has not run yet; its new owner repeats.
            _log.warning("offsets not stored", error=group.text_of(error))
        else:
            self._uncommitted = True
            self._stored_at = self._clock() if self._stored_at is None else self._stored_at

    def send_due(self, client: confluent_kafka.Consumer) -> None:
        """Commit what is stored, in the background: once the interval has passed, and the commit before was answered.

        Never two at a time: librdkafka tries each again by itself while the coordinator is away, in no certain order,
        and an old one that arrives last takes the group back.
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

    def commit_now(self, client: confluent_kafka.Consumer, offsets: Sequence[TopicPartition]) -> None:
        """Commit these and wait for the answer, for `LAST_COMMIT_S` at most."""
        if not offsets:
            return
        given_up = threading.Event()

        def commit() -> None:
            while True:
                try:
                    client.commit(offsets=list(offsets), asynchronous=False)
                except KafkaException as error:
                    self._count(ok=False)
                    if error.args[0].code() in _REBALANCING:
                        if given_up.wait(_AGAIN_S):
                            return
                        continue
                    _log.warning("commit refused; these frames will be repeated", error=group.text_of(error))
                else:
                    self._count(ok=True)
                return

        # On a thread of its own, because without a coordinator the client waits for all of session.timeout.ms.
        committing = threading.Thread(target=commit, name="consumer-commit", daemon=True)
        committing.start()
        committing.join(LAST_COMMIT_S)
        if committing.is_alive():
            given_up.set()
            _log.warning("commit not taken in time; these frames may be repeated", waited_s=LAST_COMMIT_S)

    def answered(self, error: confluent_kafka.KafkaError | None, _partitions: list[TopicPartition]) -> None:
        """The callback of a commit in the background: it runs inside poll, and never raises."""
        self._is_answered = True
        if error is None:
            self._count(ok=True)
        elif error.code() != _Code._NO_OFFSET:  # noqa: SLF001 - the library's own name
            self._uncommitted = True
            _log.warning("commit failed; the next one makes up for it", error=error.name(), text=error.str())
            self._count(ok=False)

    def _count(self, *, ok: bool) -> None:
        stored_at = self._stored_at
        if not ok:
            self._on_committed(None)
        elif stored_at is not None:
            self._stored_at = None
            self._on_committed(self._clock() - stored_at)
