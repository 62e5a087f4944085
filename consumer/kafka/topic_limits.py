"""What the topics take, as far as it is known: the largest message, and whether a record needs a key.

The brokers say it to a user who has DESCRIBE_CONFIGS on a topic: they are asked at the start, and again when they
refuse a message, because a limit can change. Other users learn the limits from refusals. Everything that is learned
holds for all later messages of the topic, over transactions and producers, so that the brokers refuse one message, not
each.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException

from consumer.concurrency import Stop
from consumer.config import Config
from consumer.errors import RefusedError
from consumer.kafka.topic_configs import Describe, Described, describe
from consumer.types import Clock

_log = structlog.get_logger(__name__)

# A dead letter holds a whole input record. If nothing is known of its topic, it is cut to these in turn.
LADDER: Final = (64 * 2**20, 900_000, 60_000)
# librdkafka's default of batch.size, and what a batch has around its messages at most.
BATCH_BYTES: Final = 1_000_000
_AROUND: Final = 512
# Batches for a topic whose limit is unknown: it takes them unless it takes hardly a message of a usual size. A larger
# message is alone in its batch, so that its refusal is about itself.
UNKNOWN_BATCH_BYTES: Final = LADDER[-1] - _AROUND
# Below this a batch holds one result, and a smaller one would change nothing.
LEAST_BATCH: Final = 4096
# An answer is taken for true for so long while it makes us cut, and as long as nothing is refused.
_FRESH_S: Final = 60.0
# How long dead letters stay cut to what a slow way took within a transaction.
SLOW_S: Final = 600.0
_LOOK_EVERY_S: Final = 0.1
# Settings of the producer that an administrator's client does not take, or need not have.
_PRODUCER_ONLY: Final = frozenset(
    (
        *("acks", "batch.size", "debug", "delivery.timeout.ms", "enable.gapless.guarantee", "enable.idempotence"),
        "linger.ms",
        *("message.timeout.ms", "partitioner", "retry.backoff.ms", "transaction.timeout.ms", "transactional.id"),
    )
)


@dataclass(slots=True)
class _Topic:
    advertised: int | None = None  # by the brokers
    learned: int | None = None  # from a refusal
    refused_bytes: int | None = None  # the smallest message that was refused
    refused_uncompressed: float = math.inf  # ... of those that the producer compressed, before that
    compacted: bool = False
    keyed: bool = False  # from a refusal: it takes no record without a key


class TopicLimits:
    """What is known of the topics that this process writes to. For the thread that owns the producer."""

    def __init__(
        self, topics: Sequence[str], *, most: int = LADDER[0], describe: Describe | None = None, clock: Clock
    ) -> None:
        """`most`: bytes that the producer itself takes. `describe`: asks the brokers; None: nobody can be asked."""
        self._topics = {topic: _Topic() for topic in topics}
        self._most = most
        self._describe = describe
        self._clock = clock
        self._answers: queue.SimpleQueue[Mapping[str, Described]] = queue.SimpleQueue()
        self._asking = False
        self._asked_at = 0.0
        self._slow: tuple[int, float] | None = None  # bytes, and until when
        self._batch_cap = BATCH_BYTES

    def ask(self, within_s: float = 0.0, stop: Stop | None = None) -> None:
        """Ask the brokers again, in the background, and wait `within_s` for what they say, or until `stop` is set."""
        if self._describe is None:
            return
        if not self._asking:
            self._asking, self._asked_at = True, self._clock()
            threading.Thread(target=_answer, args=(self._describe, self._answers), daemon=True, name="limits").start()
        until = self._clock() + within_s
        while self._asking and self._clock() < until and not (stop is not None and stop.is_set()):
            self._take(_LOOK_EVERY_S)

    def largest(self, topic: str) -> int:
        """The most bytes that a message of this topic may have in a request of its own."""
        self._take()
        known = self._topics[topic]
        return min(each for each in (self._most, known.advertised, known.learned) if each is not None)

    def largest_uncompressed(self, topic: str) -> float:
        """The most bytes that a message may have before it is compressed. The brokers count it after that."""
        self._take()
        return self._topics[topic].refused_uncompressed - 1

    def largest_dead_letter(self, topic: str) -> int:
        """As `largest`, and no more than a slow way to the brokers takes within a transaction."""
        largest = self.largest(topic)
        if self._slow is not None and self._clock() >= self._slow[1]:
            self._slow = None
        return largest if self._slow is None else min(largest, self._slow[0])

    def needs_key(self, topic: str) -> bool:
        """Whether the topic refuses a record without a key."""
        self._take()
        return self._topics[topic].compacted or self._topics[topic].keyed

    def refresh_if_stale(self, topic: str) -> None:
        """A message was larger than what is known: is that still so?"""
        if self._topics[topic].advertised is not None and self._clock() - self._asked_at > _FRESH_S:
            self.ask()

    def refused(self, topic: str, size: int, *, exactly: bool = False) -> bool:
        """The brokers refused a lone message of `size` bytes. False: nothing smaller is left to be tried.

        `exactly`: only so large a message is too large; otherwise the next limit of the ladder counts from now on.
        """
        known = self._topics[topic]
        known.refused_bytes = min(size, known.refused_bytes or size)
        if size > self.largest(topic):
            return True  # an earlier refusal has said it
        smaller = size - 1 if exactly else next((rung for rung in LADDER if rung < size), None)
        if smaller is None:
            return False
        known.learned = smaller
        known.advertised = None
        _log.warning("topic refuses a message for its size", topic=topic, bytes=size, limit_from_now=smaller)
        self.ask()
        return True

    def refused_uncompressed(self, topic: str, size: int) -> None:
        """The brokers refused a lone message that had `size` bytes before it was compressed.

        What they advertise says nothing of that size, so it counts until they advertise a higher limit.
        """
        known = self._topics[topic]
        known.refused_uncompressed = min(size, known.refused_uncompressed)
        _log.warning("topic refuses a compressed message for its size", topic=topic, uncompressed_bytes=size)
        self.ask()

    def refused_batch(self, size: int) -> bool:
        """A topic refused a batch of several messages, of at most `size` bytes. False: a smaller one does not help."""
        if size // 2 < LEAST_BATCH:
            return False
        self._batch_cap = size // 2
        _log.warning("a topic refuses a batch for its size; batches are made smaller", batch_size=self._batch_cap)
        self.ask()
        return True

    def refused_keyless(self, topic: str) -> bool:
        """The brokers refused a record that had no key, or that came with one. False: that is not what it was."""
        if self._topics[topic].compacted or self._topics[topic].keyed:
            return False
        self._topics[topic].keyed = True
        _log.warning("topic refuses records without a key; dead letters of those get their ID as the key", topic=topic)
        return True

    def too_slow(self, size: int) -> int:
        """A dead letter of `size` bytes does not pass in time. Returns what dead letters are cut to for a while."""
        self._slow = max(LADDER[-1], size // 3), self._clock() + SLOW_S
        return self._slow[0]

    def batch_bytes(self) -> int:
        """What a batch may have so that no topic refuses it, as far as it is known; at most librdkafka's default."""
        limits = [self.largest(topic) - _AROUND for topic in self._topics]
        return max(LEAST_BATCH, min(self._batch_cap, *limits))

    @property
    def batch_cap(self) -> int:
        """The most bytes of a batch after those that were refused."""
        return self._batch_cap

    @property
    def advertised(self) -> bool:
        """Whether the brokers said what each topic takes: then they say it to the next process too."""
        return all(known.advertised is not None for known in self._topics.values())

    def _take(self, wait_s: float = 0.0) -> None:
        if not self._asking:
            return
        try:
            answer = self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait()
        except queue.Empty:
            return
        self._asking = False
        for topic, described in answer.items():
            self._learn(topic, described)
        if answer and all(each.refused for each in answer.values()):
            self._describe = None
            _log.info(
                "topic limits unknown; refusals will tell them, or DESCRIBE_CONFIGS on these topics",
                topics=", ".join(answer),
            )

    def _learn(self, topic: str, described: Described) -> None:
        known = self._topics[topic]
        if described.max_bytes is None:
            return
        if described.max_bytes != known.advertised:
            _log.info("topic limit", topic=topic, max_message_bytes=described.max_bytes)
        if described.compacted and not known.compacted:
            _log.warning(
                "topic is compacted: of the records with one key it keeps the newest only; set cleanup.policy=delete",
                topic=topic,
            )
        if known.advertised is not None and described.max_bytes > known.advertised:
            known.refused_uncompressed = math.inf
        known.advertised, known.compacted = described.max_bytes, described.compacted
        # What was refused although this limit admits it was refused for another one, which still holds.
        if known.refused_bytes is None or described.max_bytes < known.refused_bytes:
            known.learned = known.refused_bytes = None


