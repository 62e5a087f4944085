"""Makes dead letters that fit the known limits of their topic, and learns limits from refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import confluent_kafka

from consumer.kafka.producer_errors import TOO_LARGE
from consumer.kafka.topic_limits import TopicLimits
from consumer.messages import Message, encode_dead_letter, message_bytes
from consumer.types import Frame, Outcome, Rejected

# The process ends after this many refusals of one dead letter.
_TRIES = 6
# How long to wait for the brokers to answer whether a topic has become compacted, before the process ends.
_ANSWER_S = 6.0


class Pending(NamedTuple):
    """A message in flight, as its delivery report identifies it."""

    frame: Frame
    outcome: Outcome
    published_at: float  # seconds on the injected clock
    size: int = 0  # bytes of the message in a request of its own, or a few more
    tries: int = 0  # how often the brokers have refused its dead letter
    alone: bool = False  # whether its dead letter must be the only one in its batch
    keyed: bool = False  # whether the dead letter was made for a topic that requires keys


class DeadLetters:
    """Makes dead letters, and learns from refusals which ones the brokers accept.

    Args:
        topic: The dead-letter topic.
        source: Identifies this consumer group in the headers of the messages.
        limits: The known limits of the topics.
        wall_clock_ms: Unix milliseconds.
    """

    def __init__(self, topic: str, source: str, limits: TopicLimits, wall_clock_ms: Callable[[], int]) -> None:
        self.topic = topic
        self._source = source
        self._limits = limits
        self._wall_clock_ms = wall_clock_ms

    def make(self, pending: Pending) -> tuple[Pending, Message]:
        """Encode the dead letter of a rejection.

        Returns:
            `pending` with the size of the message and whether it was made for a topic that requires keys; the message.
        """
        outcome = pending.outcome
        assert isinstance(outcome, Rejected)
        limit, keyed = self._limits.largest_dead_letter(self.topic), self._limits.needs_key(self.topic)
        message = encode_dead_letter(
            pending.frame,
            outcome,
            source=self._source,
            max_bytes=limit,
            now_ms=self._wall_clock_ms(),
            keyed=keyed,
        )
        if pending.frame.record.size_bytes > limit:
            self._limits.refresh_if_stale(self.topic)
        return pending._replace(size=message_bytes(message), keyed=keyed), message

    def learn(self, pending: Pending, error: confluent_kafka.KafkaError) -> bool:
        """Learn from the refusal of a dead letter.

        Returns:
            Whether to send it again: `make` now makes a different one, or another message caused the refusal.
        """
        if pending.tries >= _TRIES:
            return False
        if error.code() in TOO_LARGE:
            return self._limits.refused(self.topic, pending.size)
        if error.code() == confluent_kafka.KafkaError.INVALID_RECORD:
            # For one record without a key, the brokers refuse its whole batch, including records that have keys.
            return self._limits.refused_keyless(self.topic) or not pending.keyed
        return False

    def lacks_key(self, pending: Pending) -> bool:
        """Return whether the topic now requires keys, and this dead letter was made before that was known.

        Asks the brokers if necessary. Blocks up to `_ANSWER_S`.
        """
        if pending.keyed:
            return False
        if not self._limits.needs_key(self.topic):
            self._limits.ask(_ANSWER_S)
        return self._limits.needs_key(self.topic)
