"""Writes outcomes and the input offsets below them in transactions, so that a reader sees each outcome exactly once.

The reader must use `read_committed`. librdkafka leaves two problems to this module:

- If a request to end a transaction is sent twice, it can end a later transaction. The reason is that the epoch lasts as
  long as the producer, because librdkafka lacks KIP-890. So a producer is replaced after any problem in a transaction.
  The next one, with the same `transactional.id`, gets a new epoch and resolves the open transaction of the old one.
- The brokers check the group membership only if the transaction sends it: see `Source.membership`.
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

# Prefix of the cluster ID of the brokers that `sluice demo` starts. They accept every request of a transaction, but
# readers see aborted messages.
EMBEDDED_CLUSTERS = "sluice-embedded-"
# At the start, brokers may still be starting too. Later, `ExactlyOnce.recover` limits the retries.
_START_S, _CONNECT_S = 30.0, 8.0
# If this producer is fenced twice within this time, another process uses the same ID. A single time may be our own
# restart. Fencing by the brokers, after a transaction exceeded its timeout, does not count.
FENCED_AGAIN_S = 60.0

# How long a call may exceed its own timeout before it is abandoned together with its producer.
GRACE_S: Final = 1.0
# With less time left than this, no commit is sent: a certain rollback is better than an unknown result.
_COMMIT_S: Final = 0.5
# A transaction with less time than this (in a revocation or a drain) does not prove that the connection is slow.
_LATE_S: Final = 5.0


class TransactionalPublisher:
    """Writes outcomes in transactions, one at a time. The thread that creates it owns it."""

    def __init__(
        self,
        config: Config,
        model: ModelInfo,
        *,
        clock: Clock,
        wall_clock_ms: Callable[[], int],
        limits: TopicLimits | None = None,
    ) -> None:
        """Create the first producer.

        Args:
            config: All options.
            model: Named in each result.
            clock: Monotonic seconds.
            wall_clock_ms: Unix milliseconds.
            limits: The limits of the topics. Default: unknown limits.

        Raises:
            RefusedError: librdkafka refuses a setting of the producer.
        """
        settings = transactional_settings(config)
        self._id = config.transactional_id
        topics = f"{config.output.topic} and {config.dead_letter.topic}"
        self._names = {"id": self._id, "group": config.kafka.group_id, "topics": topics}
        self._socket_s = number(settings, "socket.timeout.ms", "milliseconds") / 1000
        self._timeout_s = number(settings, "transaction.timeout.ms", "milliseconds") / 1000
        self._clock = clock
        limits = limits or TopicLimits((config.output.topic, config.dead_letter.topic), clock=clock)
        self._refusals = RefusalHandling(limits)  # learned limits outlive each producer
        made = partial(Publisher, config, model, clock=clock, wall_clock_ms=wall_clock_ms)
        self._make = partial(made, settings=settings, limits=limits)
        self._publisher, self._caller = self._make(), Caller("transactions")
        self._suspect = False
        self._fenced_at: float | None = None

    def start(self, stop: Stop) -> bool:
        """Connect and resolve the transaction of an earlier process. Call this before any other method.

        Blocks up to about half a minute while brokers are unavailable.

        Returns:
            Whether transactions can begin. False if `stop` was set meanwhile: do not use this object then.

        Raises:
            KafkaError: The brokers do not allow transactions. The message contains advice.
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
        """Write these outcomes and commit these positions: all or nothing. Blocks up to `within_s` plus 1 s.

        Args:
            finished: Outcomes in offset order within each partition. May be empty.
            positions: From `Source.commit_positions`, including the position after the last outcome of each partition.
            membership: From `Source.membership`, in the same iteration of the loop.
            within_s: Seconds for the whole transaction, including a new producer if one is necessary.

        Returns:
            All outcomes of `finished`. They are committed.

        Raises:
            TransactionError: The transaction failed or may have failed. If its `rolled_back` is False, look up the
                committed offsets.
            KafkaError: No retry helps. This includes PublishError.
        """
        deadline = self._clock() + within_s
        if self._suspect:
            self._renew(within_s)
        # At least half of the time is for the transaction itself. With less, a timeout would not prove that the
        # connection is slow.
        if self._clock() >= deadline - max(_COMMIT_S, min(_LATE_S, within_s / 2)):
            raise TransactionError("no time was left to begin one", rolled_back=True)
        publisher, started = self._publisher, self._clock()
        committing = False
        try:
            publisher.client.poll(0)  # serve earlier events first, because they do not concern this transaction
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
            # librdkafka sends the commit only after every message of the transaction was reported as written.
            asked = committing and not undelivered and not any(refusal for _, refusal in reports)
            if undelivered and deadline - started >= _LATE_S:
                self._refusals.watch(finished, publisher.buffered_bytes)
            self._judge(error, reports, open_s=self._clock() - started, rolled_back=not asked)
        self._suspect = not calm or publisher.errors != errors or self._clock() - started >= self._socket_s
        self._refusals.committed(finished)
        return publisher.poll()

    def renew(self) -> None:
        """Replace the producer after a failure. The new one resolves the transaction of the old one.

        Blocks for seconds. Does nothing if the last transaction had no problem.

        Raises:
            TransactionError: The brokers do not answer. Try again.
            KafkaError: No retry helps.
        """
        if self._suspect:
            self._renew()

    def rest(self, timeout_s: float) -> None:
        """Wait up to `timeout_s`, and serve the events of the client meanwhile."""
        with contextlib.suppress(KafkaException):  # the next transaction raises the same error
            self._publisher.client.poll(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Close the producer. Nothing is lost, because no transaction is open between two calls.

        Returns:
            Whether it closed in time.
        """
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
                self.rest(0.0)  # the library reports the reason through a callback, which runs in here
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
        """Abandon the producer. Its end runs on the other thread, and nothing waits for it.

        The end may block while brokers are unavailable, or wait for an earlier call that hangs.
        """
        self._caller.end(partial(_drop, [self._publisher.release()]))

    def _connect(self, within_s: float, stop: Stop | None) -> None:
        try:
            self._on_time(self._publisher.client.init_transactions, min(_CONNECT_S, within_s), stop)
        except KafkaException as error:
            self._judge(error, [], open_s=0.0, rolled_back=True)

    # Single calls, and the handling of their failures

    def _call(self, call: Callable[[float], None], deadline: float) -> bool:
        """Run the call, and retry it after each retriable error until the deadline.

        Returns:
            Whether the first try succeeded. If not, a request may have been sent twice.
        """
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
        """Run a call that may exceed its own timeout on another thread, and limit its duration.

        Not every call runs this way, because each switch to another thread adds latency. It is necessary for
        `send_offsets_to_transaction`, which can block indefinitely if the group coordinator becomes unavailable during
        the call. librdkafka ignores the timeout of a request to a coordinator (its issue 5456, open in 2.16).
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
                raise failure  # its message is already complete
            # An outcome that cannot be written has an exit code of its own.
            kind = UnwritableError if unwritable else RefusedError
            raise kind(f"{failure}; {TRANSACTION_ADVICE[known].format(**self._names)} ({self._id})") from failure
        if isinstance(failure, UnwritableError):
            raise failure  # the client refused the message locally, and a new producer would refuse it too
        if codes & FENCED:
            self._fenced(failure, open_s)
        expelled = bool(codes & EXPELLED)
        raise TransactionError(
            f"the transaction failed: {failure}", rolled_back=rolled_back, expelled=expelled
        ) from failure

    def _fenced(self, failure: Exception, open_s: float) -> None:
        if open_s >= self._timeout_s:  # the process was suspended, or had no CPU time
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
    """Iterate over the librdkafka errors in the exception chain."""
    while failure is not None:
        if isinstance(failure, KafkaException):
            yield failure.args[0]
        failure = failure.__cause__ or failure.__context__


def _drop(held: list[confluent_kafka.Producer]) -> None:
    """Drop the only reference to a client, which ends the client.

    `close` must not be used here, because it asks the brokers to abort the transaction. The next producer resolves that
    transaction. The abort request may raise the epoch of the transactional ID after the next producer has started, and
    fence it.

    Args:
        held: A list whose only element is the client.
    """
    with contextlib.suppress(KafkaException, SystemError):  # for SystemError, see `Publisher.close`
        held[0].purge()
    held.clear()
