"""The place in the group: what must not cost it, with both group protocols and both deliveries."""

from __future__ import annotations

import signal
from typing import Any

import pytest

import images
from brokers import Broker, unique_name
from kafka_clients import group_offset
from sluice_process import Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

WAYS = pytest.mark.parametrize(("protocol", "delivery"), [("classic", "at_least_once"), ("consumer", "exactly_once")])


def options(protocol: str, delivery: str, **consumer: Any) -> dict[str, Any]:
    """A classic member says itself how long it may be silent; under KIP-848 the broker does."""
    if protocol == "consumer":
        theirs = {"session.timeout.ms", "heartbeat.interval.ms"}
        consumer = {"group.protocol": "consumer"} | {k: v for k, v in consumer.items() if k not in theirs}
    return {"delivery": delivery, "kafka__consumer": consumer, "kafka__transactional_id": unique_name("txn")}


def rebalances(sluice: Sluice, event: str) -> float:
    """Partitions that were assigned, revoked or lost since the start."""
    name = f'sluice_rebalances_total{{event="{event}"}} '
    pages = [""]

    def answered() -> bool:  # on a busy machine it may take more than one try
        pages.append(sluice.get("/metrics")[1])
        return name in pages[-1]

    wait_until(answered, 30, "its metrics")
    return float(pages[-1].partition(name)[2].split()[0])


@WAYS
def test_an_engine_slower_than_the_poll_interval_costs_no_partition(
    apache_broker: Broker, protocol: str, delivery: str
) -> None:
    """Every batch takes longer than `max.poll.interval.ms`. Catches a loop that only waits for the engine."""
    topics = Topics.on(apache_broker, partitions=2)
    produce(apache_broker, topics.frames, [(f"cam-{n % 3}", images.jpeg(64, 48)) for n in range(16)])
    limits = {"session.timeout.ms": 1500, "heartbeat.interval.ms": 300, "max.poll.interval.ms": 2000}
    slow = options(protocol, delivery, **limits) | {"batching__max_batch_size": 8}
    with (
        running(apache_broker, topics, "simulated://2600ms@1,2600ms@8", **slow) as sluice,
        reading(apache_broker, topics.detections) as reader,
    ):
        reader.read(16, 60, alive=lambda: sluice.running)
        assert (rebalances(sluice, "assigned"), rebalances(sluice, "lost")) == (2, 0)
        assert sluice.terminate() == 0, sluice.log
        assert len({message.value() for message in reader.drain()}) == 16


def test_a_stop_around_the_first_assignment_ends_in_order(apache_broker: Broker) -> None:
    """Of a group without commits. Catches a start whose look-up of offsets is cut short by the stop: exit code 4."""
    topics = Topics.on(apache_broker, partitions=2)
    with running(apache_broker, topics, "simulated://1ms@1,4ms@32") as sluice:
        for _ in range(10):
            sluice.wait_ready()  # it is assigned its partitions some hundredths of a second later
            assert sluice.terminate() == 0, sluice.log
            sluice.start()


@WAYS
def test_a_model_that_loads_for_longer_than_a_session_costs_nobody_a_partition(
    apache_broker: Broker, protocol: str, delivery: str
) -> None:
    """Catches a member that joins before it can work: its partitions stand still, and it is put out as it loads."""
    broker, topics = apache_broker, Topics.on(apache_broker)
    limits = {"session.timeout.ms": 4000, "heartbeat.interval.ms": 500, "max.poll.interval.ms": 5000}
    engine, late = "simulated://1ms@1,4ms@32", "simulated://1ms@1,4ms@32?fault=load:6000ms"
    sent = [(f"cam-{n % 16}", images.jpeg(64, 48)) for n in range(400)]
    with (
        running(broker, topics, engine, **options(protocol, delivery, **limits)) as first,
        reading(broker, topics.detections) as reader,
    ):
        produce(broker, topics.frames, sent)
        reader.read(400, 60, alive=lambda: first.running)
        with running(
            broker, topics, late, kafka__group_id=first.group, **options(protocol, delivery, **limits)
        ) as second:
            wait_until(lambda: second.get("/healthz")[0] == 200, 60, "the second to load its model")
            revoked: list[float] = []

            def ready() -> bool:
                revoked.append(rebalances(first, "revoked"))
                return second.get("/readyz")[0] == 200

            wait_until(ready, 60, "the second to be ready")
            assert not any(revoked[:-1]), "it joined before it was ready"
            wait_until(lambda: rebalances(second, "assigned") == 2, 60, "its share")
            produce(broker, topics.frames, sent)
            reader.read(800, 60, alive=lambda: first.running and second.running)
            assert rebalances(first, "lost") == rebalances(second, "lost") == 0
            assert second.terminate() == first.terminate() == 0
        ids = [dict(message.headers())["ce_id"] for message in reader.drain()]
    assert len(ids) == len(set(ids)) == 800


