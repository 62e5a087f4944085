"""Each network fault between real clients and a real Apache Kafka node does what the rig relies on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

from apache_kafka import ApacheKafka
from brokers import APACHE, Broker
from kafka_clients import consumer_settings, new_producer, read, send, wait_polling
from network import Fault, black_hole, cut, delay, drop_acknowledgements, hold_end_txn, hold_heartbeats, throttle
from proxy import Proxy
from waiting import wait_until

pytestmark = pytest.mark.kafka

PATIENCE_S = 30.0
# How long nothing must happen for a test to believe that nothing will.
QUIET_S = 1.0
# Quick to give up a request, and quick to try again.
# With KIP-848 these are the brokers' to set, and an error in a client.
REFUSED = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")
IMPATIENT = {"socket_timeout_ms": 1000, "reconnect_backoff_max_ms": 100, "retry_backoff_ms": 50}


class Side:
    """One node, reached directly and through the proxy."""

    def __init__(self, kafka: ApacheKafka, proxy: Proxy) -> None:
        self.proxy = proxy
        settings = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 200}
        self.direct = Broker("apache", kafka.bootstrap_servers, settings, APACHE, kafka.create_topic)
        self.proxied = Broker("apache", proxy.bootstrap_servers, settings, APACHE, kafka.create_topic)


@pytest.fixture(scope="module")
def side(lasting_cluster: Callable[..., ApacheKafka]) -> Iterator[Side]:
    kafka = lasting_cluster(proxied=True, group_consumer_session_timeout_ms=2000)
    with Proxy(kafka.routes) as proxy:
        yield Side(kafka, proxy)


def values(side: Side, topic: str, count: int, isolation: str = "", within_s: float = PATIENCE_S) -> list[bytes | None]:
    """The first values of partition 0, past the proxy."""
    more = {"isolation_level": isolation} if isolation else {}
    with closing(Consumer(consumer_settings(side.direct, **more))) as consumer:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        return [record.value() for record in read(consumer, count, within_s)]


@contextmanager
def joined(broker: Broker, topic: str, protocol: str, client_id: str) -> Iterator[Consumer]:
    """A consumer of the group that has the name of its topic."""
    settings = consumer_settings(broker, group_id=topic, client_id=client_id)
    if protocol == "consumer":
        settings = {name: value for name, value in settings.items() if name not in REFUSED}
    with closing(Consumer({**settings, "group.protocol": protocol})) as consumer:
        consumer.subscribe([topic])
        yield consumer


class Reports:
    """Delivery reports of one producer, which is polled when it is looked at."""

    def __init__(self, broker: Broker, **settings: object) -> None:
        self.producer = new_producer(broker, **{**IMPATIENT, **settings})
        self.errors: list[KafkaError | None] = []

    def send(self, topic: str, value: bytes) -> None:
        self.producer.produce(topic, value, on_delivery=self._report)

    def within(self, seconds: float, count: int = 1) -> list[KafkaError | None]:
        deadline = time.monotonic() + seconds
        while len(self.errors) < count and time.monotonic() < deadline:
            self.producer.poll(0.05)
        return self.errors

    def _report(self, error: KafkaError | None, _: Message) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("make", [cut, black_hole])
def test_behind_a_cut_or_a_black_hole_nothing_arrives_and_later_everything_once(
    side: Side, make: Callable[..., Fault]
) -> None:
    topic = side.direct.new_topic()
    reports = Reports(side.proxied, client_id="cut-off")
    reports.send(topic, b"before")
    assert reports.within(PATIENCE_S) == [None]
    with side.proxy.injected(make("cut-off")) as fault:
        reports.send(topic, b"during")
        assert reports.within(QUIET_S, 2) == [None]
        assert values(side, topic, 1) == [b"before"]
        send(side.proxied, topic, b"another client")
        assert fault.hits
    assert reports.within(PATIENCE_S, 2) == [None, None]
    send(side.direct, topic, b"end")
    assert values(side, topic, 4) == [b"before", b"another client", b"during", b"end"]


def test_a_delay_is_felt_by_each_round_trip(side: Side) -> None:
    topic = side.direct.new_topic()
    reports = Reports(side.proxied, socket_timeout_ms=10_000)
    reports.send(topic, b"before")
    assert reports.within(PATIENCE_S) == [None]
    with side.proxy.injected(delay(0.3)):
        began = time.monotonic()
        reports.send(topic, b"late")
        assert reports.within(PATIENCE_S, 2) == [None, None]
        assert time.monotonic() - began >= 0.6


def test_a_throttle_bounds_the_bytes_in_a_second(side: Side) -> None:
    topic = side.direct.new_topic()
    reports = Reports(side.proxied, socket_timeout_ms=10_000)
    reports.send(topic, b"before")
    assert reports.within(PATIENCE_S) == [None]
    with side.proxy.injected(throttle(200_000)):
        began = time.monotonic()
        reports.send(topic, bytes(200_000))
        assert reports.within(PATIENCE_S, 2) == [None, None]
        assert time.monotonic() - began >= 1.0


def test_without_acknowledgements_the_record_is_in_the_log_and_its_producer_has_no_report(side: Side) -> None:
    """Then the retry of an idempotent producer does not write it again."""
    topic = side.direct.new_topic()
    reports = Reports(side.proxied, client_id="untold")
    with side.proxy.injected(drop_acknowledgements("untold")) as fault:
        reports.send(topic, b"written")
        wait_until(lambda: reports.within(0.05) or fault.hits >= 2, PATIENCE_S, "a second try")
        assert reports.errors == []
        assert values(side, topic, 1) == [b"written"]
    assert reports.within(PATIENCE_S) == [None]
    send(side.direct, topic, b"end")
    assert values(side, topic, 2) == [b"written", b"end"]


def test_a_held_end_of_a_transaction_keeps_its_records_from_readers_until_it_arrives(side: Side) -> None:
    topic = side.direct.new_topic()
    producer = Producer({"bootstrap.servers": side.proxied.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    producer.produce(topic, b"held")
    assert producer.flush(PATIENCE_S) == 0
    with side.proxy.injected(hold_end_txn()) as fault:
        committing = threading.Thread(target=producer.commit_transaction, args=(PATIENCE_S,))
        committing.start()
        wait_until(lambda: fault.hits == 1, PATIENCE_S, "the EndTxn")
        committing.join(QUIET_S)
        assert committing.is_alive()
        assert values(side, topic, 1, "read_uncommitted") == [b"held"]
        with pytest.raises(AssertionError, match="0 of 1 records"):
            values(side, topic, 1, "read_committed", QUIET_S)
    committing.join(PATIENCE_S)
    assert not committing.is_alive()
    assert values(side, topic, 1, "read_committed") == [b"held"]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_without_heartbeats_the_group_goes_on_without_a_member_whose_other_requests_still_arrive(
    side: Side, protocol: str
) -> None:
    topic = side.direct.new_topic(1)
    send(side.direct, topic, b"1")
    with joined(side.proxied, topic, protocol, "faint") as faint:
        wait_polling(faint, faint.assignment, PATIENCE_S, "the partition")
        with side.proxy.injected(hold_heartbeats("faint")) as fault:
            with joined(side.direct, topic, protocol, "heir") as heir:
                wait_polling(heir, heir.assignment, PATIENCE_S, "the takeover")
            assert fault.hits
            send(side.direct, topic, b"2")
            assert faint.get_watermark_offsets(TopicPartition(topic, 0), timeout=PATIENCE_S) == (0, 2)
    # Closed behind the lifted fault: it leaves the group, or finds that it is out of it.
