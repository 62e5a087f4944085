"""A slow way to the brokers: transactions are as large as it takes in time, and what waits for it has a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import Producer

import images
from apache_kafka import ApacheKafka
from brokers import APACHE, Broker
from consumer.kafka.producer import MOST_BUFFERED_BYTES
from consumer.messages import read_dead_letter, read_record
from exactly_once import metric
from network import throttle
from proxy import Proxy
from sluice_process import Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

FREE = "simulated://0ms@1,0ms@32"
BYTES_PER_SECOND = 900_000
SLOW = "slow-writer"


@pytest.fixture(scope="module")
def cluster(lasting_cluster: Callable[..., ApacheKafka]) -> ApacheKafka:
    return lasting_cluster(proxied=True)


@contextmanager
def slowly(
    cluster: ApacheKafka, frames: list[tuple[str, bytes]], engine: str = FREE, **more: Any
) -> Iterator[tuple[Broker, Topics, Sluice]]:
    """The program with these frames before it, and a producer that writes through a slow way."""
    direct = Broker("apache", cluster.bootstrap_servers, {}, APACHE, cluster.create_topic)
    topics = Topics.on(direct, partitions=2)
    produce(direct, topics.frames, frames)
    options: dict[str, Any] = {"delivery": "exactly_once", "kafka__producer": {"client.id": SLOW}, **more}
    with Proxy(cluster.routes) as proxy:
        far = replace(direct, bootstrap_servers=proxy.bootstrap_servers)
        with proxy.injected(throttle(BYTES_PER_SECOND, SLOW)), running(far, topics, engine, **options) as sluice:
            yield direct, topics, sluice


@pytest.mark.timeout(300)
def test_progress_is_steady_and_as_fast_as_the_way(cluster: ApacheKafka) -> None:
    """Catches transactions that hold all that is ready, and fail for it. On 43fe895: 33 of 400 letters in 64 s."""
    count, size = 80, 300_000
    frames = [(f"cam-{n % 4}", bytes([n]) * size) for n in range(count)]
    with slowly(cluster, frames) as (direct, topics, sluice), reading(direct, topics.dead) as letters:
        letters.read(1, 90, alive=lambda: sluice.running)
        began = time.monotonic()
        letters.read(count, 3 * count * size / BYTES_PER_SECOND, alive=lambda: sluice.running)
        took_s = time.monotonic() - began
        committed = metric(sluice, 'transactions_total{result="committed"}')
        failed = metric(sluice, 'transactions_total{result="failed"}')
        assert sluice.terminate() == 0, sluice.log
        ids = [dict(message.headers())["ce_id"] for message in letters.drain()]
    print(f"{count} letters in {took_s:.1f} s, {committed:.0f} transactions, {failed:.0f} failed")
    assert len(ids) == len(set(ids)) == count
    assert took_s < 2 * count * size / BYTES_PER_SECOND
    assert failed <= 1, sluice.log


@pytest.mark.timeout(300)
def test_a_dead_letter_that_cannot_pass_within_a_transaction_is_cut(cluster: ApacheKafka) -> None:
    """12 MB take 13 s, and a transaction may take 10. Catches one frame that stops its partition forever."""
    frames = [("cam-1", bytes(12_000_000)), *[("cam-1", images.jpeg(64, 48))] * 20]
    with (
        slowly(cluster, frames) as (direct, topics, sluice),
        reading(direct, topics.dead) as letters,
        reading(direct, topics.detections) as results,
    ):
        letters.read(1, 150, alive=lambda: sluice.running)
        results.read(20, 30, alive=lambda: sluice.running)
        read = metric(sluice, "frames_received_total")
        assert sluice.terminate() == 0, sluice.log
    (letter,) = map(read_dead_letter, map(read_record, letters.messages))
    assert letter is not None
    assert letter.truncated
    assert "dead letters are cut for a while" in sluice.log
    assert read == 21, "the engine ran again"


@pytest.mark.timeout(300)
def test_dead_letters_that_wait_for_the_way_are_no_second_copy_of_all_that_is_held(cluster: ApacheKafka) -> None:
    """At least once. A slow engine lets frames gather, and then all of them are rejected.

    Catches twice `limits.max_in_flight_bytes` in memory: the copies in librdkafka come on top.
    """
    limit, size = 80_000_000, 1_000_000
    frames = [(f"cam-{n % 4}", images.jpeg(64, 48) if n % 64 == 0 else bytes([n]) * size) for n in range(250)]
    options = {"limits__max_in_flight_bytes": limit, "dead_letter__max_consecutive": 0}
    peak = 0.0
    with slowly(cluster, frames, "simulated://900ms@1,900ms@32", delivery="at_least_once", **options) as (_, _, sluice):

        def full() -> bool:
            nonlocal peak
            peak = max(peak, metric(sluice, "in_flight_bytes"))
            return metric(sluice, "paused") == 1

        wait_until(full, 90, "the limit to be met")
        until = time.monotonic() + 5
        while time.monotonic() < until:
            full()
            time.sleep(0.1)
    print(f"limit {limit / 1e6:.0f} MB, peak {peak / 1e6:.1f} MB")
    assert peak <= limit + MOST_BUFFERED_BYTES + 10 * size


@pytest.mark.timeout(280)
def test_a_dead_letter_is_cut_although_another_partition_commits_in_between(cluster: ApacheKafka) -> None:
    """Catches a letter that is late forever, because each success of another partition resets the count."""
    image, stop = images.jpeg(64, 48), threading.Event()
    with slowly(cluster, [("cam-1", image)] * 20) as (direct, topics, sluice), reading(direct, topics.dead) as letters:

        def stream() -> None:
            client = Producer({"bootstrap.servers": direct.bootstrap_servers})
            while not stop.wait(0.03):
                client.produce(topics.frames, image, b"cam-2", partition=0)
                client.produce(topics.frames, image, b"cam-3", partition=1)
                client.poll(0)
            client.flush(10)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            produce(direct, topics.frames, [("cam-1", bytes(12_000_000))])
            began = time.monotonic()
            letters.read(1, 150, alive=lambda: sluice.running)
            print(f"letter after {time.monotonic() - began:.1f} s")
        finally:
            stop.set()
            thread.join(30)
    assert "dead letters are cut for a while" in sluice.log
