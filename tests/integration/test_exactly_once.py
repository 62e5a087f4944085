"""delivery: exactly_once on Apache Kafka, with the real program. The readers are read_committed, librdkafka's default.

What a `read_committed` reader must see: each frame exactly once, in order per source, whatever happens to the program,
to its place in the group, and to the broker.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from apache_kafka import ApacheKafka
from brokers import APACHE, EMBEDDED, Broker, unique_name
from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker
from exactly_once import ENGINE, EXACTLY_ONCE, check_once_and_in_order, frames, metric, settings_of
from kafka_clients import ends
from network import hold_end_txn
from proxy import Proxy
from sluice_process import Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

# 267 frames/s at most: 5,000 frames take longer than the start of a second process on a busy machine.
SLOW = "simulated://30ms@1,120ms@32"

PROTOCOLS = pytest.mark.parametrize("protocol", ["classic", "consumer"])


@pytest.mark.timeout(300)
def test_sigkill_in_mid_stream_repeats_nothing_and_loses_nothing(apache_broker: Broker) -> None:
    """Six kills. A static member (group.instance.id) with the same transactional ID comes back at once.

    Catches: offsets committed beside the transaction, outcomes above the committed offset, a start that does not wait
    for what the dead process left open.
    """
    sent, topics, chance = frames(3000), Topics.on(apache_broker), random.Random(7)
    options = {**EXACTLY_ONCE, "kafka__consumer": {**apache_broker.client_settings, "group.instance.id": "pod-0"}}
    produce(apache_broker, topics.frames, sent)
    with (
        running(apache_broker, topics, ENGINE, **options) as sluice,
        reading(apache_broker, topics.detections) as results,
        reading(apache_broker, topics.dead) as letters,
    ):
        for _ in range(6):
            results.read(len(results.messages) + chance.randint(50, 350), 60, alive=lambda: sluice.running)
            sluice.kill()
            sluice.start()
        results.read(3000 - 60, 90, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)


@PROTOCOLS
def test_partitions_move_under_load_without_a_loss_or_a_repeat(apache_broker: Broker, protocol: str) -> None:
    """A second consumer joins, then the first is told to go, both in mid-stream.

    Catches: outcomes committed for a partition that has gone, a revocation or a drain that gives up what it finished
    without its transaction, a stale generation that is taken for a failed broker.
    """
    sent, topics = frames(4000), Topics.on(apache_broker)
    options = {**EXACTLY_ONCE, "kafka__consumer": settings_of(apache_broker, protocol)}
    produce(apache_broker, topics.frames, sent)
    with (
        running(apache_broker, topics, ENGINE, **options, kafka__transactional_id=unique_name("first")) as first,
        reading(apache_broker, topics.detections) as results,
        reading(apache_broker, topics.dead) as letters,
    ):
        results.read(200, 60, alive=lambda: first.running)
        options |= {"kafka__group_id": first.group, "kafka__transactional_id": unique_name("second")}
        with running(apache_broker, topics, ENGINE, **options) as second:
            wait_until(lambda: metric(second, "assigned_partitions") > 0, 60, "the second consumer to have its share")
            results.read(len(results.messages) + 200, 60, alive=lambda: first.running and second.running)
            assert first.terminate() == 0, first.log
            results.read(sum(value != b"damaged" for _, value in sent), 60, alive=lambda: second.running)
            assert second.terminate() == 0, second.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)


def test_a_commit_that_is_late_or_unanswered_costs_no_outcome_and_repeats_none(
    apache_cluster: Callable[..., ApacheKafka],
) -> None:
    """Requests to commit are held up twice: longer than the socket's timeout, so that they are sent again, and until
    the transaction is given up. Each time all of them arrive in the end, when other transactions are open.

    Catches: going on with a producer whose commit may have been sent twice (Jepsen's finding on librdkafka), no rewind
    after a commit without an answer, a rewind to offsets that an unresolved transaction still changes.
    """
    cluster = apache_cluster(proxied=True)
    direct = Broker("apache", cluster.bootstrap_servers, {}, APACHE, cluster.create_topic)
    sent, topics = frames(3000), Topics.on(direct)
    produce(direct, topics.frames, sent)
    options = {**EXACTLY_ONCE, "kafka__producer": {"socket.timeout.ms": 1000}}
    with (
        Proxy(cluster.routes) as proxy,
        running(replace(direct, bootstrap_servers=proxy.bootstrap_servers), topics, ENGINE, **options) as sluice,
        reading(direct, topics.detections) as results,
        reading(direct, topics.dead) as letters,
    ):
        results.read(300, 60, alive=lambda: sluice.running)
        with proxy.injected(hold_end_txn()) as fault:
            wait_until(lambda: fault.hits >= 2, 30, "the request to be sent again")
        wait_until(lambda: "new producer" in sluice.log, 30, "a new producer after a commit that came late")
        results.read(len(results.messages) + 300, 60, alive=lambda: sluice.running)
        with proxy.injected(hold_end_txn()):
            wait_until(lambda: '"rolled_back": false' in sluice.log, 40, "a commit to be given up")
        wait_until(lambda: "rewound" in sluice.log, 60, "the consumer to go back to what is committed")
        results.read(sum(value != b"damaged" for _, value in sent), 90, alive=lambda: sluice.running)
        assert metric(sluice, 'transactions_total{result="failed"}') >= 1
        assert sluice.terminate() == 0, sluice.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)


def test_two_processes_with_one_transactional_id_end_with_a_message_and_without_a_repeat(apache_broker: Broker) -> None:
    """Catches: two pods that fence each other for ever, and an outcome of the fenced one that is seen."""
    sent, topics = frames(5000), Topics.on(apache_broker)
    options = {
        **EXACTLY_ONCE,
        "kafka__consumer": settings_of(apache_broker),
        "kafka__transactional_id": unique_name("one"),
    }
    produce(apache_broker, topics.frames, sent)
    with (
        running(apache_broker, topics, SLOW, **options) as first,
        reading(apache_broker, topics.detections) as results,
        reading(apache_broker, topics.dead) as letters,
    ):
        results.read(200, 60, alive=lambda: first.running)
        with running(apache_broker, topics, SLOW, **options, kafka__group_id=first.group) as second:
            wait_until(lambda: not (first.running and second.running), 60, "one of the two to give up")
            left, ended = (first, second) if first.running else (second, first)
            assert ended.wait() == 4
            assert "kafka.transactional_id" in ended.log
            assert "Traceback" not in ended.log
            results.read(sum(value != b"damaged" for _, value in sent), 90, alive=lambda: left.running)
            assert left.terminate() == 0, left.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)


def test_a_process_that_is_stopped_twice_in_mid_transaction_accuses_nobody_and_goes_on(
    apache_cluster: Callable[..., ApacheKafka],
) -> None:
    """Each time for longer than a transaction may last, so that the brokers abort it and fence the process.

    Catches: taking that for another process with the same transactional ID, and ending with exit code 4.
    """
    cluster = apache_cluster(proxied=True, transaction_abort_timed_out_transaction_cleanup_interval_ms=200)
    direct = Broker("apache", cluster.bootstrap_servers, {}, APACHE, cluster.create_topic)
    sent, topics = frames(3000), Topics.on(direct)
    produce(direct, topics.frames, sent)
    options = {**EXACTLY_ONCE, "kafka__producer": {"socket.timeout.ms": 1000, "transaction.timeout.ms": 2000}}
    outlasted = "transaction outlasted transaction.timeout.ms"
    with (
        Proxy(cluster.routes) as proxy,
        running(replace(direct, bootstrap_servers=proxy.bootstrap_servers), topics, ENGINE, **options) as sluice,
        reading(direct, topics.detections) as results,
        reading(direct, topics.dead) as letters,
    ):
        for times in (1, 2):
            results.read(len(results.messages) + 300, 60, alive=lambda: sluice.running)
            with proxy.injected(hold_end_txn()) as fault:
                wait_until(lambda fault=fault: fault.hits, 30, "a transaction that is about to end")
                sluice.signal(signal.SIGSTOP)
                before = ends(direct, topics.detections)
                wait_until(
                    lambda before=before: ends(direct, topics.detections) > before,
                    30,
                    "the brokers to mark it as aborted",
                )
            sluice.signal(signal.SIGCONT)
            wait_until(lambda times=times: sluice.log.count(outlasted) == times, 30, "it to find out")
        results.read(sum(value != b"damaged" for _, value in sent), 90, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)


def test_a_broker_that_shows_what_was_aborted_is_refused_at_the_start(embedded_broker: EmbeddedBroker) -> None:
    """Catches: exactly once in name only. The embedded broker answers every request of a transaction."""
    make = lambda name, partitions: embedded_broker.create_topics({name: partitions})  # noqa: E731
    broker = Broker("embedded", embedded_broker.bootstrap_servers, CLIENT_SETTINGS, EMBEDDED, make)
    with running(broker, Topics.on(broker, partitions=1), ENGINE, delivery="exactly_once") as sluice:
        assert sluice.wait() == 4
    assert "delivery: at_least_once" in sluice.log
    assert "Traceback" not in sluice.log
