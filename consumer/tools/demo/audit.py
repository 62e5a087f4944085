"""Reads the topics of a demo back: live for the progress line, and to their ends for the judgement."""

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
from consumer.tools.demo.broker import Broker
from consumer.tools.demo.summary import Outcome, Place

_SILENCE_S: Final = 30.0
_ANSWER_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame to draw: as it was sent, and the detection or skipped message about it; None: there is none."""

    source_id: str
    number: int
    jpeg: bytes
    result: Mapping[str, Any] | None


@dataclass(slots=True)
class Audit:
    """What the topics hold. `outcomes` in the order of each topic's partitions; `committed`: offset per partition."""

    inputs: set[Place] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    shots: list[Shot] = field(default_factory=list)


class TopicReader:
    """Reads topics from their beginnings, without a group. Close it with `with`."""

    def __init__(self, broker: Broker, *topics: str) -> None:
        # Assigned partitions need no group; librdkafka wants the name of one.
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
        """The next message, if one comes in time. Raises KafkaError where the client cannot go on."""
        message = self._client.poll(timeout_s)
        if message is None:
            return None
        error = message.error()
        if error is None:
            return message
        if error.code() == ClientError._PARTITION_EOF:  # noqa: SLF001 - the client's public name for it
            self._open.discard((message.topic(), message.partition()))
        elif not error.retriable():
            raise KafkaError(f"cannot read back {message.topic()}: {printable(error.str())}")
        return None

    def to_the_end(self) -> Iterator[Any]:
        """Every message up to where the partitions end now: the first call of a reader that has read nothing."""
        heard = time.monotonic()
        while self._open:
            waiting = len(self._open)
            if (message := self.poll(0.2)) is not None:
                yield message
            if message is not None or len(self._open) < waiting:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENCE_S:
                raise KafkaError(f"the brokers gave nothing for {_SILENCE_S:.0f} s while the topics were read back")


def outcome_id(message: Any) -> bytes | None:
    """Which input record a result or a dead letter answers, without decoding it."""
    return dict(message.headers() or ()).get("ce_id")


def audit(broker: Broker, wanted: Mapping[str, set[int]]) -> Audit:
    """Read all topics to their ends. `wanted`: per source, the numbers of the frames to draw."""
    found = Audit()
    results: dict[Place, dict[str, Any]] = {}
    topics = broker.topics
    with TopicReader(broker, topics.detections) as reader:
        for message in reader.to_the_end():
            outcome, body = _result(message)
            found.outcomes.append(outcome)
            if body["frame_id"] in map(str, wanted.get(outcome.source_id, ())):
                results[outcome.place] = body
    with TopicReader(broker, topics.dead) as reader:
        found.outcomes += [_dead_letter(message) for message in reader.to_the_end()]
    with TopicReader(broker, topics.frames) as reader:
        for message in reader.to_the_end():
            place = Place(message.partition(), message.offset())
            found.inputs.add(place)
            source, number = message.key().decode(), int(dict(message.headers())["frame-id"])
            if number in wanted.get(source, ()):
                found.shots.append(Shot(source, number, message.value(), results.get(place)))
    found.shots.sort(key=lambda shot: (list(wanted).index(shot.source_id), shot.number))
    found.committed = _committed(broker, {place.partition for place in found.inputs})
    return found


def _result(message: Any) -> tuple[Outcome, dict[str, Any]]:
    body = decode_result(message.value())
    outcome = Outcome(
        kind="skipped" if "skipped" in body else "detected",
        source_id=body["source_id"],
        place=Place(body["input"]["partition"], body["input"]["offset"]),
        published_at_ms=message.timestamp()[1],
        captured_at_ms=body["captured_at_ms"],
        batch_size=body.get("batch_size", 0),
        labels=tuple(seen["label"] for seen in body.get("detections", ())),
    )
    return outcome, body


def _dead_letter(message: Any) -> Outcome:
    letter = read_dead_letter(read_record(message))
    if letter is None:
        raise KafkaError(f"{message.topic()} holds a record that is no dead letter, at offset {message.offset()}")
    source = (letter.record.key or b"").decode(errors="replace")
    return Outcome("dead_letter", source, Place(letter.partition, letter.offset), message.timestamp()[1])


def _committed(broker: Broker, partitions: set[int]) -> dict[int, int]:
    settings = {**broker.client, "group.id": broker.topics.group, "enable.auto.commit": False}
    client = clients.consumer(broker.bootstrap_servers, settings)
    with contextlib.closing(client):
        try:
            parts = client.committed([TopicPartition(broker.topics.frames, n) for n in partitions], _ANSWER_S)
        except KafkaException as error:
            raise KafkaError(f"cannot ask for the committed offsets: {clients.text_of(error)}") from None
    return {part.partition: part.offset for part in parts if part.error is None and part.offset > 0}
