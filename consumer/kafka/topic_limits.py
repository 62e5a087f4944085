"""Tracks the known limits of the output topics: the largest message, and whether a record needs a key.

The brokers report these limits to a user who has DESCRIBE_CONFIGS on a topic. They are asked at the start, and again
after a refusal, because a limit can change. Without this permission, the limits are learned from refusals. A learned
limit applies to all later messages of the topic, across transactions and producers, so that the brokers refuse only one
message.
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

# A dead letter contains a whole input record. If the limit of its topic is unknown, it is cut to these sizes in turn,
# in bytes.
LADDER: Final = (64 * 2**20, 900_000, 60_000)
# librdkafka's default of batch.size, and the maximum overhead of a batch.
BATCH_BYTES: Final = 1_000_000
_AROUND: Final = 512
# Batch size for a topic whose limit is unknown. It is refused only by a topic that refuses most ordinary messages too.
# A larger message is alone in its batch, so a refusal refers to this message.
UNKNOWN_BATCH_BYTES: Final = LADDER[-1] - _AROUND
# Below this size a batch contains only one result, so a smaller batch would change nothing.
LEAST_BATCH: Final = 4096
# If a message exceeds a limit that is older than this, the brokers are asked again. A limit that no message exceeds
# does not expire.
_FRESH_S: Final = 60.0
# How long dead letters stay cut after one was too large for a transaction on a slow connection.
SLOW_S: Final = 600.0
_LOOK_EVERY_S: Final = 0.1
# Producer settings that an admin client refuses, or does not need.
_PRODUCER_ONLY: Final = frozenset(
    (
        *("acks", "batch.size", "debug", "delivery.timeout.ms", "enable.gapless.guarantee", "enable.idempotence"),
        "linger.ms",
        *("message.timeout.ms", "partitioner", "retry.backoff.ms", "transaction.timeout.ms", "transactional.id"),
    )
)


@dataclass(slots=True)
class _Topic:
    advertised: int | None = None  # limit that the brokers reported, in bytes
    learned: int | None = None  # limit from a refusal, in bytes
    refused_bytes: int | None = None  # size of the smallest refused message
    refused_uncompressed: float = math.inf  # uncompressed size of the smallest refused message that was compressed
    compacted: bool = False
    keyed: bool = False  # whether a refusal showed that the topic requires keys


class TopicLimits:
    """The known limits of the topics that this process writes to. For the thread that owns the producer."""

    def __init__(
        self, topics: Sequence[str], *, most: int = LADDER[0], describe: Describe | None = None, clock: Clock
    ) -> None:
        """Start without any known limit.

        Args:
            topics: The topics that this process writes to.
            most: The producer's own limit for a message, in bytes.
            describe: Asks the brokers for the topic configurations. None: the brokers cannot be asked.
            clock: Monotonic seconds.
        """
        self._topics = {topic: _Topic() for topic in topics}
        self._most = most
        self._describe = describe
        self._clock = clock
        self._answers: queue.SimpleQueue[Mapping[str, Described]] = queue.SimpleQueue()
        self._asking = False
        self._asked_at = 0.0
        self._slow: tuple[int, float] | None = None  # limit of dead letters in bytes, and when it expires
        self._batch_cap = BATCH_BYTES

    def ask(self, within_s: float = 0.0, stop: Stop | None = None) -> None:
        """Ask the brokers again on a background thread, and wait for the answer.

        Args:
            within_s: Maximum seconds to wait. A later answer is still used.
            stop: Ends the wait early when set.
        """
        if self._describe is None:
            return
        if not self._asking:
            self._asking, self._asked_at = True, self._clock()
            threading.Thread(target=_answer, args=(self._describe, self._answers), daemon=True, name="limits").start()
        until = self._clock() + within_s
        while self._asking and self._clock() < until and not (stop is not None and stop.is_set()):
            self._take(_LOOK_EVERY_S)

    def largest(self, topic: str) -> int:
        """Return the maximum bytes of a message of this topic, if it is alone in its request."""
        self._take()
        known = self._topics[topic]
        return min(each for each in (self._most, known.advertised, known.learned) if each is not None)

    def largest_uncompressed(self, topic: str) -> float:
        """Return the maximum bytes of a message before compression. The limits of the brokers apply after it."""
        self._take()
        return self._topics[topic].refused_uncompressed - 1

    def largest_dead_letter(self, topic: str) -> int:
        """Return the maximum bytes of a dead letter: `largest`, or less if the connection is slow.

        On a slow connection, the limit is what can be written within a transaction; see `too_slow`.
        """
        largest = self.largest(topic)
        if self._slow is not None and self._clock() >= self._slow[1]:
            self._slow = None
        return largest if self._slow is None else min(largest, self._slow[0])

    def needs_key(self, topic: str) -> bool:
        """Return whether the topic refuses records without a key."""
        self._take()
        return self._topics[topic].compacted or self._topics[topic].keyed

    def refresh_if_stale(self, topic: str) -> None:
        """Ask the brokers again if the limit, which a message exceeded, is older than `_FRESH_S`."""
        if self._topics[topic].advertised is not None and self._clock() - self._asked_at > _FRESH_S:
            self.ask()

    def refused(self, topic: str, size: int, *, exactly: bool = False) -> bool:
        """Learn from the refusal of a message that was alone in its batch.

        Args:
            topic: The topic of the message.
            size: Its bytes.
            exactly: Whether the new limit is `size` - 1. Otherwise it is the next lower size in `LADDER`.

        Returns:
            Whether a smaller message can be tried.
        """
        known = self._topics[topic]
        known.refused_bytes = min(size, known.refused_bytes or size)
        if size > self.largest(topic):
            return True  # the limit is already lower because of an earlier refusal
        smaller = size - 1 if exactly else next((rung for rung in LADDER if rung < size), None)
        if smaller is None:
            return False
        known.learned = smaller
        known.advertised = None
        _log.warning("topic refuses a message for its size", topic=topic, bytes=size, limit_from_now=smaller)
        self.ask()
        return True

    def refused_uncompressed(self, topic: str, size: int) -> None:
        """Learn from the refusal of a compressed message that was alone in its batch.

        The reported limit does not apply to uncompressed sizes, so this limit holds until the brokers report a higher
        one.

        Args:
            topic: The topic of the message.
            size: Its bytes before compression.
        """
        known = self._topics[topic]
        known.refused_uncompressed = min(size, known.refused_uncompressed)
        _log.warning("topic refuses a compressed message for its size", topic=topic, uncompressed_bytes=size)
        self.ask()

    def refused_batch(self, size: int) -> bool:
        """Learn from the refusal of a batch of several messages.

        Args:
            size: The maximum bytes of the batch.

        Returns:
            Whether a smaller batch can help.
        """
        if size // 2 < LEAST_BATCH:
            return False
        self._batch_cap = size // 2
        _log.warning("a topic refuses a batch for its size; batches are made smaller", batch_size=self._batch_cap)
        self.ask()
        return True

    def refused_keyless(self, topic: str) -> bool:
        """Learn from the refusal of a record without a key, or of a record in the same batch as one.

        Returns:
            Whether this is new. If not, the missing key was not the cause.
        """
        if self._topics[topic].compacted or self._topics[topic].keyed:
            return False
        self._topics[topic].keyed = True
        _log.warning("topic refuses records without a key; dead letters of those get their ID as the key", topic=topic)
        return True

    def too_slow(self, size: int) -> int:
        """Lower the limit of dead letters for `SLOW_S`, because one was not written in time.

        Args:
            size: Bytes of that dead letter.

        Returns:
            The new limit in bytes.
        """
        self._slow = max(LADDER[-1], size // 3), self._clock() + SLOW_S
        return self._slow[0]

    def batch_bytes(self) -> int:
        """Return the maximum bytes of a batch that all topics accept, as far as known. At most librdkafka's default."""
        limits = [self.largest(topic) - _AROUND for topic in self._topics]
        return max(LEAST_BATCH, min(self._batch_cap, *limits))

    @property
    def batch_cap(self) -> int:
        """The maximum bytes of a batch, as learned from refused batches."""
        return self._batch_cap

    @property
    def advertised(self) -> bool:
        """Whether the brokers have reported the limit of each topic. If so, they will report it after a restart too."""
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
        # If a message was refused although it fits this limit, another limit was the cause, and that one still holds.
        if known.refused_bytes is None or described.max_bytes < known.refused_bytes:
            known.learned = known.refused_bytes = None


