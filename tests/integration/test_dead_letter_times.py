"""Dead letters that brokers refuse or delete at once: with times far from now, and without a key. On Apache Kafka."""

from __future__ import annotations

import time
from typing import Any

import pytest

import images
from brokers import Broker, unique_name
from consumer.messages import read_dead_letter, read_record
from consumer.tools.dlq.dead_letters import message_for, read_letter
from consumer.types import Record
from kafka_clients import admin, alter_topic
from sluice_process import Topics, produce, reading, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

FREE = "simulated://0ms@1,0ms@32"
EACH_DELIVERY = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def topics_on(broker: Broker, **dead: Any) -> Topics:
    """`dead`: settings of the dead-letter topic."""
    names = [unique_name("topic") for _ in range(3)]
    # The input takes any time: a camera's clock may be wrong.
    broker.make_topic(names[0], 1, message_timestamp_after_max_ms=10 * DAY_MS)
    broker.make_topic(names[1], 1)
    broker.make_topic(names[2], 1, **dead)
    return Topics(*names)


@EACH_DELIVERY
def test_a_bad_frame_of_the_future_becomes_a_dead_letter(apache_broker: Broker, delivery: str) -> None:
    """Three hours ahead, where the topic takes one (the default). Catches a camera that ends the process forever."""
    topics = topics_on(apache_broker, message_timestamp_after_max_ms=HOUR_MS)
    ahead = now_ms() + 3 * HOUR_MS
    with (
        running(apache_broker, topics, FREE, delivery=delivery) as sluice,
        reading(apache_broker, topics.dead) as letters,
    ):
        produce(apache_broker, topics.frames, [("cam-1", b"damaged")], timestamp=ahead)
        letters.read(1, 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    (message,) = letters.messages
    assert abs(message.timestamp()[1] - now_ms()) < HOUR_MS
    letter = read_dead_letter(read_record(message))
    assert letter is not None
    assert letter.record.timestamp_ms == ahead


def test_old_frames_leave_letters_that_retention_keeps_and_a_replay_that_arrives(apache_broker: Broker) -> None:
    """Frames of eight days ago, and seven days of retention. Catches letters and replays that vanish unread.

    The result of a replayed frame has the capture time of the first record.
    """
    topics = topics_on(apache_broker, retention_ms=7 * DAY_MS)
    old = now_ms() - 8 * DAY_MS
    with (
        running(apache_broker, topics, FREE) as sluice,
        reading(apache_broker, topics.dead) as letters,
        reading(apache_broker, topics.detections) as results,
    ):
        produce(apache_broker, topics.frames, [("cam-1", b"damaged")], timestamp=old)
        (message,) = letters.read(1, 60, alive=lambda: sluice.running)
        assert message.timestamp()[1] > now_ms() - DAY_MS
        # The cause is mended: the same record, now with an image.
        letter = read_letter(0, 0, read_record(message)._replace(value=images.jpeg(64, 48)))
        assert letter is not None
        replay = message_for(letter)
        stamp = {} if replay.timestamp_ms is None else {"timestamp": replay.timestamp_ms}
        produce(apache_broker, topics.frames, [(replay.key, replay.value)], headers=replay.headers, **stamp)
        results.read(1, 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    (result,) = results.results()
    assert result["captured_at_ms"] == old
    with reading(apache_broker, topics.frames) as frames:
        again = frames.read(2, 30)[1]
    assert again.timestamp()[1] > now_ms() - DAY_MS, "retention deletes the replayed frame"


@EACH_DELIVERY
@pytest.mark.parametrize("told", [True, False])
def test_a_frame_without_a_key_reaches_a_compacted_dead_letter_topic(
    apache_broker: Broker, delivery: str, *, told: bool
) -> None:
    """Catches a broker that refuses the same record forever. A replay has no key, as the frame had none.

    `told` false: the topic is compacted only after the program has asked for its settings. With at_least_once the
    refusal then ends the process, so that nothing overtakes; it is started again, as a pod is, and asks again.
    """
    topics = topics_on(apache_broker, **({"cleanup_policy": "compact"} if told else {}))
    with (
        running(apache_broker, topics, FREE, delivery=delivery) as sluice,
        reading(apache_broker, topics.dead) as letters,
    ):
        sluice.wait_ready()
        if not told:
            alter_topic(admin(apache_broker), topics.dead, cleanup_policy="compact")
        produce(apache_broker, topics.frames, [(None, b"damaged"), ("cam-1", b"damaged"), (None, b"damaged")])
        codes: list[int] = []

        def arrived() -> bool:
            if not sluice.running:
                codes.append(sluice.wait())
                sluice.start()
            return len({dict(letter.headers())["ce_id"] for letter in letters.drain(0.2)}) == 3

        wait_until(arrived, 60, "three letters")
        assert sluice.terminate() == 0, sluice.log
        found = {dead.id: dead for dead in map(read_dead_letter, map(read_record, letters.drain())) if dead is not None}
    assert codes == [] or (codes == [5] and delivery == "at_least_once" and not told), sluice.log
    assert ('"restart_helps": true' in sluice.log) is bool(codes), sluice.log
    assert [found[f"{topics.frames}/0/{n}"].record.key for n in range(3)] == [None, b"cam-1", None]
    assert all(isinstance(dead.record, Record) for dead in found.values())
    assert ("topic is compacted" in sluice.log) is (told or bool(codes))
