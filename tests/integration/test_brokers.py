"""What Sluice relies on, on both brokers, with the settings that it uses.

Where the embedded broker cannot do what Apache Kafka does, `brokers.Capabilities` says so, and a test here compares
the table with what the broker really does: nothing is skipped, and a broker that learns something fails the table.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from brokers import Broker, unique_name
from group_member import GroupMember
from kafka_clients import (
    READ_SECONDS,
    committed,
    consumer_settings,
    member,
    new_producer,
    read,
    read_all,
    send,
    wait_polling,
)
from waiting import wait_until

CAPTURED_AT_MS = 1_700_000_000_123


def test_a_record_comes_back_byte_for_byte(broker: Broker, topic: Callable[..., str]) -> None:
    """Catches: a broker that rewrites keys, drops repeated or null headers, or stamps its own time."""
    name = topic()
    headers = [("captured-at-ms", b"17"), ("raw", b"\x00\xff\x80"), ("raw", b""), ("none", None)]
    send(broker, name, bytes(range(256)), key="cam-ü".encode(), headers=headers, timestamp=CAPTURED_AT_MS)
    (record,) = read_all(broker, name, 1)
    assert (record.key(), record.value()) == ("cam-ü".encode(), bytes(range(256)))
    assert record.headers() == headers
    assert record.timestamp() == (1, CAPTURED_AT_MS)  # 1 is TIMESTAMP_CREATE_TIME


def test_empty_and_null_values_and_keys_stay_what_they_are(broker: Broker, topic: Callable[..., str]) -> None:
    """Catches: a null that comes back empty, an empty record that never comes back."""
    name = topic()
    records = [(None, b"x"), (b"", b""), (b"k", b""), (b"k", None), (None, None), (b"last", b"x")]
    producer = new_producer(broker)
    for key, value in records:
        producer.produce(name, value, key)
    assert producer.flush(READ_SECONDS) == 0
    assert [(record.key(), record.value()) for record in read_all(broker, name, len(records))] == records


def test_a_frame_of_15_mb_passes(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic()
    frame = os.urandom(15_000_000)
    send(broker, name, frame, b"after")
    assert [record.value() for record in read_all(broker, name, 2)] == [frame, b"after"]


def test_an_idempotent_producer_keeps_order_and_reports_every_delivery(
    broker: Broker, topic: Callable[..., str]
) -> None:
    """Catches: lost or repeated delivery reports, and offsets in them that are not those that a reader sees."""
    name = topic()
    reported: dict[bytes | None, int | None] = {}
    failed: list[KafkaError] = []

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)
            return
        assert message.value() not in reported
        reported[message.value()] = message.offset()

    producer = new_producer(broker)
    sent = [b"%d" % number for number in range(1000)]
    for value in sent:
        producer.produce(name, value, key=b"cam", on_delivery=on_delivery)
        producer.poll(0)
    assert producer.flush(READ_SECONDS) == 0
    records = read_all(broker, name, len(sent))
    assert failed == []
    assert [record.value() for record in records] == sent
    assert reported == {record.value(): record.offset() for record in records}


def test_a_lone_record_does_not_wait_for_company(broker: Broker, topic: Callable[..., str]) -> None:
    """The demo's latencies are those of Sluice, not of a broker that sleeps through a fetch."""
    name = topic()
    producer = new_producer(broker)
    with closing(Consumer(consumer_settings(broker))) as consumer:
        consumer.assign([TopicPartition(name, 0, OFFSET_BEGINNING)])
        seconds = []
        for _ in range(11):  # the first waits for the connections
            start = time.perf_counter()
            producer.produce(name, b"x")
            producer.poll(0)
            read(consumer, 1)
            seconds.append(time.perf_counter() - start)
    assert sorted(seconds[1:])[5] < 0.1, seconds


def test_a_first_join_is_quick(broker: Broker, topic: Callable[..., str]) -> None:
    """Catches: client settings that make a broker take 23 s."""
    name = topic(partitions=3)
    with member(broker, name) as consumer:
        wait_polling(consumer, consumer.assignment, broker.capabilities.join_seconds, "the first assignment")
        assert {each.partition for each in consumer.assignment()} == {0, 1, 2}


def test_stored_offsets_are_committed_soon_and_no_others(broker: Broker, topic: Callable[..., str]) -> None:
    """Catches: a commit of what was polled but not stored. The commit is seen from outside, as a monitor sees it."""
    name = topic()
    send(broker, name, *[b"x"] * 10)
    group = unique_name("group")
    monitor = Consumer(consumer_settings(broker, group_id=group))  # in the group, but never joins it
    with closing(monitor), member(broker, name, group_id=group) as consumer:
        read(consumer, 10)
        assert committed(monitor, name) < 0
        consumer.store_offsets(offsets=[TopicPartition(name, 0, 4)])
        wait_polling(consumer, lambda: committed(monitor, name) == 4, 5, "offset 4 to be committed")


