"""Dead letters that the brokers take, as far as it is known what they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import confluent_kafka

from consumer.kafka.producer_errors import TOO_LARGE
from consumer.kafka.topic_limits import TopicLimits
from consumer.messages import Message, encode_dead_letter, message_bytes
from consumer.types import Frame, Outcome, Rejected

# Refusals of one dead letter before the process ends.
_TRIES = 6
# How long the brokers are asked whether a topic has become compacted, before the process ends.
_ANSWER_S = 6.0


class Pending(NamedTuple):
    """A message that is on its way, as its delivery report names it."""

    frame: Frame
    outcome: Outcome
    published_at: float
    size: int = 0  # bytes of the message in a request of its own, or a few more
    tries: int = 0  # how often the brokers have refused its dead letter
    alone: bool = False  # its dead letter must have no other in its batch
    keyed: bool = False  # the dead letter was made with a key


class DeadLetters:
    """Makes dead letters, and learns from refusals which ones are taken."""

    def __init__(self, topic: str, source: str, limits: TopicLimits, wall_clock_ms: Callable[[], int]) -> None:
        self.topic = topic
        self._source = source
        self._limits = limits
        self._wall_clock_ms = wall_clock_ms

    def make(self, pending: Pending) -> tuple[Pending, Message]:
        """The dead letter of a rejection."""
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
        """The brokers refused a dead letter. True: `make` makes another one now, or this one was not to blame."""
        if pending.tries >= _TRIES:
            return False
        if error.code() in TOO_LARGE:
            return self._limits.refused(self.topic, pending.size)
        if error.code() == confluent_kafka.KafkaError.INVALID_RECORD:
            # With one that has no key the brokers refuse all that came in its batch, those with a key too.
            return self._limits.refused_keyless(self.topic) or not pending.keyed
        return False

    def lacks_key(self, pending: Pending) -> bool:
        """The topic needs keys by now, and this dead letter was made without that. Asks the brokers, for seconds."""
        if pending.keyed:
            return False
        if not self._limits.needs_key(self.topic):
            self._limits.ask(_ANSWER_S)
        return self._limits.needs_key(self.topic)
