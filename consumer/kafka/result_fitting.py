"""Encodes results. One that its topic does not take becomes a rejection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumer.config import Config
from consumer.kafka.dead_letter_fitting import Pending
from consumer.kafka.topic_limits import TopicLimits, compresses
from consumer.messages import Message, ResultEncoder, message_bytes
from consumer.types import Finished, Frame, ModelInfo, Rejected

# What a result has beside its value, at most: key, headers and what is around them. Not counted for every frame.
_BESIDE_VALUE = 2048
# A result up to so large is not measured exactly, unless its topic or its batch takes less.
_SMALL = 60_000


class Results:
    """Encodes results and skips. `settings`: of the producer."""

    def __init__(
        self, config: Config, model: ModelInfo, source: str, limits: TopicLimits, settings: Mapping[str, Any]
    ) -> None:
        self.topic = config.output.topic
        self.encoder = ResultEncoder(format=config.output.format, model=model, source=source)
        self._limits = limits
        # One that may be alone in its batch, and so be refused for itself, is measured too.
        self._small = min(_SMALL, int(settings["batch.size"]))
        # A compressed result may be smaller than its topic's limit although its text is not.
        self._compressed = compresses(settings)

    @property
    def largest(self) -> float:
        """The most bytes that a result may have, as far as it is known."""
        return (self._limits.largest_uncompressed if self._compressed else self._limits.largest)(self.topic)

    def refused(self, size: int) -> bool:
        """The brokers refused a lone result of `size` bytes before compression. False: a smaller one does not help."""
        if self._compressed:
            self._limits.refused_uncompressed(self.topic, size)
            return True
        return self._limits.refused(self.topic, size, exactly=True)

    def make(self, finished: Finished, at: float, at_ms: int, most: float) -> tuple[Pending, Message | None]:
        """The message, and what its delivery report shall name. No message: a rejection. `most`: see `largest`."""
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
        """A sentence for the dead letter of a result that its topic does not take."""
        if self._compressed:
            return f"the result has {size} bytes, and topic {self.topic} refuses it compressed (max.message.bytes)"
        limit = self._limits.largest(self.topic)
        return f"the result has {size} bytes, and topic {self.topic} takes {limit} (max.message.bytes)"


def unpublishable(frame: Frame, why: str, at: float) -> Pending:
    """The rejection of a frame whose result cannot be written."""
    return Pending(frame, Rejected("publish", "unpublishable", why), at)
