"""A cluster whose nodes can be cut off one by one, and names whose coordinator is on the node that a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Literal

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin._metadata import PartitionMetadata

from apache_kafka import ApacheKafka
from brokers import APACHE, Broker, unique_name
from proxy import Proxy
from waiting import wait_until

PATIENCE_S = 60.0
Registry = Literal["__consumer_offsets", "__transaction_state"]


@dataclass(frozen=True, slots=True)
class Divided:
    """Groups from `new_group` live on one node. Transactional IDs, and topics made on `broker`, live on the other one.

    `way` is the clients' only way to the node of the groups.
    """

    broker: Broker  # through the proxies
    direct: Broker
    way: Proxy
    cluster: ApacheKafka
    here: int
    there: int

    def new_group(self) -> str:
        return name_at(self.cluster, "__consumer_offsets", lambda found: found.leader == self.there)

    def new_transactional_id(self) -> str:
        return name_at(self.cluster, "__transaction_state", lambda found: found.leader == self.here)


def name_at(cluster: ApacheKafka, registry: Registry, is_right: Callable[[PartitionMetadata], bool]) -> str:
    """A name that the brokers keep in a partition of the registry that `is_right`. AssertionError if there is none."""
    partitions = cluster.metadata().topics[registry].partitions
    assert any(is_right(each) for each in partitions.values()), partitions
    while True:
        name = unique_name("name")
        if is_right(partitions[_partition(name, len(partitions))]):
            return name


@contextmanager
def divided(cluster: ApacheKafka) -> Iterator[Divided]:
    """`cluster`: proxied, of two nodes."""
    there, here = cluster.nodes
    with ExitStack() as stack:
        proxies = {
            node: stack.enter_context(Proxy({told: behind}))
            for node, (told, behind) in zip(cluster.nodes, cluster.routes.items(), strict=True)
        }

        def make_topic(name: str, partitions: int) -> None:
            cluster.create_topic(name, partitions, on=here)

        make_registries(cluster)
        told = ",".join(proxy.bootstrap_servers for proxy in proxies.values())
        yield Divided(
            broker=Broker("divided", told, {}, APACHE, make_topic),
            direct=Broker("direct", cluster.bootstrap_servers, {}, APACHE, make_topic),
            way=proxies[there],
            cluster=cluster,
            here=here,
            there=there,
        )


def make_registries(cluster: ApacheKafka) -> None:
    """The brokers make these topics when the first group and the first transactional ID ask for their coordinator."""
    settings = {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}
    Producer({**settings, "transactional.id": unique_name("first")}).init_transactions(PATIENCE_S)
    with closing(Consumer({**settings, "group.id": unique_name("first")})) as consumer:
        wait_until(lambda: _answers(consumer), PATIENCE_S, "the coordinator of a first group")


def _answers(consumer: Consumer) -> bool:
    try:
        consumer.committed([TopicPartition("any", 0)], timeout=5)
    except KafkaException:  # a coordinator that has just been chosen does not know it yet
        return False
    return True


def _partition(key: str, count: int) -> int:
    """Of a registry: as the brokers choose it, by Java's hash of the name."""
    found = 0
    for letter in key:
        found = (31 * found + ord(letter)) & 0xFFFFFFFF
    return abs(found - (found >> 31 << 32)) % count
