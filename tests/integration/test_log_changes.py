"""What retention, transactions and administrators do to the input log, with the real program on Apache Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

import images
from brokers import Broker, unique_name
from exactly_once import metric, settings_of
from sluice_process import Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

FREE = "simulated://0ms@1,0ms@32"
DELIVERIES = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["classic", "consumer"])
IMAGE = images.jpeg(64, 48)


def committed(broker: Broker, sluice: Sluice, partition: int = 0) -> int:
    """The offset that the group of the program has committed; negative if it has none."""
    settings = {"bootstrap.servers": broker.bootstrap_servers, "group.id": sluice.group}
    with closing(confluent_kafka.Consumer(settings)) as client:
        (found,) = client.committed([confluent_kafka.TopicPartition(sluice.topics.frames, partition)], timeout=10)
        return int(found.offset)


def delete_records(broker: Broker, topic: str, before: int) -> None:
    """What retention does: the log of partition 0 starts at `before`."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    where = confluent_kafka.TopicPartition(topic, 0, before)
    assert admin.delete_records([where])[where].result(10).low_watermark == before


@contextmanager
def transactions(broker: Broker) -> Iterator[confluent_kafka.Producer]:
    settings = {
        "bootstrap.servers": broker.bootstrap_servers,
        "transactional.id": unique_name("frames"),
        "log_level": 0,
    }
    producer = confluent_kafka.Producer(settings)
    producer.init_transactions(30)
    yield producer


def write(producer: confluent_kafka.Producer, topic: str, count: int, *, abort: bool = False) -> None:
    """One transaction with so many frames of one camera."""
    producer.begin_transaction()
    for _ in range(count):
        producer.produce(topic, IMAGE, "cam-1")
    if abort:
        assert producer.flush(10) == 0
        producer.abort_transaction(10)
    else:
        producer.commit_transaction(10)


@DELIVERIES
@PROTOCOLS
def test_a_partition_that_ends_with_markers_is_committed_to_its_end(
    apache_broker: Broker, delivery: str, protocol: str
) -> None:
    """Ten frames, a marker, five aborted frames, a marker: 17 offsets. Then retention removes all of them.

    Catches: a committed offset of 10, which is no longer in the log, so that every member of the group ends with code
    4 at its next start; and a lag that never returns to zero.
    """
    topics = Topics.on(apache_broker, partitions=1)
    options: dict[str, Any] = {"delivery": delivery, "kafka__consumer": settings_of(apache_broker, protocol)}
    with (
        transactions(apache_broker) as producer,
        running(apache_broker, topics, FREE, **options) as sluice,
        reading(apache_broker, topics.detections) as reader,
    ):
        write(producer, topics.frames, 10)
        write(producer, topics.frames, 5, abort=True)
        reader.read(10, 60, alive=lambda: sluice.running)
        wait_until(lambda: metric(sluice, "assigned_partitions") == 1 and lag(sluice) == 0, 20, "the lag to be zero")
        assert sluice.terminate() == 0, sluice.log
        assert committed(apache_broker, sluice) == 17
        delete_records(apache_broker, topics.frames, 17)
        sluice.start()
        produce(apache_broker, topics.frames, [("cam-1", IMAGE)])
        reader.read(11, 60, alive=lambda: sluice.running)
        # Again, behind frames of this assignment, and while the process lives.
        write(producer, topics.frames, 3, abort=True)
        wait_until(lambda: committed(apache_broker, sluice) == 22, 20, "the end behind aborted frames to be committed")
        assert sluice.terminate() == 0, sluice.log
    assert [result["input"]["offset"] for result in reader.results()] == [*range(10), 17]


def lag(sluice: Sluice) -> float:
    """Records of lag over all partitions, by the program's own metric; -1 while it does not show one."""
    lines = [line for line in sluice.get("/metrics")[1].splitlines() if line.startswith("sluice_lag_records{")]
    return sum(float(line.split()[-1]) for line in lines) if lines else -1.0


