"""Encodes results, and turns a result that its topic does not accept into a rejection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumer.config import Config
from consumer.kafka.dead_letter_fitting import Pending
from consumer.kafka.topic_limits import TopicLimits, compresses
from consumer.messages import Message, ResultEncoder, message_bytes
from consumer.types import Finished, Frame, ModelInfo, Rejected

# The maximum bytes of a result without its value: key, headers and overhead. They are not counted for every frame.
_BESIDE_VALUE = 2048
# Results up to this size are not measured exactly, unless the limit of their topic or batch is lower.
_SMALL = 60_000


class Results:
    """Encodes results and skipped outcomes.

    Args:
        config: All options.
        model: Named in each result.
        source: The `ce_source` of the messages.
        limits: The known limits of the topics.
        settings: The librdkafka settings of the producer, `batch.size` included.
    """

    def __init__(
        self, config: Config, model: ModelInfo, source: str, limits: TopicLimits, settings: Mapping[str, Any]
    ) -> None:
        self.topic = config.output.topic
        self.encoder = ResultEncoder(format=config.output.format, model=model, source=source)
        self._limits = limits
        # A result that can fill a batch alone, and so be refused for its own size, is measured too.
        self._small = min(_SMALL, int(settings["batch.size"]))
        # A compressed result may fit its topic's limit although the uncompressed one does not.
        self._compressed = compresses(settings)

    @property
    def largest(self) -> float:
        """The maximum bytes of a result, as far as the limit is known."""
        return (self._limits.largest_uncompressed if self._compressed else self._limits.largest)(self.topic)

    def refused(self, size: int) -> bool:
        """Learn from the refusal of a result that was alone in its batch.

        Args:
            size: Bytes of the message before compression.

        Returns:
            Whether a smaller message can help.
        """
        if self._compressed:
            self._limits.refused_uncompressed(self.topic, size)
            return True
        return self._limits.refused(self.topic, size, exactly=True)

    def make(self, finished: Finished, at: float, at_ms: int, most: float) -> tuple[Pending, Message | None]:
        """Encode the message of an outcome.

        Args:
            finished: The frame, its outcome and its batch.
            at: Time of publication, in seconds on the injected clock.
            at_ms: Time of publication, in Unix milliseconds.
            most: The maximum bytes; see `largest`.

        Returns:
            What the delivery report identifies, and the message. The message is None for a rejection, and for a result
            that has become one.
        """
        frame, outcome, batch = finished
        if isinstance(outcome, Rejected):
            return Pending(frame, outcome, at), None
        timings = {
            "queue": max(0.0, (batch.taken_at - frame.received_at) * 1000),
            "decode_wait": batch.timings.decode_wait_ms,
            "infer": batch.timings.infer_ms,
        }
        try:
            message = self.encoder.encode(
                frame, outcome, batch_size=batch.size, timings_ms=timings, published_at_ms=at_ms
            )
        except ValueError as error:
            return unpublishable(frame, str(error), at), None
        size = len(message.value or b"") + _BESIDE_VALUE
        if size > self._small or size > most:
            size = message_bytes(message)
            if size > most:
                self._limits.refresh_if_stale(self.topic)
                return unpublishable(frame, self.too_large(size), at), None
        return Pending(frame, outcome, at, size), message

    def too_large(self, size: int) -> str:
        """Return the reason, for the dead letter, why the topic does not accept a result of `size` bytes."""
        if self._compressed:
            return f"the result has {size} bytes, and topic {self.topic} refuses it compressed (max.message.bytes)"
        limit = self._limits.largest(self.topic)
        return f"the result has {size} bytes, and topic {self.topic} takes {limit} (max.message.bytes)"


def unpublishable(frame: Frame, why: str, at: float) -> Pending:
    """Return the rejection of a frame whose result cannot be written.

    Args:
        frame: The frame.
        why: The reason, a sentence.
        at: Time of publication, in seconds on the injected clock.
    """
    return Pending(frame, Rejected("publish", "unpublishable", why), at)
