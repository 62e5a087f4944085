"""Consumers and producers with the settings that Sluice uses, and small steps with them, for tests on brokers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from brokers import Broker, unique_name
from waiting import wait_until

LARGEST = 20_000_000
READ_SECONDS = 20


def consumer_settings(broker: Broker, **more: Any) -> dict[str, Any]:
    return {
        "group.id": unique_name("group"),
        "partition.assignment.strategy": "cooperative-sticky",
        "enable.auto.offset.store": False,
        "auto.commit.interval.ms": 200,
        "auto.offset.reset": "earliest",
        "fetch.queue.backoff.ms": 10,
        "fetch.message.max.bytes": LARGEST,
        "fetch.max.bytes": 3 * LARGEST,
        "receive.message.max.bytes": 4 * LARGEST,
        **broker.client_settings,
        "bootstrap.servers": broker.bootstrap_servers,
        **{name.replace("_", "."): value for name, value in more.items()},
    }


def admin(broker: Broker) -> AdminClient:
    return AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})


def alter_topic(admin: AdminClient, topic: str, **settings: Any) -> None:
    """Change settings of a topic (`_` for `.`), as an administrator does at run time."""
    entries = [
        ConfigEntry(name.replace("_", "."), str(value), incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
    for answer in admin.incremental_alter_configs([resource]).values():
        answer.result(15)


def new_producer(broker: Broker, **more: Any) -> Producer:
    settings = {"enable.idempotence": True, "acks": "all", "message.max.bytes": LARGEST, "linger.ms": 0}
    more = {name.replace("_", "."): value for name, value in more.items()}
    return Producer({**settings, "bootstrap.servers": broker.bootstrap_servers, **more})


@contextmanager
def member(broker: Broker, topic: str, **more: Any) -> Iterator[Consumer]:
    """A consumer in this process that joins its group as it is polled."""
    with closing(Consumer(consumer_settings(broker, **more))) as consumer:
        consumer.subscribe([topic])
        yield consumer


def send(broker: Broker, topic: str, *values: bytes | None, **more: Any) -> None:
    producer = new_producer(broker)
    for value in values:
        producer.produce(topic, value, **more)
    assert producer.flush(READ_SECONDS) == 0


def read(consumer: Consumer, count: int, timeout: float = READ_SECONDS) -> list[Message]:
    """The next `count` records. Compares with None: a record with an empty value is false, as its length is 0."""
    seen: list[Message] = []
    deadline = time.monotonic() + timeout
    while len(seen) < count:
        assert time.monotonic() < deadline, f"{len(seen)} of {count} records after {timeout} s"
        message = consumer.poll(0.1)
        if message is not None:
            assert message.error() is None, message.error()
            seen.append(message)
    return seen


def read_all(broker: Broker, topic: str, count: int, **more: Any) -> list[Message]:
    """The first `count` records of partition 0, without a group."""
    with closing(Consumer(consumer_settings(broker, **more))) as consumer:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        return read(consumer, count)


def committed(consumer: Consumer, topic: str, partition: int = 0) -> int:
    offset: int = consumer.committed([TopicPartition(topic, partition)], timeout=10)[0].offset
    return offset


def group_offset(broker: Broker, group: str, topic: str, partition: int = 0) -> int:
    """The first offset that the group would read again; 0 before any commit."""
    with closing(Consumer(consumer_settings(broker, group_id=group))) as consumer:
        return max(0, committed(consumer, topic, partition))


def ends(broker: Broker, topic: str) -> int:
    """Where the partitions of a topic end, all together: records and the marks of transactions."""
    with closing(Consumer(consumer_settings(broker))) as consumer:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        return sum(consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)[1] for n in partitions)


def wait_polling(consumer: Consumer, predicate: Callable[[], object], timeout: float, what: str) -> None:
    """Wait for a state that only comes while the consumer polls."""

    def poll_and_look() -> object:
        consumer.poll(0.05)
        return predicate()

    wait_until(poll_and_look, timeout, what, interval=0)