@DELIVERIES
def test_frames_in_flight_hold_back_the_end_of_their_partition(apache_broker: Broker, delivery: str) -> None:
    """Two frames and a marker are read at once; the engine needs a second for them. Then the process is killed.

    Catches: the end of a partition that is committed when it is read, not when all frames before it are done.
    """
    topics = Topics.on(apache_broker, partitions=1)
    options: dict[str, Any] = {"delivery": delivery, "kafka__commit_interval_ms": 50}
    with (
        transactions(apache_broker) as producer,
        running(apache_broker, topics, "simulated://1000ms@1,1000ms@32", **options) as sluice,
        reading(apache_broker, topics.detections) as reader,
    ):
        sluice.wait_ready()
        wait_until(lambda: metric(sluice, "assigned_partitions") == 1, 30, "the partition to be assigned")
        for _ in range(4):
            before = len(reader.drain(0.1))
            write(producer, topics.frames, 2)
            end = wait_until(lambda: received(sluice), 20, "the frames to be read")
            assert end
            assert committed(apache_broker, sluice) <= answered_below(reader.drain(0.05))
            reader.read(before + 2, 30, alive=lambda: sluice.running)
        wait_until(lambda: committed(apache_broker, sluice) == 12, 20, "the end to be committed")
        assert sluice.terminate() == 0, sluice.log


def received(sluice: Sluice) -> bool:
    return metric(sluice, "in_flight_frames") > 0


def answered_below(messages: list[confluent_kafka.Message]) -> int:
    """Behind the last frame that has a result, and behind its marker."""
    offsets = [int(dict(message.headers())["ce_id"].decode().rsplit("/", 1)[1]) for message in messages]
    return max(offsets, default=-2) + 2


def remake(broker: Broker, topic: str, gap_s: float) -> None:
    """Delete the topic, and create it again `gap_s` later, as soon as the brokers allow it."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(10)
    time.sleep(gap_s)  # the length of the gap is what the test is about

    def made() -> bool:
        try:
            admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(10)
        except KafkaException as error:
            if error.args[0].code() != confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            return False  # the old one is still being deleted
        return True

    wait_until(made, 10, "the topic to be created again")


@pytest.mark.parametrize(
    ("protocol", "delivery", "count", "gap_s"),
    [
        ("classic", "at_least_once", 900, 0.0),
        ("classic", "exactly_once", 900, 0.0),
        ("classic", "at_least_once", 100, 0.5),  # fewer frames than the old offset
        ("consumer", "at_least_once", 100, 0.0),
        ("consumer", "exactly_once", 900, 0.5),
    ],
)
def test_a_topic_that_is_created_again_is_read_from_its_beginning(
    apache_broker: Broker, protocol: str, delivery: str, count: int, gap_s: float
) -> None:
    """300 frames are done, the topic is made again under the running process, and new frames come at once.

    The process may end with code 4, and is started again, as a pod is.
    Catches: reading on in the new topic at the offset of the old one; a last commit of the old offset into the new
    topic; an old offset beyond the end of the new topic, which no restart gets over. Under exactly_once: new frames
    that are answered before the process notices, and once more after its restart.
    """
    topics = Topics.on(apache_broker, partitions=1)
    options: dict[str, Any] = {"delivery": delivery, "kafka__consumer": settings_of(apache_broker, protocol)}
    with (
        running(apache_broker, topics, FREE, kafka__commit_interval_ms=100, **options) as sluice,
        reading(apache_broker, topics.detections) as reader,
    ):
        produce(apache_broker, topics.frames, [("cam-1", IMAGE)] * 300)
        reader.read(300, 60, alive=lambda: sluice.running)
        wait_until(lambda: committed(apache_broker, sluice) == 300, 20, "the old topic to be committed")
        remake(apache_broker, topics.frames, gap_s)
        produce(apache_broker, topics.frames, [("cam-1", images.jpeg(80, 48))] * count)
        codes: list[int] = []

        def new_offsets() -> set[int]:
            if not sluice.running:
                codes.append(sluice.wait())
                sluice.start()
            reader.drain(0.2)
            return {result["input"]["offset"] for result in reader.results() if result["width"] == 80}

        wait_until(lambda: len(new_offsets()) >= count, 90, "every frame of the new topic to have a result")
        assert sluice.terminate() == 0, sluice.log
        reader.drain()
    assert codes in ([], [4]), sluice.log
    offsets = [result["input"]["offset"] for result in reader.results() if result["width"] == 80]
    assert set(offsets) == set(range(count))
    if delivery == "exactly_once":
        assert offsets == list(range(count))
    assert committed(apache_broker, sluice) >= count