@pytest.mark.parametrize(
    ("protocol", "delivery"), [("classic", "at_least_once"), ("classic", "exactly_once"), ("consumer", "at_least_once")]
)
def test_a_static_member_drains_and_comes_back_without_a_rebalance(
    apache_broker: Broker, protocol: str, delivery: str
) -> None:
    """Two members with `group.instance.id`; one is restarted. Catches a goodbye that moves partitions for a restart.

    The partitions wait for it: what comes for them meanwhile is read when it is back, and nothing twice.
    """
    broker, topics = apache_broker, Topics.on(apache_broker)
    first_options, second_options = (
        options(protocol, delivery, **{"group.instance.id": pod, "session.timeout.ms": 60_000}) for pod in ("a", "b")
    )
    sent = [(f"cam-{n % 16}", images.jpeg(64, 48)) for n in range(400)]
    with (
        running(broker, topics, "simulated://1ms@1,4ms@32", **first_options) as first,
        reading(broker, topics.detections) as reader,
    ):
        produce(broker, topics.frames, sent)
        reader.read(400, 60, alive=lambda: first.running)
        with running(
            broker, topics, "simulated://1ms@1,4ms@32", kafka__group_id=first.group, **second_options
        ) as second:
            wait_until(lambda: second.get("/readyz")[0] == 200 and rebalances(second, "assigned") == 2, 60, "its share")
            before = [rebalances(first, event) for event in ("assigned", "revoked", "lost")]
            assert second.terminate() == 0, second.log
            produce(broker, topics.frames, sent)
            second.start()
            reader.read(800, 60, alive=lambda: first.running and second.running)
            assert [rebalances(first, event) for event in ("assigned", "revoked", "lost")] == before
            assert rebalances(second, "assigned") == 2
            assert second.terminate() == first.terminate() == 0
        ids = [dict(message.headers())["ce_id"] for message in reader.drain()]
    assert len(ids) == len(set(ids)) == 800


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_process_that_slept_through_its_membership_takes_no_offset_back(apache_broker: Broker, protocol: str) -> None:
    """It is told to stop as it wakes up, when its successor has done the rest and left: the group is empty then, and
    takes a commit from anyone who does not call itself a member."""
    broker, topics = apache_broker, Topics.on(apache_broker, partitions=1)
    settings = options(protocol, "at_least_once", **{"session.timeout.ms": 1500, "heartbeat.interval.ms": 300})
    slow, fast = "simulated://800ms@1,800ms@8", "simulated://1ms@1,4ms@32"  # slow: it learns of it while it drains
    with (
        running(broker, topics, slow, batching__max_batch_size=8, **settings) as first,
        reading(broker, topics.detections) as reader,
    ):
        produce(broker, topics.frames, [("cam-1", images.jpeg(64, 48))] * 600)
        reader.read(16, 60, alive=lambda: first.running)
        first.signal(signal.SIGSTOP)
        with running(broker, topics, fast, kafka__group_id=first.group, **settings) as second:
            wait_until(
                lambda: group_offset(broker, first.group, topics.frames) == 600, 90, "the successor to do the rest"
            )
            assert second.terminate() == 0, second.log
        first.signal(signal.SIGTERM)
        first.signal(signal.SIGCONT)
        assert first.wait() == 0, first.log
    assert group_offset(broker, first.group, topics.frames) == 600, first.log


def test_two_members_with_one_instance_id_are_told(apache_broker: Broker) -> None:
    """Catches a pod that is Ready and idle for ever."""
    topics = Topics.on(apache_broker)
    same = {"kafka__consumer": {"group.instance.id": unique_name("pod")}}
    with running(apache_broker, topics, "simulated://1ms@1,4ms@32", **same) as first:
        wait_until(lambda: first.get("/readyz")[0] == 200 and rebalances(first, "assigned") == 4, 60, "its partitions")
        with running(apache_broker, topics, "simulated://1ms@1,4ms@32", kafka__group_id=first.group, **same) as second:
            assert first.wait(60) == 4
            assert "another process runs with the same group.instance.id" in first.log
            assert second.running
