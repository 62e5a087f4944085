"""delivery: exactly_once while one partition of the output topic has no leader."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka.cimpl import NewTopic

import images
from apache_kafka import ApacheKafka
from brokers import APACHE, Broker, unique_name
from exactly_once import metric
from sluice_process import Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

FREE = "simulated://0ms@1,0ms@32"


@pytest.mark.timeout(400)
def test_it_waits_without_running_the_engine_again_and_goes_on_once_the_leader_is_back(
    apache_cluster: Callable[..., ApacheKafka],
) -> None:
    """The only replica of one output partition is on a broker that is killed, and comes back after two failures.

    Catches a transaction that counts as in doubt although its end was never asked for: all that is held is dropped,
    read again and run through the engine again, every ten seconds.
    """
    cluster = apache_cluster(nodes=3)
    broker = Broker("apache", cluster.bootstrap_servers, {}, APACHE, cluster.create_topic)
    topics = Topics(*(unique_name("topic") for _ in range(3)))
    cluster.create_topic(topics.frames, 2)
    cluster.create_topic(topics.dead, 1)
    admin = cluster.admin()
    replicas = [[1], [2], [2], [2]]
    output = NewTopic(
        topics.detections, num_partitions=4, replica_assignment=replicas, config={"min.insync.replicas": "1"}
    )
    admin.create_topics([output])[topics.detections].result(10)
    count = 400
    first = [(f"cam-{n % 8}", images.jpeg(64, 48)) for n in range(count)]
    with (
        running(broker, topics, FREE, delivery="exactly_once") as sluice,
        reading(broker, topics.detections) as results,
    ):
        produce(broker, topics.frames, first)
        results.read(count, 60, alive=lambda: sluice.running)
        with_leader = {message.partition() for message in results.messages}
        assert {0} < with_leader, "no source has the partition without a leader"
        cluster.kill(1)
        wait_until(lambda: cluster.leader(topics.detections, 0) == -1, 60, "the partition to have no leader")
        produce(broker, topics.frames, first)
        failed = 'transactions_total{result="failed"}'
        wait_until(lambda: sluice.running and metric(sluice, failed) >= 2, 90, "two failed transactions")
        cluster.start(1)
        back = time.monotonic()
        results.read(2 * count, 90, alive=lambda: sluice.running)
        took_s = time.monotonic() - back
        read, failures = metric(sluice, "frames_received_total"), metric(sluice, failed)
        assert sluice.terminate() == 0, sluice.log
        results.drain()
    print(f"{failures:.0f} failed transactions; all written {took_s:.1f} s after the leader was back")
    ids = [result["id"] for result in results.results()]
    assert len(ids) == len(set(ids)) == 2 * count
    assert read == 2 * count, "frames were read and run through the engine again"
    assert "rewound" not in sluice.log
