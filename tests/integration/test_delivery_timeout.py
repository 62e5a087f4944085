"""A way to the brokers that is cut for about `delivery.timeout.ms`: results end in order, or the process ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import images
from apache_kafka import ApacheKafka
from brokers import APACHE, Broker, unique_name
from network import cut
from proxy import Proxy
from sluice_process import Reader, Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

TIMEOUT_S = 4.0
IMAGE = images.jpeg(64, 48)
SOURCES, FRAMES = 12, 30_000
# Always busy, with a backlog in front of it: then the loop asks for reports every 50 ms, not every few.
ENGINE = "simulated://45ms@1,45ms@32"


def overtaken(results: list[dict[str, object]]) -> list[str]:
    """What a reader sees that drops repeats: the results that came behind a later one of their source."""
    seen: set[object] = set()
    last: dict[object, int] = {}
    wrong = []
    for result in results:
        if result["id"] in seen:
            continue
        seen.add(result["id"])
        offset = int(str(result["id"]).rsplit("/", 1)[1])
        if offset < last.get(result["source_id"], -1):
            wrong.append(f"{result['source_id']}: {offset} after {last[result['source_id']]}")
        last[result["source_id"]] = max(offset, last.get(result["source_id"], -1))
    return wrong


def revived(sluice: Sluice, codes: list[int]) -> bool:
    """Start the program again if it has ended, as a pod is."""
    if not sluice.running:
        codes.append(sluice.wait())
        sluice.start()
    return True


@pytest.mark.timeout(280)
def test_no_result_is_overtaken_when_the_way_to_its_leader_is_cut_for_as_long_as_delivery_may_take(
    apache_cluster: Callable[..., ApacheKafka],
) -> None:
    """The leader of the output partition is cut off five times, for a little more or less than the limit.

    Catches: librdkafka's own time-out. It gives the oldest results up when the connection is back, and sends those
    behind them before the program hears of it. A restart then writes the older results behind the newer ones.
    """
    kafka = apache_cluster(2, proxied=True)
    near, far = kafka.nodes
    routes = dict(zip(kafka.nodes, kafka.routes.items(), strict=True))
    topics = Topics(*(unique_name(name) for name in ("frames", "detections", "dead")))
    for topic, node in ((topics.frames, near), (topics.detections, far), (topics.dead, near)):
        kafka.create_topic(topic, 1, on=node)
    options = {
        # One try to connect finds both: a leader that is back, and results that are too old.
        "kafka__client": {"reconnect.backoff.ms": 1000, "reconnect.backoff.max.ms": 1500},
        "kafka__producer": {"delivery.timeout.ms": int(TIMEOUT_S * 1000)},
        "kafka__consumer": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500},
    }
    direct = Broker("apache", kafka.bootstrap_servers, {}, APACHE, kafka.create_topic)
    produce(direct, topics.frames, [(f"cam-{number % SOURCES}", IMAGE) for number in range(FRAMES)])
    with Proxy(dict([routes[near]])) as open_way, Proxy(dict([routes[far]])) as cut_way:
        proxied = Broker("apache", open_way.bootstrap_servers, {}, APACHE, kafka.create_topic)
        with (
            running(proxied, topics, ENGINE, **options) as sluice,
            reading(direct, topics.detections) as reader,
        ):
            codes: list[int] = []
            for longer_s in (-0.4, -0.1, 0.2, 0.5, 0.8):
                before = len(reader.drain(0.1))
                reader.read(before + 300, 60, alive=lambda: revived(sluice, codes))
                with cut_way.injected(cut()) as fault:
                    threading.Event().wait(TIMEOUT_S + longer_s)  # the length of the cut is what the test is about
                assert fault.hits
            before = len(unique(reader))
            wait_until(
                lambda: revived(sluice, codes) and len(unique(reader)) > before + 500, 60, "results to come again"
            )
    wrong = overtaken(reader.results())
    print(f"exit codes {codes}, {len(reader.messages)} results, {len(wrong)} out of order")
    assert not wrong, f"{len(wrong)} of {len(reader.messages)}: {wrong[:3]}"
    assert set(codes) <= {5}, sluice.log


def unique(reader: Reader) -> set[str]:
    """The IDs of all results that have come by now."""
    reader.drain(0.2)
    return {result["id"] for result in reader.results()}
