"""delivery: exactly_once while the group's coordinator dies, on Apache Kafka, with the real program.

A broker learns how far a partition is committed (its high watermark) only with an answer to its next fetch. So a new
coordinator begins with an older one, and answers up to that. It makes a request for stable offsets wait instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from apache_kafka import ApacheKafka
from brokers import APACHE, Broker
from coordinators import make_registries, name_at
from exactly_once import ENGINE, EXACTLY_ONCE, check_once_and_in_order, frames
from kafka_clients import consumer_settings
from network import Api, drop_answers, hold
from proxy import Proxy
from sluice_process import Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

OFFSETS = "__consumer_offsets"


@dataclass(frozen=True, slots=True)
class Succession:
    """The group's coordinator is on `old`, and `heir` succeeds it. `other` has all else, and follows the heir."""

    cluster: ApacheKafka
    ways: dict[int, Proxy]  # for clients and for the brokers among themselves
    group: str
    partition: int  # of the group, in `OFFSETS`
    transactional_id: str
    old: int
    heir: int
    other: int

    def broker(self, name: str, bootstrap_servers: str) -> Broker:
        def make_topic(topic: str, partitions: int) -> None:
            self.cluster.create_topic(topic, partitions, on=self.other, min_insync_replicas=1)

        return Broker(name, bootstrap_servers, {}, APACHE, make_topic)

    def committed(self, topics: Topics, isolation: str) -> int:
        """Of all partitions together; -1 while the coordinator does not answer. `read_committed`: stable offsets."""
        settings = consumer_settings(
            self.broker("direct", self.cluster.bootstrap_servers), group_id=self.group, isolation_level=isolation
        )
        with closing(Consumer({**settings, "log_level": 0})) as consumer:
            try:
                found = consumer.committed([TopicPartition(topics.frames, n) for n in range(4)], timeout=5)
            except KafkaException:
                return -1
        return sum(max(0, each.offset) for each in found)


@contextmanager
def succession(cluster: ApacheKafka) -> Iterator[Succession]:
    """`cluster`: proxied, of three nodes that reach each other through the proxies too."""
    with ExitStack() as stack:
        ways = {
            node: stack.enter_context(Proxy({told: behind}))
            for node, (told, behind) in zip(cluster.nodes, cluster.routes.items(), strict=True)
        }
        make_registries(cluster)
        wait_until(cluster.in_sync, 60, "all replicas")
        # The first replica that is in sync succeeds a leader.
        chosen = next(each for each in cluster.metadata().topics[OFFSETS].partitions.values())
        old = chosen.leader
        heir, other = (node for node in chosen.replicas if node != old)
        yield Succession(
            cluster,
            ways,
            group=name_at(cluster, OFFSETS, lambda found: found.id == chosen.id),
            partition=chosen.id,
            transactional_id=name_at(cluster, "__transaction_state", lambda found: found.leader == other),
            old=old,
            heir=heir,
            other=other,
        )


@pytest.mark.timeout(240)
def test_an_older_offset_of_a_new_coordinator_is_not_taken_after_a_commit_without_an_answer(
    apache_cluster: Callable[..., ApacheKafka],
) -> None:
    """The commit takes effect, its answer is lost, and the coordinator dies. Its heir does not know for many seconds
    that the offset was committed, and says so to a client that does not ask for stable offsets.

    Catches a recovery that goes back to that older offset, and writes the frames of the transaction a second time.
    """
    cluster = apache_cluster(
        3,
        proxied=True,
        inter_broker_listener_name="PROXIED",
        # A follower that has all records asks, and is answered when there are more, or after this time.
        replica_fetch_wait_max_ms=10_000,
        # A follower that does not ask stays in sync for so long, and so the high watermark stands still.
        replica_lag_time_max_ms=120_000,
        broker_session_timeout_ms=4_000,
        broker_heartbeat_interval_ms=500,
    )
    with ExitStack() as stack:
        site = stack.enter_context(succession(cluster))
        told = site.broker("proxied", ",".join(way.bootstrap_servers for way in site.ways.values()))
        direct = site.broker("direct", cluster.bootstrap_servers)
        sent, topics = frames(500), Topics.on(direct)
        produce(direct, topics.frames, sent[:300])
        results = stack.enter_context(reading(direct, topics.detections))
        letters = stack.enter_context(reading(direct, topics.dead))
        options = {**EXACTLY_ONCE, "kafka__group_id": site.group, "kafka__transactional_id": site.transactional_id}
        sluice = stack.enter_context(running(told, topics, ENGINE, **options))
        wait_until(lambda: site.committed(topics, "read_committed") == 300, 60, "the first frames to be done")

        # 1. The commit takes effect. Its answer is lost.
        still = hold([Api.FETCH], f"broker-{site.other}-fetcher-0")
        stack.enter_context(site.ways[site.heir].injected(still))
        with site.ways[site.other].injected(drop_answers([Api.END_TXN])) as lost:
            produce(direct, topics.frames, sent[300:340])
            wait_until(lambda: lost.hits, 30, "a commit without an answer")
            wait_until(lambda: site.committed(topics, "read_committed") > 300, 30, "the commit to take effect")
            # 2. The coordinator dies, and its heir knows of an older offset.
            cluster.kill(site.old)
            wait_until(lambda: cluster.leader(OFFSETS, site.partition) == site.heir, 60, "the heir to take over")
            older = lambda: site.committed(topics, "read_uncommitted")  # noqa: E731
            assert wait_until(lambda: older() + 1, 30, "the heir to answer") - 1 == 300
            # 3. The process does not know what has become of the commit, and asks.
            wait_until(lambda: '"rolled_back": false' in sluice.log, 40, "the commit to be given up")
        asked = ("cannot go back to the committed offsets yet", "rewound")
        wait_until(lambda: any(each in sluice.log for each in asked), 60, "an answer of the heir, or none in time")
        assert older() == 300
        assert still.hits
        site.ways[site.heir].lift(still)
        wait_until(lambda: "rewound" in sluice.log, 60, "the consumer to go back to what is committed")
        produce(direct, topics.frames, sent[340:])
        results.read(sum(value != b"damaged" for _, value in sent), 90, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)
