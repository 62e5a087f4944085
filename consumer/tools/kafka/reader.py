"""Records of a topic, from where they begin to where they ended when the reading began. Commits nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka import KafkaError as Code

from consumer.errors import KafkaError
from consumer.messages import read_record
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.types import Record

_SILENCE_S: Final = 30.0  # a broker that has said nothing for so long is gone
_DEFAULTS: Final = {
    "auto.offset.reset": "earliest",  # what retention has removed is not there to be read
    "fetch.wait.max.ms": "100",
}
_OURS: Final = {
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "enable.partition.eof": "true",
    # A dead letter of an aborted transaction is none, and progress in a transaction that is still open is waited for.
    "isolation.level": "read_committed",
}


class Found(NamedTuple):
    """One record and its place."""

    partition: int
    offset: int
    record: Record


@contextmanager
def reader(bootstrap_servers: str, settings: Mapping[str, Any], group: str | None = None) -> Iterator[Consumer]:
    """A consumer that joins no group. `group` is the one whose committed offsets it is used for, if any."""
    name = {"group.id": group or f"sluice-dlq-{uuid.uuid4()}"}  # the client asks for one; no broker hears of it
    client = clients.consumer(bootstrap_servers, _DEFAULTS | dict(settings) | name | _OURS)
    try:
        yield client
    finally:
        client.close()


def scan(
    client: Consumer, topic: str, starts: Mapping[int, int], stop: threading.Event, silence_s: float = _SILENCE_S
) -> Iterator[Found]:
    """The records of these partitions from these offsets on, each partition in order, until `stop` or the end.

    The end is where a partition ended when its first record came: what is written later is not read, so it ends however
    fast letters come in. Raises KafkaError where the topic cannot be read.
    """
    client.assign([TopicPartition(topic, number, offset) for number, offset in starts.items()])
    ends: dict[int, int] = {}
    heard = time.monotonic()
    while starts.keys() - {number for number, end in ends.items() if end < 0} and not stop.is_set():
        message = client.poll(0.2)
        if message is None:
            if time.monotonic() - heard > silence_s:
                raise KafkaError(f"topic {printable(topic)}: the brokers have been silent for {silence_s:.0f} s")
            continue
        heard = time.monotonic()
        number, offset = message.partition(), message.offset()
        if (error := message.error()) is not None:
            if error.code() == Code._PARTITION_EOF and number is not None:  # noqa: SLF001
                ends[number] = -1
            elif clients.is_permanent(error):
                raise KafkaError(f"topic {printable(topic)}: {printable(error.str())}")
            continue
        if number is None or offset is None or ends.get(number, 0) < 0:
            continue
        # Not asked for beforehand: the embedded broker answers that question wrongly, and Apache Kafka no better.
        end = ends.setdefault(number, _end(client, topic, number))
        if offset >= end:
            ends[number] = -1
            continue
        yield Found(number, offset, read_record(message))
        if offset + 1 >= end:
            ends[number] = -1


def scan_all(client: Consumer, topic: str, stop: threading.Event) -> Iterator[Found]:
    """All records of all partitions."""
    return scan(client, topic, dict.fromkeys(clients.partitions_of(client, topic), OFFSET_BEGINNING), stop)


def record_at(client: Consumer, topic: str, partition: int, offset: int) -> Record | None:
    """The record at one place; None where there is none."""
    if partition not in clients.partitions_of(client, topic):
        return None
    found = next(scan(client, topic, {partition: offset}, threading.Event(), clients.CONTACT_TIMEOUT_S), None)
    return found.record if found is not None and found.offset == offset else None


def _end(client: Consumer, topic: str, partition: int) -> int:
    """Where the partition ended as the latest fetch saw it."""
    known = client.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
    return known[1] if known is not None and known[1] > 0 else 2**63 - 1  # then the end is where it says so
