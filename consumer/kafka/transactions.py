"""Transactions that hold outcomes and the input offsets below them: a `read_committed` reader sees each outcome once.

librdkafka leaves two things to us. A request to end a transaction that was sent twice can end a later one, because its
epoch lasts as long as the producer (it lacks KIP-890): so a producer whose transaction did not go smoothly is thrown
away, and the next one, with the same `transactional.id`, gets a new epoch and resolves what the old one left. And the
brokers check the membership in the group only if it is sent: see `Source.membership`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NoReturn, TypeVar

import confluent_kafka
import structlog
from confluent_kafka import KafkaException

from consumer.concurrency import Caller, Stop, StoppedError
from consumer.config import Config
from consumer.errors import KafkaError, PublishError, RefusedError, TransactionError, UnwritableError
from consumer.kafka.producer import Publisher, Report
from consumer.kafka.producer_errors import EXPELLED, FENCED, NO_TRANSACTIONS, TRANSACTION_ADVICE
from consumer.kafka.producer_settings import transactional_settings
from consumer.kafka.topic_limits import TopicLimits, number
from consumer.kafka.transaction_errors import RefusalHandling
from consumer.types import Acknowledged, Clock, Finished, ModelInfo

_log = structlog.get_logger(__name__)
_Code = confluent_kafka.KafkaError

T = TypeVar("T")

# The brokers that `sluice demo` starts answer every request of a transaction and show what was aborted.
EMBEDDED_CLUSTERS = "sluice-embedded-"
# At the start brokers may still be on their way; later, `ExactlyOnce.recover` counts the tries.
_START_S, _CONNECT_S = 30.0, 8.0
# Fenced twice within this, and not by the brokers, which do it to a transaction that outlasts its timeout: someone else
# uses the same ID. Once may be a restart of ourselves.
FENCED_AGAIN_S = 60.0

# What a call may take beyond the timeout that it was given, before it is left behind with its producer.
GRACE_S: Final = 1.0
# A commit with less time left than this is not sent: rolled back for certain is better than in doubt.
_COMMIT_S: Final = 0.5
# A transaction that had less time than this (in a revocation or a drain) does not show that the way is slow.
_LATE_S: Final = 5.0


class TransactionalPublisher:
    """Writes outcomes in transactions, one at a time. The thread that makes it owns it."""

    def __init__(
        self,
        config: Config,
        model: ModelInfo,
        *,
        clock: Clock,
        wall_clock_ms: Callable[[], int],
        limits: TopicLimits | None = None,
    ) -> None:
        """`limits`: default: nothing is known of the topics."""
        settings = transactional_settings(config)
        self._id = config.transactional_id
        topics = f"{config.output.topic} and {config.dead_letter.topic}"
        self._names = {"id": self._id, "group": config.kafka.group_id, "topics": topics}
        self._socket_s = number(settings, "socket.timeout.ms", "milliseconds") / 1000
        self._timeout_s = number(settings, "transaction.timeout.ms", "milliseconds") / 1000
        self._clock = clock
        limits = limits or TopicLimits((config.output.topic, config.dead_letter.topic), clock=clock)
        self._refusals = RefusalHandling(limits)  # what is learned of the topics outlives each producer
        made = partial(Publisher, config, model, clock=clock, wall_clock_ms=wall_clock_ms)
        self._make = partial(made, settings=settings, limits=limits)
        self._publisher, self._caller = self._make(), Caller("transactions")
        self._suspect = False
        self._fenced_at: float | None = None

    def start(self, stop: Stop) -> bool:
        """Before anything else. Waits for brokers for half a minute; False where `stop` is set meanwhile: drop it then.

        Raises KafkaError where the brokers do not let it begin, with what to do.
        """
        try:
            self._start(stop)
        except StoppedError:
            self._give_up()
            return False
        return True

    def transact(
        self,
        finished: Sequence[Finished],
        positions: Sequence[confluent_kafka.TopicPartition],
        membership: object,
        within_s: float,
    ) -> list[Acknowledged]:
        """Write these outcomes and commit these positions: all of it, or nothing.

        `finished`: in offset order within each partition; may be empty. `positions`: of `Source.commit_positions`,
        with those after the last outcome of each partition. `membership`: of `Source.membership`, from this turn.
        Blocks for `within_s` and a second at most. Raises TransactionError where it failed, or may have: unless it was
        rolled back, look up what is committed. KafkaError and PublishError where no repetition helps.
        """
        deadline = self._clock() + within_s
        if self._suspect:
            self._renew(within_s)
        # Half of the time is for the transaction itself: what does not pass in less says little of the way.
        if self._clock() >= deadline - max(_COMMIT_S, min(_LATE_S, within_s / 2)):
            raise TransactionError("no time was left to begin one", rolled_back=True)
        publisher, started = self._publisher, self._clock()
        committing = False
        try:
            publisher.client.poll(0)  # what happened between two transactions says nothing about this one
            errors = publisher.errors
            publisher.client.begin_transaction()
            publisher.publish(finished)
            send_offsets = partial(publisher.client.send_offsets_to_transaction, list(positions), membership)
            calm = self._call(partial(self._on_time, send_offsets), deadline)
            self._check_time(deadline)
            committing = True
            calm = self._call(publisher.client.commit_transaction, deadline) and calm
        except (KafkaException, PublishError) as error:
            self._suspect = True
            reports, undelivered = publisher.reports(), publisher.outstanding
            # librdkafka asks for the end of a transaction only once every message of it is reported as written.
            asked = committing and not undelivered and not any(refusal for _, refusal in reports)
            if undelivered and deadline - started >= _LATE_S:
                self._refusals.watch(finished, publisher.buffered_bytes)
            self._judge(error, reports, open_s=self._clock() - started, rolled_back=not asked)
        self._suspect = not calm or publisher.errors != errors or self._clock() - started >= self._socket_s
        self._refusals.committed(finished)
        return publisher.poll()

    def renew(self) -> None:
        """After a failure: a new producer, which resolves the transaction of the old one. Blocks for seconds.

        Raises TransactionError where the brokers do not answer: try again. KafkaError where no repetition helps.
        """
        if self._suspect:
            self._renew()

    def rest(self, timeout_s: float) -> None:
        """Wait, and serve what the client has to say."""
        with contextlib.suppress(KafkaException):  # the next transaction meets it too
            self._publisher.client.poll(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Close; between two transactions there is nothing to give up. False where it did not close in time."""
        return self._publisher.close(timeout_s)

    # The producer

    def _start(self, stop: Stop) -> None:
        deadline = self._clock() + _START_S
        connect = self._connect
        while True:
            try:
                connect(_CONNECT_S, stop)
            except TransactionError as error:
                if stop.is_set():
                    raise StoppedError from error
                self.rest(0.0)  # the library says why in there
                if (refusal := self._publisher.refusal) is not None:
                    advice = TRANSACTION_ADVICE.get(refusal.code(), "check ssl.ca.location in kafka.client")
                    raise RefusedError(
                        f"cannot begin transactions as {self._id!r}: {refusal.str()}; {advice}"
                    ) from error
                if self._clock() >= deadline:
                    raise KafkaError(f"cannot begin transactions as {self._id!r}: {error}") from error
                connect = self._renew
            else:
                break
        try:
            cluster = self._on_time(self._publisher.client.cluster_id, _CONNECT_S, stop)
        except KafkaException as error:
            raise KafkaError(f"cannot begin transactions as {self._id!r}: {error.args[0].str()}") from error
        if (cluster or "").startswith(EMBEDDED_CLUSTERS):
            raise RefusedError(f"the embedded broker shows what was aborted: {NO_TRANSACTIONS}")

    def _renew(self, within_s: float = _CONNECT_S, stop: Stop | None = None) -> None:
        _log.info("new producer", transactional_id=self._id)
        self._give_up()
        self._publisher, self._caller = self._make(), Caller("transactions")
        self._connect(within_s, stop)
        self._suspect = False

    def _give_up(self) -> None:
        """Its end may wait for brokers that are away, or behind a call that hangs, and nothing depends on it."""
        self._caller.end(partial(_drop, [self._publisher.release()]))

    def _connect(self, within_s: float, stop: Stop | None) -> None:
        try:
            self._on_time(self._publisher.client.init_transactions, min(_CONNECT_S, within_s), stop)
        except KafkaException as error:
            self._judge(error, [], open_s=0.0, rolled_back=True)

    # One call, and what its failure means

    def _call(self, call: Callable[[float], None], deadline: float) -> bool:
        """Make the call, and repeat it where it is retriable. False where it was: then a request may be sent twice."""
        calm = True
        while True:
            try:
                call(max(0.1, deadline - self._clock()))
            except KafkaException as error:
                if not error.args[0].retriable() or self._clock() >= deadline:
                    raise
                calm = False
                self.rest(0.05)
            else:
                return calm

    def _on_time(self, call: Callable[[float], T], timeout_s: float, stop: Stop | None = None) -> T:
        """For calls that may not keep their timeout. Not for all of them: each hop to a thread shows in the latency.

        `send_offsets_to_transaction` can block for ever when the group's coordinator goes away under it: librdkafka
        never looks at the time limit of a request to a coordinator (its issue 5456, open in 2.16).
        """
        try:
            return self._caller.call(partial(call, timeout_s), timeout_s + GRACE_S, stop)
        except TimeoutError as error:
            text = f"the client library did not come back {GRACE_S:g} s after its own timeout of {timeout_s:.1f} s"
            _log.warning("call hangs", error=text)
            raise _timed_out(text) from error

    def _check_time(self, deadline: float) -> None:
        if self._clock() >= deadline - _COMMIT_S:
            raise _timed_out("no time was left to commit")

    def _judge(
        self, failure: KafkaException | PublishError, reports: Sequence[Report], *, open_s: float, rolled_back: bool
    ) -> NoReturn:
        self._refusals.learn(self._publisher, reports, failure)
        codes = {error.code() for error in _errors(failure)} | {error.code() for _, error in reports if error}
        if (known := next(filter(TRANSACTION_ADVICE.get, codes), None)) is not None:
            unwritable = known == _Code.TOPIC_AUTHORIZATION_FAILED
            if isinstance(failure, PublishError) and unwritable:
                raise failure  # it says all that there is to say
            kind = UnwritableError if unwritable else RefusedError  # what was not written has its own exit code
            raise kind(f"{failure}; {TRANSACTION_ADVICE[known].format(**self._names)} ({self._id})") from failure
        if isinstance(failure, UnwritableError):
            raise failure  # the client refused it on the spot, for what no new producer changes
        if codes & FENCED:
            self._fenced(failure, open_s)
        expelled = bool(codes & EXPELLED)
        raise TransactionError(
            f"the transaction failed: {failure}", rolled_back=rolled_back, expelled=expelled
        ) from failure

    def _fenced(self, failure: Exception, open_s: float) -> None:
        if open_s >= self._timeout_s:  # the process was stopped, or starved
            _log.warning("transaction outlasted transaction.timeout.ms", open_s=round(open_s, 1))
            return
        before, self._fenced_at = self._fenced_at, self._clock()
        if before is not None and self._fenced_at - before < FENCED_AGAIN_S:
            raise RefusedError(
                f"another process writes with the transactional ID {self._id!r}: it has taken it over twice within "
                f"{FENCED_AGAIN_S:.0f} s. Give each process its own kafka.transactional_id"
            ) from failure


def _timed_out(text: str) -> KafkaException:
    return KafkaException(confluent_kafka.KafkaError(_Code._TIMED_OUT, text))  # noqa: SLF001


def _errors(failure: BaseException | None) -> Iterator[confluent_kafka.KafkaError]:
    """What librdkafka said, wherever in the chain."""
    while failure is not None:
        if isinstance(failure, KafkaException):
            yield failure.args[0]
        failure = failure.__cause__ or failure.__context__


def _drop(held: list[confluent_kafka.Producer]) -> None:
    """Let go of the only reference to a client, which ends it.

    Not `close`: that asks the brokers to abort the transaction, which the next producer resolves. The request may raise
    the epoch of the transactional ID once more, behind that of the next producer, and fence it.
    """
    with contextlib.suppress(KafkaException, SystemError):  # as in `Publisher.close`
        held[0].purge()
    held.clear()
