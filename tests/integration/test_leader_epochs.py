"""Leaders of an input partition that change between its records and a transaction marker, on Apache Kafka."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import confluent_kafka
import pytest

import images
from apache_kafka import ApacheKafka
from brokers import APACHE, Broker, unique_name
from exactly_once import metric
from sluice_process import Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

IMAGE = images.jpeg(64, 48)
FREE = "simulated://0ms@1,0ms@32"


def committed(broker: Broker, sluice: Sluice) -> int:
    settings = {"bootstrap.servers": broker.bootstrap_servers, "group.id": sluice.group}
    with closing(confluent_kafka.Consumer(settings)) as client:
        (found,) = client.committed([confluent_kafka.TopicPartition(sluice.topics.frames, 0)], timeout=10)
        return int(found.offset)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_marker_of_a_newer_leader_does_not_look_like_a_cut_log(
    apache_cluster: Callable[..., ApacheKafka], delivery: str
) -> None:
    """Ten frames of one leader epoch, their marker of the next one, and then a third one.

    Catches: the leader epoch of the last frame in the commit of an offset behind the marker. The next owner asks where
    that epoch ends, gets an offset below its own, and ends with code 4.
    """
    cluster = apache_cluster(1)
    broker = Broker("apache", cluster.bootstrap_servers, {}, APACHE, cluster.create_topic)
    topics = Topics.on(broker, partitions=1)
    settings = {
        "bootstrap.servers": broker.bootstrap_servers,
        "transactional.id": unique_name("frames"),
        "transaction.timeout.ms": 300_000,
        "log_level": 0,
    }
    producer = confluent_kafka.Producer(settings)
    producer.init_transactions(30)
    producer.begin_transaction()
    for _ in range(10):
        producer.produce(topics.frames, IMAGE, "cam-1")
    assert producer.flush(30) == 0
    cluster.restart(1)
    producer.commit_transaction(60)
    with (
        running(broker, topics, FREE, delivery=delivery) as sluice,
        reading(broker, topics.detections) as results,
    ):
        results.read(10, 60, alive=lambda: sluice.running)
        wait_until(lambda: committed(broker, sluice) == 11, 20, "the end behind the marker to be committed")
        assert sluice.terminate() == 0, sluice.log
        sluice.start().wait_ready()
        wait_until(lambda: metric(sluice, "assigned_partitions") == 1, 30, "the partition to be assigned")
        cluster.restart(1)
        produce(broker, topics.frames, [("cam-1", IMAGE)])
        results.read(11, 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
