"""Sends results, skipped outcomes and dead letters with one producer, and receives their delivery reports.

An outcome counts only when its own delivery report confirms it; `flush` proves nothing. The producer is idempotent, so
outcomes of one source, which share a partition, arrive in the order in which they were published.

The brokers may refuse a message for its size. If the limits of the topics are known (`limits`), this happens only after
a limit was lowered. Then the producer stops, so that no later message overtakes the refused one, and a restart learns
the new limit. If the limits are unknown, the message becomes a smaller dead letter. This dead letter may arrive after
later dead letters of its source.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import confluent_kafka
import structlog
from confluent_kafka import KafkaException

from consumer.config import Config
from consumer.errors import OwnershipError, PublishError, RefusedError, UnwritableError
from consumer.kafka.dead_letter_fitting import DeadLetters, Pending
from consumer.kafka.dead_letter_queue import LetterLine
from consumer.kafka.producer_errors import (
    ADVICE,
    LASTING,
    TOO_LARGE,
    UNTRUSTED,
    became_compacted,
    lowered_limit,
    refusal,
    text_of,
)
from consumer.kafka.producer_settings import delivery_timeout_s, plain_settings
from consumer.kafka.result_fitting import Results, unpublishable
from consumer.kafka.topic_limits import TopicLimits, compresses, fitted
from consumer.messages import Message, record_id
from consumer.types import Acknowledged, Clock, Finished, Frame, ModelInfo, Outcome, Rejected, TopicPartition

_log = structlog.get_logger(__name__)
# Number of results that are encoded before the first is sent. This covers several batches, and takes little memory
# compared with the messages that librdkafka may hold.
_TOGETHER = 256
# How long the local queue of librdkafka may refuse a message because it is full. `limits.max_unacknowledged` bounds the
# messages in it, so it is never full unless the user has made it small.
_QUEUE_FULL_S = 30.0
# How long to wait, after a fatal error, for the delivery report that explains it.
_REPORT_S = 1.0
# Dead letters wait while the messages in the client library have more bytes than this. With transactions this limit is
# off, because each transaction has its own.
MOST_BUFFERED_BYTES = 32 * 2**20


Report = tuple[Pending, confluent_kafka.KafkaError | None]


def _no_judge(_frame: Frame, _outcome: Outcome) -> None:
    """Does nothing. With transactions, outcomes are judged after the commit."""


class Publisher:
    """Writes one message per outcome.

    The thread that creates it owns it. On another thread, `publish`, `poll`, `forget` and `close` raise OwnershipError.
    """

    def __init__(
        self,
        config: Config,
        model: ModelInfo,
        *,
        clock: Clock,
        wall_clock_ms: Callable[[], int],
        settings: Mapping[str, Any] | None = None,
        limits: TopicLimits | None = None,
    ) -> None:
        """Create the producer. Its batches are made small enough for the topics, unless the user sets batch.size.

        Args:
            config: All options.
            model: Named in each result.
            clock: Monotonic seconds.
            wall_clock_ms: Unix milliseconds.
            settings: librdkafka settings, with which librdkafka enforces `delivery.timeout.ms` itself. Default:
                `plain_settings`, with which this class enforces it.
            limits: The limits of the topics. Default: unknown limits.

        Raises:
            RefusedError: librdkafka refuses a setting of the producer.
        """
        self.errors = 0  # number of calls of librdkafka's error callback
        self.refusal: confluent_kafka.KafkaError | None = None  # the last error in the callback that is permanent
        self._owner = threading.get_ident()
        self._topic = config.output.topic
        source = f"/sluice/{config.kafka.group_id}"
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        timed = settings is None
        self._timeout_s = delivery_timeout_s(config) if timed else math.inf
        self._limits = limits or TopicLimits((self._topic, config.dead_letter.topic), clock=clock)
        self._letters = DeadLetters(config.dead_letter.topic, source, self._limits, wall_clock_ms)
        settings = dict(plain_settings(config) if settings is None else settings)
        self._own_batches = "batch.size" not in settings
        settings = fitted(settings, self._limits)
        self._advertised = self._limits.advertised
        if timed and self._advertised and not compresses(settings):
            # With this setting, a refusal stops the producer before it sends the following batches. If the limits are
            # known, a refusal occurs only when a limit has changed, and a restart learns the new one. This does not
            # hold with compression, because the limits apply to compressed sizes, which are not known in advance.
            settings = {"enable.gapless.guarantee": True} | settings
        self._gapless = str(settings.get("enable.gapless.guarantee", False)).lower() == "true"
        self._results = Results(config, model, source, self._limits, settings)
        self.batch_bytes = int(settings["batch.size"])
        self._line = LetterLine(MOST_BUFFERED_BYTES if timed else math.inf)
        self._outstanding = 0
        self._buffered = 0
        self._numbers = itertools.count()
        self._unreported: dict[int, tuple[float, Pending]] = {}  # by message number, in the order of sending
        self._reports: list[Report] = []
        try:
            self._client = confluent_kafka.Producer(
                {**settings, "error_cb": self._on_error},
                logger=logging.getLogger("librdkafka.producer"),
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise RefusedError(f"kafka.producer: {text_of(error)}") from error

    @property
    def client(self) -> confluent_kafka.Producer:
        """The librdkafka producer, for the transactions around the published messages."""
        return self._client

    def release(self) -> confluent_kafka.Producer:
        """Return the client and drop the own reference to it. Do not use this publisher afterwards."""
        client = self._client
        del self._client
        return client

    @property
    def outstanding(self) -> int:
        """Number of outcomes that were published and are not acknowledged, including dead letters not yet sent."""
        return self._outstanding + len(self._line)

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the messages that the client holds (copies of values and headers), or slightly more."""
        return self._buffered

    def publish(self, finished: Sequence[Finished], judge: Callable[[Frame, Outcome], None] = _no_judge) -> None:
        """Send these outcomes in order. `poll` returns them when they are acknowledged.

        All results are encoded before the first one is sent, so that the results of a partition share one request. A
        dead letter contains a whole record, so it is encoded only when it is sent. Blocks only while the local queue of
        librdkafka is full.

        Args:
            finished: Outcomes of frames whose epoch is current.
            judge: Called for each outcome as it is sent. If a result cannot be written, the outcome is a rejection. An
                exception from this function stops the sending.

        Raises:
            PublishError: The local queue stays full, or the producer cannot continue.
        """
        self._check_owner()
        at, at_ms = self._clock(), self._wall_clock_ms()
        most = self._results.largest
        for first in range(0, len(finished), _TOGETHER):
            prepared = [self._results.make(item, at, at_ms, most) for item in finished[first : first + _TOGETHER]]
            for pending, message in prepared:
                judge(pending.frame, self._dispatch(pending, message))

    def poll(self, timeout_s: float = 0.0) -> list[Acknowledged]:
        """Serve delivery reports. Blocks up to `timeout_s` for the first one.

        Returns:
            The outcomes that were acknowledged since the last call.

        Raises:
            PublishError: A message did not arrive. The process must end without committing its offset.
        """
        self._check_owner()
        self._serve(timeout_s)
        self._check_timeout()
        acknowledged: list[Acknowledged] = []
        for pending, error in self.reports():
            if error is None:
                acknowledged.append(Acknowledged(pending.frame, pending.outcome, pending.published_at))
            else:
                self._failed(pending, error)
        self._send_dead_letters()
        return acknowledged

    def forget(self, partitions: Collection[TopicPartition]) -> list[Frame]:
        """Drop the queued dead letters of these partitions.

        Returns:
            Their frames, which are never acknowledged.
        """
        self._check_owner()
        return self._line.forget(partitions)

    def reports(self) -> list[Report]:
        """Return the delivery reports since the last call, including failures, without handling them."""
        reports, self._reports = self._reports, []
        self._outstanding -= len(reports)
        return reports

    def refused(self, pending: Pending, error: confluent_kafka.KafkaError) -> PublishError:
        """Return the error to raise if the brokers do not accept a message."""
        return refusal(*self._kind(pending), record_id(pending.frame.receipt), error)

    def close(self, timeout_s: float) -> bool:
        """Drop all messages that are not acknowledged, and close the client. Blocks up to `timeout_s`.

        Returns:
            Whether the client closed in time.
        """
        self._check_owner()
        try:
            self._client.purge()
            return bool(self._client.flush(timeout_s) == 0)
        except (KafkaException, SystemError):  # SystemError: a fatal error coincides with a delivery report
            return False

    def _dispatch(self, pending: Pending, message: Message | None) -> Outcome:
        if message is not None:
            try:
                self._send(self._topic, message, pending)
            except KafkaException as error:
                if error.args[0].code() not in TOO_LARGE:
                    raise self._not_sent(pending, error) from error
                pending, message = unpublishable(pending.frame, text_of(error), pending.published_at), None
        if message is None:
            self._line.add(pending)
            self._send_dead_letters()
        return pending.outcome

    def _not_sent(self, pending: Pending, error: KafkaException) -> PublishError:
        if error.args[0].code() == confluent_kafka.KafkaError._FATAL:  # noqa: SLF001
            return self._died(error)
        return self.refused(pending, error.args[0])

    def _send_dead_letters(self) -> None:
        """Send the queued dead letters that may be in flight now."""
        while (pending := self._line.next(self._buffered)) is not None:
            self._send_dead_letter(pending)

    def _send_dead_letter(self, pending: Pending) -> None:
        pending, message = self._letters.make(pending)
        try:
            self._send(self._letters.topic, message, pending)
        except KafkaException as error:
            if error.args[0].code() not in TOO_LARGE:
                raise self._not_sent(pending, error) from error
            self._send_again_as_dead_letter(pending, error.args[0])
        else:
            self._line.sent()

    def _send_again_as_dead_letter(self, pending: Pending, error: confluent_kafka.KafkaError) -> None:
        if not self._letters.learn(pending, error):
            raise self.refused(pending, error)
        self._line.add_again(pending._replace(tries=pending.tries + 1, alone=False))

    def learn(self, pending: Pending, error: confluent_kafka.KafkaError) -> bool:
        """Learn from a refusal for later messages of the topic.

        Returns:
            Whether later messages will differ because of it.
        """
        if isinstance(pending.outcome, Rejected):
            return self._letters.learn(pending, error)
        # In a batch of several messages, another one may be too large, or only the batch as a whole.
        alone = error.code() in TOO_LARGE and pending.size >= self.batch_bytes
        return alone and self._results.refused(pending.size)

    def _send(self, topic: str, message: Message, pending: Pending) -> None:
        full_since: float | None = None
        number = next(self._numbers)
        while True:
            try:
                self._client.produce(
                    topic,
                    message.value,
                    message.key,
                    on_delivery=partial(self._on_delivery, number, pending),
                    timestamp=message.timestamp_ms or 0,
                    headers=message.headers,  # type: ignore[arg-type] # the stubs' list is invariant
                )
            except BufferError:
                full_since = full_since or self._clock()
                if self._clock() - full_since > _QUEUE_FULL_S:
                    raise PublishError(
                        f"the producer's queue has been full for {_QUEUE_FULL_S:.0f} s: the brokers take nothing"
                    ) from None
                self._serve(0.05)
            else:
                self._outstanding += 1
                self._unreported[number] = self._clock(), pending
                self._buffered += pending.size
                return

    def _serve(self, timeout_s: float) -> None:
        try:
            self._client.poll(timeout_s)
        except KafkaException as error:  # librdkafka reports fatal errors here, not through error_cb
            raise self._died(error) from error

    def _died(self, error: KafkaException) -> PublishError:
        """Return the error to raise after a fatal error.

        If a refused message is the cause, its delivery report arrives slightly later and contains more information.
        """
        until = self._clock() + _REPORT_S
        while self._gapless and self._clock() < until:
            refused = next(((each, why) for each, why in self._reports if why and why.code() in ADVICE), None)
            if refused is not None:
                return self._final(*refused)
            with contextlib.suppress(KafkaException):
                self._client.poll(0.05)
        text = f"the producer died: {text_of(error)}; "
        if (advice := ADVICE.get(error.args[0].code())) is not None:
            return UnwritableError(text + advice.format(topic=self._topic))
        return PublishError(f"{text}nothing unacknowledged was committed, a restart repeats it")

    def _final(self, pending: Pending, error: confluent_kafka.KafkaError) -> PublishError:
        """Return the error to raise after a refusal that ends the process."""
        learns = self._own_batches or pending.size >= self.batch_bytes
        if error.code() in TOO_LARGE and self._advertised and learns:
            return lowered_limit(*self._kind(pending), error)
        invalid = error.code() == confluent_kafka.KafkaError.INVALID_RECORD
        if invalid and isinstance(pending.outcome, Rejected) and self._letters.lacks_key(pending):
            return became_compacted(*self._kind(pending), error)
        return self.refused(pending, error)

    def _check_timeout(self) -> None:
        """Raise PublishError if the oldest message in flight has exceeded `delivery.timeout.ms`.

        librdkafka has no timeout of its own here, because it would let later outcomes overtake the one that it drops.
        """
        if not self._unreported:
            return
        sent_at, pending = next(iter(self._unreported.values()))
        if self._clock() - sent_at <= self._timeout_s:
            return
        # No later message may arrive without this one: a restart repeats all of them in order.
        self._client.purge()
        what, topic = self._kind(pending)
        raise PublishError(
            f"the brokers have not acknowledged the {what} of {record_id(pending.frame.receipt)} in {topic} within "
            f"delivery.timeout.ms ({self._timeout_s:g} s); nothing unacknowledged was committed, a restart repeats it"
        )

    def _kind(self, pending: Pending) -> tuple[str, str]:
        """Return the kind of a message, as text, and its topic."""
        if isinstance(pending.outcome, Rejected):
            return "dead letter", self._letters.topic
        return "result", self._topic

    def _failed(self, pending: Pending, error: confluent_kafka.KafkaError) -> None:
        if self._gapless:  # the refusal is fatal for the producer, which will report its own error next
            self._client.purge()
            raise self._final(pending, error)
        shared = error.code() in TOO_LARGE and pending.size < self.batch_bytes and not pending.alone
        if isinstance(pending.outcome, Rejected):
            if shared:  # another message of its batch may be too large, or only the batch as a whole
                self._line.add_again(pending._replace(alone=True))
            else:
                self._send_again_as_dead_letter(pending, error)
            return
        if not shared and self.learn(pending, error):
            why = self._results.too_large(pending.size)
            self._line.add_again(unpublishable(pending.frame, why, pending.published_at))
            return
        # Messages that were published after it must not arrive before it is repeated.
        self._client.purge()
        raise self._final(pending, error)

    # Callbacks: librdkafka runs them inside poll. They only record, and never raise, because librdkafka would keep only
    # the last exception.

    def _on_delivery(
        self,
        number: int,
        pending: Pending,
        error: confluent_kafka.KafkaError | None,
        _message: confluent_kafka.Message,
    ) -> None:
        self._unreported.pop(number, None)
        if isinstance(pending.outcome, Rejected):
            self._line.reported()
        self._buffered -= pending.size
        self._reports.append((pending, error))

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        self.errors += 1
        if error.code() in LASTING or UNTRUSTED in error.str():
            self.refusal = error
        _log.warning("kafka", error=error.name(), text=error.str())

    def _check_owner(self) -> None:
        if threading.get_ident() != self._owner:
            raise OwnershipError("Publisher belongs to the thread that made it; call it there")
