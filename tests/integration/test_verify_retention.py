"""`sluice verify` and retention: what is deleted cannot be told from what never was, and is called neither."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from apache_kafka import KafkaCluster
from brokers import Broker
from consumer.errors import KafkaError
from consumer.tools.verify.brokers import Brokers
from verify_topics import ByHand, delete, run_in_process

pytestmark = pytest.mark.kafka


@pytest.fixture
def by_hand(apache_broker: Broker) -> ByHand:
    return ByHand(apache_broker)


def test_what_retention_has_deleted_raises_no_alarm(apache_kafka: KafkaCluster, by_hand: ByHand) -> None:
    """Catches: outcomes and records that are gone and are called lost, invented or out of order."""
    by_hand.send(6).result(0, 1, 2, 3, 4, 5).commit(6)
    delete(apache_kafka, by_hand.topics.frames, 2)
    found = by_hand.verify(code=0)
    assert (found["counts"]["records"], found["counts"]["ignored"]["outside_range"]) == (4, 2)
    delete(apache_kafka, by_hand.topics.detections, 4)
    found = by_hand.verify(code=0)
    assert (found["counts"]["answered"], found["counts"]["unjudged"]) == (2, 2)
    assert found["notes"]


def test_what_retention_deletes_during_the_check_raises_no_alarm(apache_kafka: KafkaCluster, by_hand: ByHand) -> None:
    """Catches: outcomes that were there when the check began, and are called lost."""
    by_hand.send(6).result(0, 1, 2, 3, 4, 5).commit(6)

    def progress(what: str, passed: int, total: int) -> None:
        if what == "reading the input" and passed:
            delete(apache_kafka, by_hand.topics.detections, 4)

    report = run_in_process(by_hand, progress)
    assert report.result.clean
    assert (report.result.partitions[0].answered, report.result.partitions[0].unjudged) == (2, 4)
    brokers = Brokers(by_hand.broker.bootstrap_servers, {}, threading.Event())
    with (
        brokers.reader("read_committed", skips_deleted=False) as reader,
        pytest.raises(KafkaError, match="retention has deleted records just before they were read"),
    ):
        list(reader.scan(by_hand.topics.detections, {0: (0, 6)}))


def test_a_loss_that_is_younger_than_what_retention_has_deleted_is_found(
    apache_kafka: KafkaCluster, apache_topic: Callable[..., str], by_hand: ByHand
) -> None:
    """Catches: a dead-letter topic whose old letters are gone, which excuses every loss from then on."""
    by_hand.topics = replace(by_hand.topics, dead=apache_topic(retention_ms=3_600_000))
    by_hand.send(3).letter(0, 1, 2)
    delete(apache_kafka, by_hand.topics.dead, 3)
    for n in range(3):  # now, and not in 2023
        by_hand.producer.produce(by_hand.topics.frames, b"image", f"cam-{n}", partition=0)
    assert by_hand.producer.flush(30) == 0
    by_hand.result(3, 5).commit(6)
    found = by_hand.verify(code=1)
    assert found["violations"][0]["input"] == f"{by_hand.topics.frames}/0/4"
    assert (found["counts"]["missing"], found["counts"]["unjudged"]) == (1, 3)
