"""What the brokers hold after a run: the input records, their outcomes, and the group's commits."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import confluent_kafka

import pictures
from consumer.messages import decode_result, read_dead_letter, read_record
from consumer.types import Record
from history import Commit, Content, Delivery, InputId, Outcome, Sent
from recorder import Observer, beginnings, input_id, isolation_of, key_of, position_of, reader
from sluice_process import Topics

_ERRORS = "__connect.errors."


def read_inputs(bootstrap: str, topics: Topics) -> list[Sent]:
    """The whole input topic, with what has to become of each record."""
    messages = _read_all(bootstrap, [topics.frames], "read_uncommitted")
    return [
        Sent(InputId(message.partition(), message.offset()), key_of(message), _expected(message))
        for message in messages
    ]


def _expected(message: confluent_kafka.Message) -> Content:
    """What the outcome of a record has to say. One without a key names no source, whatever its picture is."""
    content = replace(pictures.expected(message.value()), written_ms=message.timestamp()[1])
    if message.key() is not None:
        return content
    return Content("rejected", "bad_source_id", frame=content.frame, written_ms=content.written_ms)


def read_outcomes(bootstrap: str, topics: Topics, delivery: Delivery, observer: Observer) -> Iterator[Outcome]:
    """The whole output and dead-letter topics, each partition in its order, with the arrivals that were observed."""
    now = time.monotonic()
    for message in _read_all(bootstrap, [topics.detections, topics.dead], isolation_of(delivery)):
        headers = dict(message.headers() or ())
        body = decode_result(message.value()) if "ce_type" in headers else None
        # A dead letter holds the frame as it was, and does not say who wrote it.
        frame = None if body else _original(message)
        yield Outcome(
            input_id(message),
            (frame.key or b"").decode() if frame else key_of(message),
            position_of(message),
            writer=str(body["model"]["name"]) if body else "",
            published_ms=int(body["published_at_ms"]) if body else 0,
            arrived_s=observer.arrived_s.get(position_of(message), now),
            content=content_of_letter(frame, message.value(), headers) if frame else content_of_result(body or {}),
        )


def _original(message: confluent_kafka.Message) -> Record:
    """The frame of a dead letter, which has a key and a timestamp of its own."""
    letter = read_dead_letter(read_record(message))
    assert letter is not None, f"not a dead letter: {position_of(message)}"
    return letter.record


def content_of_result(body: Mapping[str, Any]) -> Content:
    """Of a detection or skipped message."""
    of = InputId(body["input"]["partition"], body["input"]["offset"])
    if "skipped" in body:
        return Content("skipped", str(body["skipped"]["reason"]), of=of)
    boxes = tuple(tuple(found["box"]) for found in body["detections"])
    return Content("detected", size=(body["width"], body["height"]), boxes=boxes, of=of)


def content_of_letter(original: Record, value: bytes | None, headers: Mapping[str, bytes | None]) -> Content:
    """Of a dead letter, which returns `original`. One that was cut says itself which frame it was."""

    def text(name: str) -> str:
        return (headers.get(name) or b"").decode()

    cut = text("sluice-truncated") == "true"
    frame = text("sluice-original-sha256") if cut else hashlib.sha256(value or b"").hexdigest()
    of = InputId(int(text(_ERRORS + "partition")), int(text(_ERRORS + "offset")))
    reason = text(_ERRORS + "exception.class.name")
    return Content("rejected", reason, frame=frame, of=of, written_ms=original.timestamp_ms or 0)


def read_commits(bootstrap: str, group: str) -> list[Commit]:
    """What the group ever committed, as the brokers' own log of it says; transactions that were aborted left out."""
    return [
        commit
        for message in _read_all(bootstrap, ["__consumer_offsets"], "read_committed")
        if (commit := parse_commit(message.key(), message.value(), group)) is not None
    ]


def parse_commit(key: bytes | None, value: bytes | None, group: str) -> Commit | None:
    """A record of `__consumer_offsets`, where it is a commit of that group (OffsetCommitKey 0 and 1 in Kafka)."""
    if key is None or value is None or struct.unpack_from(">h", key)[0] > 1:
        return None
    at, texts = 2, []
    for _ in range(2):
        (size,) = struct.unpack_from(">h", key, at)
        texts.append(key[at + 2 : at + 2 + size].decode())
        at += 2 + size
    (partition,), (offset,) = struct.unpack_from(">i", key, at), struct.unpack_from(">q", value, 2)
    return Commit(partition, offset) if texts[0] == group else None


def _read_all(
    bootstrap: str, names: Sequence[str], isolation: str, timeout_s: float = 60.0
) -> Iterator[confluent_kafka.Message]:
    """Topics from their beginnings to where their partitions end for a reader of that isolation."""
    client = reader(bootstrap, isolation, **{"enable.partition.eof": True})
    try:
        unfinished = [each for name in names for each in beginnings(client, name)]
        client.assign(unfinished)
        left = {(each.topic, each.partition) for each in unfinished}
        deadline = time.monotonic() + timeout_s
        while left:
            assert time.monotonic() < deadline, f"cannot read to the end within {timeout_s:g} s: {sorted(left)}"
            message = client.poll(0.5)
            if message is None:
                continue
            if (error := message.error()) is None:
                yield message
            elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:  # the library's own name
                left.discard((message.topic(), message.partition()))
    finally:
        client.close()