def test_a_restarted_consumer_goes_on_at_its_commit(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic()
    send(broker, name, *[b"%d" % number for number in range(10)])
    group = unique_name("group")
    with member(broker, name, group_id=group) as consumer:
        read(consumer, 10)
        consumer.store_offsets(offsets=[TopicPartition(name, 0, 7)])
        consumer.commit(asynchronous=False)
    with member(broker, name, group_id=group) as consumer:
        assert committed(consumer, name) == 7
        assert [record.value() for record in read(consumer, 3)] == [b"7", b"8", b"9"]


def test_partitions_move_one_by_one_when_a_member_comes_and_when_it_is_killed(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    """Cooperative-sticky: the first member keeps its half without a break, and gets the other half back."""
    name = topic(partitions=4)
    settings = consumer_settings(broker)
    table = broker.capabilities
    everything = {0, 1, 2, 3}
    with ExitStack() as stack:
        first = stack.enter_context(GroupMember(name, settings, tmp_path / "first"))
        wait_until(lambda: first.owned == everything, table.join_seconds + 5, "the first member to own all partitions")
        second = stack.enter_context(GroupMember(name, settings, tmp_path / "second"))
        wait_until(
            lambda: len(first.owned) == 2 and first.owned | second.owned == everything,
            table.share_seconds,
            "each member to own two partitions",
        )
        moved = second.owned
        second.kill()
        wait_until(lambda: first.owned == everything, table.takeover_seconds, "the first member to own all again")
        changes: collections.Counter[tuple[str, int]] = collections.Counter()
        for event in first.events:
            changes.update({(event["event"], partition): 1 for partition in event["partitions"]})
    assert changes == {
        **{("assigned", partition): 1 for partition in everything},
        **{("revoked", partition): 1 for partition in moved},
        **{("assigned", partition): 2 for partition in moved},
    }


def test_table_transactions(broker: Broker, topic: Callable[..., str]) -> None:
    """Both brokers answer every call. Only one of them hides what was aborted."""
    name = topic()
    producer = new_producer(broker, transactional_id=unique_name("txn"))
    producer.init_transactions(READ_SECONDS)
    for value, finish in (
        (b"committed", producer.commit_transaction),
        (b"aborted", producer.abort_transaction),
        (b"end", producer.commit_transaction),
    ):
        producer.begin_transaction()
        producer.produce(name, value)
        assert producer.flush(READ_SECONDS) == 0  # or the abort drops it before it is sent
        finish(READ_SECONDS)
    with closing(Consumer(consumer_settings(broker, isolation_level="read_committed"))) as consumer:
        consumer.assign([TopicPartition(name, 0, OFFSET_BEGINNING)])
        values: list[bytes | None] = []
        while not values or values[-1] != b"end":
            values += [record.value() for record in read(consumer, 1)]
    visible = [b"committed", b"end"] if broker.capabilities.transactions else [b"committed", b"aborted", b"end"]
    assert values == visible


def test_table_end_offsets_and_times(broker: Broker, topic: Callable[..., str]) -> None:
    """The high watermark that comes with fetched records is exact everywhere; lag must be computed from it."""
    name = topic()
    producer = new_producer(broker, linger_ms=500)
    for number in range(10):
        producer.produce(name, b"x", timestamp=CAPTURED_AT_MS + number)
    assert producer.flush(READ_SECONDS) == 0
    partition = TopicPartition(name, 0)
    with closing(Consumer(consumer_settings(broker))) as consumer:
        consumer.assign([TopicPartition(name, 0, OFFSET_BEGINNING)])
        read(consumer, 10)
        assert consumer.get_watermark_offsets(partition, cached=True)[1] == 10
        asked = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        end = asked.list_offsets({partition: OffsetSpec.latest()})[partition].result(10).offset
        (found,) = consumer.offsets_for_times([TopicPartition(name, 0, CAPTURED_AT_MS + 5)], timeout=10)
    assert (end == 10) is broker.capabilities.exact_end_offsets, end
    assert (found.offset == 5) is broker.capabilities.offsets_by_time, found


def test_table_consumer_protocol(broker: Broker, topic: Callable[..., str]) -> None:
    """KIP-848. Setting session timeout, heartbeat or strategy is an error there: the broker has them."""
    name = topic(partitions=3)
    ours = consumer_settings(broker)
    for refused in ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"):
        del ours[refused]
    with closing(Consumer({**ours, "group.protocol": "consumer"})) as consumer:
        consumer.subscribe([name])

        def joins() -> bool:
            try:
                wait_polling(consumer, consumer.assignment, broker.capabilities.join_seconds, "an assignment")
            except TimeoutError:
                return False
            return {each.partition for each in consumer.assignment()} == {0, 1, 2}

        assert joins() is broker.capabilities.consumer_protocol


def test_table_delete_records(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic()
    send(broker, name, *[b"x"] * 10)
    before = TopicPartition(name, 0, 5)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    future = admin.delete_records([before], request_timeout=5)[before]
    if broker.capabilities.delete_records:
        assert future.result(10).low_watermark == 5
        assert read_all(broker, name, 1)[0].offset() == 5
    else:
        with pytest.raises(KafkaException):
            future.result(10)
        assert read_all(broker, name, 1)[0].offset() == 0


def test_table_unknown_topics(broker: Broker) -> None:
    """A mistyped topic is found out on Apache Kafka; on the embedded broker it comes to be."""
    name = unique_name("unknown")
    delivered: list[bool] = []
    producer = new_producer(broker, message_timeout_ms=3000, topic_metadata_propagation_max_ms=1000)
    producer.produce(name, b"x", on_delivery=lambda error, _: delivered.append(error is None))
    assert producer.flush(READ_SECONDS) == 0
    assert delivered == [broker.capabilities.creates_topics_by_itself]
