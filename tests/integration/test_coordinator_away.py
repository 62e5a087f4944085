"""delivery: exactly_once while the group's coordinator cannot be reached, and every other broker can.

librdkafka's `send_offsets_to_transaction` does not come back in that time, whatever its timeout (its issue 5456): it
waits for that one connection. Called by the loop itself, it held the loop up until the watchdog ended the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apache_kafka import ApacheKafka
from consumer.delivery.base import TRANSACTION_S
from consumer.kafka.transactions import GRACE_S
from consumer.tools.doctor.settings import CLOSING_S
from coordinators import Divided, divided
from exactly_once import ENGINE, EXACTLY_ONCE, check_once_and_in_order, frames, metric
from network import Fault, black_hole, cut
from sluice_process import Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

# For what a busy machine adds to a time that is to be kept.
SLACK_S = 3.0


@pytest.fixture(scope="module")
def site(lasting_cluster: Callable[..., ApacheKafka]) -> Iterator[Divided]:
    # What the first of two processes leaves open, the brokers end soon after its timeout.
    cluster = lasting_cluster(2, proxied=True, transaction_abort_timed_out_transaction_cleanup_interval_ms=500)
    with divided(cluster) as site:
        yield site


def options(site: Divided, **more: Any) -> dict[str, Any]:
    return {**EXACTLY_ONCE, "kafka__transactional_id": site.new_transactional_id(), **more}


def wait_for_the_hang(sluice: Sluice) -> None:
    wait_until(lambda: metric(sluice, "loop_age_seconds") > 2, 30, "a call that does not come back")


@pytest.mark.parametrize(
    ("make", "consumer"),
    [
        pytest.param(cut, {}, id="cut-classic"),  # shorter than its session: it stays a member
        pytest.param(black_hole, {"group.protocol": "consumer"}, id="black-hole-consumer"),  # and here it does not
    ],
)
def test_a_transaction_ends_in_time_and_later_each_frame_has_one_outcome(
    site: Divided, make: Callable[[], Fault], consumer: dict[str, Any]
) -> None:
    """Catches a loop that hangs in the client library until the watchdog ends the process, and offsets of a call that
    was given up, which arrive when the coordinator is back and other transactions are open."""
    sent, topics = frames(3000), Topics.on(site.broker)
    produce(site.direct, topics.frames, sent)
    settings = options(site, kafka__group_id=site.new_group(), kafka__consumer=consumer)
    with (
        running(site.broker, topics, ENGINE, **settings) as sluice,
        reading(site.direct, topics.detections) as results,
        reading(site.direct, topics.dead) as letters,
    ):
        results.read(300, 60, alive=lambda: sluice.running)
        with site.way.injected(make()):
            wait_for_the_hang(sluice)
            left_s = TRANSACTION_S + GRACE_S - 2
            failed = 'transactions_total{result="failed"}'
            wait_until(lambda: metric(sluice, failed) >= 1, left_s + SLACK_S, "the transaction to fail")
            assert "the client library did not come back" in sluice.log
        results.read(sum(value != b"damaged" for _, value in sent), 90, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)


@pytest.mark.timeout(300)
def test_a_rebalance_and_a_stop_keep_their_deadlines_and_the_rest_is_done_by_another(site: Divided) -> None:
    """Only the producer of the first is cut off, so that it stays a member and is asked to give partitions away.

    Catches a hung call that holds up the whole group, or keeps the process from ending.
    """
    drain_s = 12.0
    sent, topics, group = frames(3000), Topics.on(site.broker), site.new_group()
    produce(site.direct, topics.frames, sent)
    shared = {"kafka__group_id": group, "limits__drain_timeout_s": drain_s}
    settings = options(site, kafka__producer={"client.id": "cut-off"}, **shared)
    with (
        running(site.broker, topics, ENGINE, **settings) as first,
        reading(site.direct, topics.detections) as results,
        reading(site.direct, topics.dead) as letters,
    ):
        results.read(300, 60, alive=lambda: first.running)
        with (
            site.way.injected(cut("cut-off")),
            running(site.broker, topics, ENGINE, **options(site, **shared)) as second,
        ):
            wait_for_the_hang(first)
            wait_until(lambda: metric(second, "assigned_partitions") > 0, 60, "the second to have its share")
            settling_s = metric(first, 'rebalance_seconds_sum{event="revoked"}')
            assert 0 < settling_s < drain_s / 2 + GRACE_S + SLACK_S
            wait_for_the_hang(first)
            began = time.monotonic()
            assert first.terminate(60) == 7, first.log
            took_s = time.monotonic() - began
            assert took_s < drain_s + GRACE_S + CLOSING_S + SLACK_S
            results.read(sum(value != b"damaged" for _, value in sent), 90, alive=lambda: second.running)
            assert second.terminate() == 0, second.log
        results.drain()
        letters.drain()
        check_once_and_in_order(results, letters, sent)
