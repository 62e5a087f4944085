"""delivery: exactly_once without its output topic, on Apache Kafka."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient

import images
from brokers import Broker, unique_name
from sluice_process import Topics, produce, reading, running

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("deleted", [True, False])
def test_the_process_ends_with_the_name_of_the_topic(apache_broker: Broker, *, deleted: bool) -> None:
    """`deleted`: while the program runs; otherwise the topic was never there.

    Catches transactions that run out of time for two minutes, and an exit that blames the brokers.
    """
    topics = Topics(*(unique_name("topic") for _ in range(3)))
    for topic in [topics.frames, topics.dead, *([topics.detections] if deleted else [])]:
        apache_broker.make_topic(topic, 1)
    with running(apache_broker, topics, "simulated://0ms@1,0ms@32", delivery="exactly_once") as sluice:
        sluice.wait_ready()
        if deleted:
            produce(apache_broker, topics.frames, [("cam-1", images.jpeg(64, 48))])
            with reading(apache_broker, topics.detections) as results:
                results.read(1, 60, alive=lambda: sluice.running)
            admin = AdminClient({"bootstrap.servers": apache_broker.bootstrap_servers, "log_level": 0})
            admin.delete_topics([topics.detections])[topics.detections].result(10)
        produce(apache_broker, topics.frames, [("cam-1", images.jpeg(64, 48))] * 5)
        assert sluice.wait(60) == 5, sluice.log
    last = sluice.log.splitlines()[-1]
    assert f"to {topics.detections}: " in last
    assert "create it" in last
    assert '"restart_helps": false' in last