def topic_limits(config: Config, producer_settings: Mapping[str, Any], clock: Clock) -> TopicLimits:
    """Of the topics of this configuration. Asks nobody yet. Its questions go to the brokers as the producer's do."""
    topics = (config.output.topic, config.dead_letter.topic)
    settings = {name: value for name, value in producer_settings.items() if name not in _PRODUCER_ONLY}
    most = min(LADDER[0], number(producer_settings, "message.max.bytes", "bytes", LADDER[0]))
    return TopicLimits(topics, most=most, describe=lambda: describe(settings, topics), clock=clock)


def fitted(settings: dict[str, Any], limits: TopicLimits) -> dict[str, Any]:
    """With batches that the topics take: a full one of small results would be refused as a whole.

    Raises:
        RefusedError: The user's batch.size is not a number.
    """
    most = limits.batch_bytes()
    if "batch.size" not in settings:
        most = most if limits.advertised else min(most, UNKNOWN_BATCH_BYTES)
        if most < BATCH_BYTES:
            _log.info("batches are made smaller for the topics", batch_size=most)
        return settings | {"batch.size": most}
    chosen = number(settings, "batch.size", "bytes")
    if chosen > most and limits.batch_cap == BATCH_BYTES:
        _log.warning(
            "batch.size of kafka.producer is above what the topics take: lower it, or a full batch is refused",
            batch_size=chosen,
            topics_take=most,
        )
    capped = chosen if limits.batch_cap == BATCH_BYTES else min(chosen, most)
    return settings | {"batch.size": capped}


def number(settings: Mapping[str, Any], name: str, unit: str, default: int = 0) -> int:
    """A setting of the producer.

    Raises:
        RefusedError: It is not a number.
    """
    value = settings.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise RefusedError(f"kafka.producer: {name} is {value!r}, not a number of {unit}") from None


def compresses(settings: Mapping[str, Any]) -> bool:
    """Whether the brokers count other bytes than ours."""
    return str(settings.get("compression.type", settings.get("compression.codec", "none"))) != "none"


def _answer(describe: Describe, answers: queue.SimpleQueue[Mapping[str, Described]]) -> None:
    try:
        answers.put(describe())
    except (KafkaException, ValueError, TypeError, TimeoutError) as error:
        _log.info("topic limits unknown", error=str(error))
        answers.put({})
