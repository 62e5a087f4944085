"""Apache Kafka alone, for what the embedded broker cannot do or does too slowly."""

from __future__ import annotations

import pytest

from apache_kafka import KafkaCluster
from brokers import APACHE, Broker


@pytest.fixture
def apache_broker(apache_kafka: KafkaCluster) -> Broker:
    """One node for the whole session: do not harm it."""
    return Broker(
        name="apache",
        bootstrap_servers=apache_kafka.bootstrap_servers,
        client_settings={"session.timeout.ms": 6000, "heartbeat.interval.ms": 500},
        capabilities=APACHE,
        make_topic=apache_kafka.create_topic,
    )
