"""delivery: exactly_once with a member that dies in an open transaction, on Apache Kafka, with the real program.

The brokers keep that transaction open for `transaction.timeout.ms`. Until then the group's offsets are not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from apache_kafka import ApacheKafka
from brokers import APACHE, Broker, unique_name
from exactly_once import ENGINE, EXACTLY_ONCE, check_once_and_in_order, frames
from network import hold_end_txn
from proxy import Proxy
from sluice_process import Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

# Longer than the 30 s that a coordinator which is away is waited for.
OPEN_S = 40.0


def test_a_survivor_waits_for_the_transaction_of_a_dead_member(apache_cluster: Callable[..., ApacheKafka]) -> None:
    """Catches a survivor that gives up (exit code 4) before the brokers end the transaction, and one that does not wait
    for its end: the commit may be on its way, and then it would repeat what the transaction holds."""
    cluster = apache_cluster(proxied=True, transaction_abort_timed_out_transaction_cleanup_interval_ms=200)
    direct = Broker("apache", cluster.bootstrap_servers, {}, APACHE, cluster.create_topic)
    sent, topics = frames(600), Topics.on(direct)
    produce(direct, topics.frames, sent)
    options = {
        **EXACTLY_ONCE,
        "kafka__consumer": {"session.timeout.ms": 1500, "heartbeat.interval.ms": 300},
        "kafka__producer": {"transaction.timeout.ms": int(OPEN_S * 1000)},
    }
    with (
        Proxy(cluster.routes) as proxy,
        running(
            replace(direct, bootstrap_servers=proxy.bootstrap_servers),
            topics,
            ENGINE,
            **options,
            kafka__transactional_id=unique_name("dead"),
        ) as dead,
        reading(direct, topics.detections) as results,
        reading(direct, topics.dead) as letters,
    ):
        results.read(100, 60, alive=lambda: dead.running)
        with proxy.injected(hold_end_txn()) as fault:  # lifted at the end: the late commit must not count
            wait_until(lambda: fault.hits, 30, "a transaction that is about to end")
            dead.kill()
            options |= {"kafka__group_id": dead.group, "kafka__transactional_id": unique_name("survivor")}
            with running(direct, topics, ENGINE, **options) as survivor:

                def alive() -> bool:
                    assert survivor.running, f"ended with {survivor.wait()}\n{survivor.log}"
                    return True

                results.read(sum(value != b"damaged" for _, value in sent), OPEN_S + 25, alive)
                assert survivor.log.count("waiting for the committed offsets") == 1
                assert survivor.terminate() == 0, survivor.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)