def topic_limits(config: Config, producer_settings: Mapping[str, Any], clock: Clock) -> TopicLimits:
    """Create the limits of the topics in this configuration. Does not ask the brokers yet.

    Args:
        config: All options.
        producer_settings: The librdkafka settings of the producer. The admin client connects with the same ones.
        clock: Monotonic seconds.
    """
    topics = (config.output.topic, config.dead_letter.topic)
    settings = {name: value for name, value in producer_settings.items() if name not in _PRODUCER_ONLY}
    most = min(LADDER[0], number(producer_settings, "message.max.bytes", "bytes", LADDER[0]))
    return TopicLimits(topics, most=most, describe=lambda: describe(settings, topics), clock=clock)


def fitted(settings: dict[str, Any], limits: TopicLimits) -> dict[str, Any]:
    """Return the settings of the producer with a batch size that the topics accept.

    With a larger one, a full batch of small results would be refused as a whole. The user's batch.size is lowered only
    after batches were refused.

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
    """Return a setting of the producer as a number. `unit` is for the error message.

    Raises:
        RefusedError: It is not a number.
    """
    value = settings.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise RefusedError(f"kafka.producer: {name} is {value!r}, not a number of {unit}") from None


def compresses(settings: Mapping[str, Any]) -> bool:
    """Return whether the producer compresses. If so, the limits of the brokers apply to sizes unknown to it."""
    return str(settings.get("compression.type", settings.get("compression.codec", "none"))) != "none"


def _answer(describe: Describe, answers: queue.SimpleQueue[Mapping[str, Described]]) -> None:
    try:
        answers.put(describe())
    except (KafkaException, ValueError, TypeError, TimeoutError) as error:
        _log.info("topic limits unknown", error=str(error))
        answers.put({})
