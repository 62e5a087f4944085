"""Reads the newest frames of the input topics, and those that arrive meanwhile. Joins no group, commits nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from confluent_kafka import KafkaError as Code
from confluent_kafka import TopicPartition as Place

from consumer.errors import KafkaError
from consumer.messages import parse_frame, read_record
from consumer.tools import clients
from consumer.tools.doctor.cluster import Cluster, Logs
from consumer.types import Receipt, TopicPartition

_MAX_BYTES: Final = 64 * 2**20
_MAX_S: Final = 10.0
LIVE_S: Final = 1.5  # how long to wait for new frames


class SampledFrame(NamedTuple):
    """One frame of the sample.

    Attributes:
        by_broker: the timestamp is from the broker (LogAppendTime), not from the producer.
        ahead_ms: the timestamp minus the local clock when the frame was read.
        live: the frame was written while the sample was read.
    """

    partition: TopicPartition
    source_id: str
    key: bytes | None
    timestamp_ms: int | None
    by_broker: bool
    ahead_ms: int
    live: bool


def sample(cluster: Cluster, logs: Logs, each: int) -> list[SampledFrame]:
    """Read the last `each` frames of every partition, or fewer if they are large, and those that arrive meanwhile.

    Raises:
        KafkaError: a topic cannot be read.
    """
    ends = {place: end for place, (_, end) in logs.items()}
    starts = [Place(p.topic, p.partition, max(first, end - each)) for p, (first, end) in logs.items()]
    settings = {"auto.offset.reset": "earliest", "fetch.wait.max.ms": 100, "enable.partition.eof": True}
    with cluster.reader(settings) as client:
        client.assign(starts)
        found: list[SampledFrame] = []
        size, until = 0, time.monotonic() + _MAX_S
        unread = {place for place, (first, end) in logs.items() if end > first}
        live_until: float | None = None if unread else time.monotonic() + LIVE_S
        while time.monotonic() < min(until, live_until or until) and size < _MAX_BYTES:
            message = client.poll(0.1)
            if message is None:
                continue
            if (error := message.error()) is not None:
                if error.code() == Code._PARTITION_EOF:  # noqa: SLF001
                    unread.discard(_place(message))
                elif clients.is_permanent(error):
                    raise KafkaError(f"cannot read the newest frames: {error.str()}")
            else:
                size += len(message)
                found.extend(_frame(message, ends))
            if not unread and live_until is None:
                live_until = time.monotonic() + LIVE_S
    return found


def _frame(message: Message, ends: Mapping[TopicPartition, int]) -> Iterator[SampledFrame]:
    """Yield the frame, or nothing if the record is not a frame."""
    now_ms = time.time_ns() // 1_000_000
    place, offset = _place(message), message.offset() or 0
    record = read_record(message)
    frame = parse_frame(record, Receipt(place, offset, 0), 0.0)
    if frame.verdict is None:
        yield SampledFrame(
            partition=place,
            source_id=frame.source_id,
            key=record.key,
            timestamp_ms=record.timestamp_ms,
            by_broker=message.timestamp()[0] == TIMESTAMP_LOG_APPEND_TIME,
            ahead_ms=(record.timestamp_ms or now_ms) - now_ms,
            live=offset >= ends[place],
        )


def _place(message: Message) -> TopicPartition:
    topic, partition = message.topic(), message.partition()
    assert topic is not None and partition is not None  # noqa: PT018 - the stubs make every part optional
    return TopicPartition(topic, partition)
