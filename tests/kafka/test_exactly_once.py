"""delivery: exactly_once on Apache Kafka, with the real program. The readers here are read_committed, as librdkafka's are.

What a `read_committed` reader must see: each frame exactly once, in order per source, whatever happens to the program,
to its place in the group, and to the broker.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import images
from apache_kafka import ApacheKafka
from brokers import APACHE, Broker, unique_name
from sluice_process import Reader, Sluice, Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

ENGINE = "simulated://5ms@1,20ms@16"
EXACTLY_ONCE: Mapping[str, Any] = {"delivery": "exactly_once", "batching__max_batch_size": 16}
PROTOCOLS = pytest.mark.parametrize("protocol", ["classic", "consumer"])


def frames(count: int) -> list[tuple[str, bytes]]:
    """One source sends most of the frames, so that the others overtake it in every partition; some are damaged."""
    image = [images.jpeg(64, 48, seed) for seed in range(4)]
    return [
        ("cam-busy" if n % 3 else f"cam-{n % 7}", b"damaged" if n % 50 == 17 else image[n % 4]) for n in range(count)
    ]


def places(reader: Reader) -> list[str]:
    """Where the outcomes that were seen came from, as `topic/partition/offset`."""
    return [dict(message.headers())["ce_id"].decode().rpartition("#")[0] or _id(message) for message in reader.messages]


def _id(message: Any) -> str:
    return dict(message.headers())["ce_id"].decode()


def check_once_and_in_order(results: Reader, letters: Reader, sent: list[tuple[str, bytes]]) -> None:
    damaged = sum(value == b"damaged" for _, value in sent)
    ids = [_id(message) for message in results.messages]
    dead = [_id(message) for message in letters.messages]
    assert len(ids) == len(set(ids)), f"repeated: {sorted({one for one in ids if ids.count(one) > 1})[:5]}"
    assert len(dead) == len(set(dead)), "a dead letter was repeated"
    assert (len(ids), len(dead)) == (len(sent) - damaged, damaged)
    for source in {key for key, _ in sent}:
        offsets = [r["input"]["offset"] for r in results.results() if r["source_id"] == source]
        assert offsets == sorted(offsets), f"{source} is out of order"


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
