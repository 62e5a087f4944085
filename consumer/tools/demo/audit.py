"""Reads the topics of a demo: live for the progress line, and to their ends for the final check."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, TopicPartition

from consumer.errors import KafkaError
from consumer.messages import decode_result, read_dead_letter, read_record
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.demo.broker import DemoBroker
from consumer.tools.demo.summary import Outcome, RecordId

_READ_TIMEOUT_S: Final = 30.0
_COMMITTED_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class DrawnFrame:
    """A frame to draw. `result` is its detection message or skipped message; None if there is neither."""

    source_id: str
    number: int
    jpeg: bytes
    result: Mapping[str, Any] | None


@dataclass(slots=True)
class TopicContents:
    """The contents of the topics.

    Attributes:
        inputs: The records of the input topic.
        outcomes: Results, then dead letters; those of one partition are in order.
        committed: Partition to committed offset.
        drawn: The frames to draw.
    """

    inputs: set[RecordId] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    drawn: list[DrawnFrame] = field(default_factory=list)


class TopicReader:
    """Reads topics from their beginning, without joining a group. Use it in a `with` block, which closes the client."""

    def __init__(self, broker: DemoBroker, *topics: str) -> None:
        # librdkafka requires a group name, although assigned partitions need no group.
        settings = {"group.id": f"{broker.topics.group}-reader", "enable.auto.commit": False}
        self._client = clients.consumer(
            broker.bootstrap_servers, {**broker.client, **broker.consumer, **settings, "enable.partition.eof": True}
        )
        parts = [TopicPartition(topic, n, 0) for topic in topics for n in clients.partitions_of(self._client, topic)]
        self._client.assign(parts)
        self._open = {(part.topic, part.partition) for part in parts}

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()

    def poll(self, timeout_s: float) -> Any | None:
        """The next message, or None after the timeout. Raises KafkaError if the client cannot continue."""
        message = self._client.poll(timeout_s)
        if message is None:
            return None
        error = message.error()
        if error is None:
            return message
        if error.code() == ClientError._PARTITION_EOF:  # noqa: SLF001 - the public name in the library
            self._open.discard((message.topic(), message.partition()))
        elif not error.retriable():
            raise KafkaError(f"cannot read {message.topic()}: {printable(error.str())}")
        return None

    def read_to_end(self) -> Iterator[Any]:
        """Yield every message up to the current end of the partitions. Call it on a reader that has read nothing yet.

        Raises:
            KafkaError: The brokers sent nothing for 30 s.
        """
        progress_at = time.monotonic()
        while self._open:
            waiting = len(self._open)
            if (message := self.poll(0.2)) is not None:
                yield message
            if message is not None or len(self._open) < waiting:
                progress_at = time.monotonic()
            elif time.monotonic() - progress_at > _READ_TIMEOUT_S:
                raise KafkaError(f"the brokers sent nothing for {_READ_TIMEOUT_S:.0f} s while the topics were read")


def outcome_id(message: Any) -> bytes | None:
    """The ID of the outcome, which identifies its input record. Does not decode the message."""
    return dict(message.headers() or ()).get("ce_id")


def audit(broker: DemoBroker, wanted: Mapping[str, set[int]]) -> TopicContents:
    """Read all topics to their ends.

    Args:
        broker: The broker of the demo.
        wanted: Source ID to the numbers of the frames to draw.
    """
    found = TopicContents()
    results: dict[RecordId, dict[str, Any]] = {}
    topics = broker.topics
    with TopicReader(broker, topics.detections) as reader:
        for message in reader.read_to_end():
            outcome, body = _result(message)
            found.outcomes.append(outcome)
            if body["frame_id"] in map(str, wanted.get(outcome.source_id, ())):
                results[outcome.record] = body
    with TopicReader(broker, topics.dead) as reader:
        found.outcomes += [_dead_letter(message) for message in reader.read_to_end()]
    with TopicReader(broker, topics.frames) as reader:
        for message in reader.read_to_end():
            record = RecordId(message.partition(), message.offset())
            found.inputs.add(record)
            source, number = message.key().decode(), int(dict(message.headers())["frame-id"])
            if number in wanted.get(source, ()):
                found.drawn.append(DrawnFrame(source, number, message.value(), results.get(record)))
    found.drawn.sort(key=lambda frame: (list(wanted).index(frame.source_id), frame.number))
    found.committed = _committed(broker, {record.partition for record in found.inputs})
    return found


def _result(message: Any) -> tuple[Outcome, dict[str, Any]]:
    body = decode_result(message.value())
    outcome = Outcome(
        kind="skipped" if "skipped" in body else "detected",
        source_id=body["source_id"],
        record=RecordId(body["input"]["partition"], body["input"]["offset"]),
        published_at_ms=message.timestamp()[1],
        captured_at_ms=body["captured_at_ms"],
        batch_size=body.get("batch_size", 0),
        labels=tuple(detection["label"] for detection in body.get("detections", ())),
    )
    return outcome, body


def _dead_letter(message: Any) -> Outcome:
    letter = read_dead_letter(read_record(message))
    if letter is None:
        raise KafkaError(f"{message.topic()} has a record that is no dead letter, at offset {message.offset()}")
    source = (letter.record.key or b"").decode(errors="replace")
    return Outcome("dead_letter", source, RecordId(letter.partition, letter.offset), message.timestamp()[1])


def _committed(broker: DemoBroker, partitions: set[int]) -> dict[int, int]:
    settings = {**broker.client, "group.id": broker.topics.group, "enable.auto.commit": False}
    client = clients.consumer(broker.bootstrap_servers, settings)
    with contextlib.closing(client):
        try:
            wanted = [TopicPartition(broker.topics.frames, n) for n in partitions]
            parts = client.committed(wanted, _COMMITTED_TIMEOUT_S)
        except KafkaException as error:
            raise KafkaError(f"cannot read the committed offsets: {clients.text_of(error)}") from None
    return {part.partition: part.offset for part in parts if part.error is None and part.offset > 0}
