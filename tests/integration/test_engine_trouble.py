"""Engine trouble on a real broker, with the real program and the simulated detector's scripted faults."""

from __future__ import annotations

import json

import numpy as np
import pytest
import simplejpeg

import images
from brokers import Broker
from kafka_clients import group_offset
from sluice_process import Reader, Sluice, Topics, produce, reading, running

pytestmark = pytest.mark.kafka

ENGINE = "simulated://1ms@1,8ms@8"
BATCH = 8
ENGINE_ERROR = 6


def camera(count: int, poison: int = -1) -> list[tuple[str, bytes]]:
    """So many frames of one camera; the one with the number `poison` is black."""
    picture = images.jpeg(64, 48, 1)
    black = bytes(simplejpeg.encode_jpeg(np.zeros((48, 64, 3), np.uint8)))
    return [("cam-1", black if n == poison else picture) for n in range(count)]


def offsets(reader: Reader) -> list[int]:
    return [result["input"]["offset"] for result in reader.results()]


def said(sluice: Sluice, event: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in sluice.log.splitlines() if f'"event": "{event}"' in line]


def test_out_of_memory_halves_the_batches_and_is_met_once(apache_broker: Broker) -> None:
    """Catches: frames lost at the seams of a halved batch, and running into the same wall with every batch."""
    topics = Topics.on(apache_broker, partitions=1)
    produce(apache_broker, topics.frames, camera(200))
    with (
        running(apache_broker, topics, f"{ENGINE}?fault=oom>2@3+", batching__max_batch_size=BATCH) as sluice,
        reading(apache_broker, topics.detections) as reader,
    ):
        reader.read(200, 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    assert offsets(reader) == list(range(200))
    assert [line["ceiling"] for line in said(sluice, "engine out of memory")] == [4, 2]
    assert group_offset(apache_broker, sluice.group, topics.frames) == 200


def test_a_poison_frame_is_isolated_and_its_neighbours_are_detected(apache_broker: Broker) -> None:
    """Catches: a batch that fails with one of its frames, and a frame that ends the process for ever."""
    topics = Topics.on(apache_broker, partitions=1)
    produce(apache_broker, topics.frames, camera(100, poison=42))
    with (
        running(apache_broker, topics, f"{ENGINE}?fault=error:black", batching__max_batch_size=BATCH) as sluice,
        reading(apache_broker, topics.detections) as reader,
        reading(apache_broker, topics.dead) as morgue,
    ):
        reader.read(99, 60, alive=lambda: sluice.running)
        (letter,) = morgue.read(1, 30, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    assert offsets(reader) == [n for n in range(100) if n != 42]
    headers = dict(letter.headers())
    assert headers["__connect.errors.offset"] == b"42"
    assert headers["__connect.errors.exception.class.name"] == b"engine"
    assert b"simulated fault error:black" in headers["__connect.errors.exception.message"]
    assert group_offset(apache_broker, sluice.group, topics.frames) == 100


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("lost@5", "the device is lost"),
        ("hang@5", "the engine has not returned for 45 s"),
    ],
)
def test_a_broken_engine_ends_the_process_without_a_commit_of_its_batch_and_another_finishes_it(
    apache_broker: Broker, fault: str, words: str
) -> None:
    """Catches: frames sent to the dead letters, or committed, because the device was lost; a pod that hangs with it."""
    topics = Topics.on(apache_broker, partitions=1)
    produce(apache_broker, topics.frames, camera(200))
    options = {"batching__max_batch_size": BATCH, "limits__stall_timeout_s": 45, "kafka__commit_interval_ms": 100}
    with reading(apache_broker, topics.detections) as reader:
        with running(apache_broker, topics, f"{ENGINE}?fault={fault}", **options) as first:
            assert first.wait(90) == ENGINE_ERROR, first.log
        reader.drain()
        before, kept = offsets(reader), group_offset(apache_broker, first.group, topics.frames)
        critical = [line for line in first.log.splitlines() if '"level": "critical"' in line]
        # Only this line of librdkafka may come before: the close purges the results that are on their way.
        (last_words,) = [line for line in critical if "Purged in flight" not in line]
        assert words in last_words
        assert before == list(range(len(before)))
        assert len(before) <= 4 * BATCH  # the fifth batch has no outcome
        assert kept <= len(before)
        with running(apache_broker, topics, ENGINE, kafka__group_id=first.group, **options) as second:
            reader.read(len(before) + 200 - kept, 60, lambda: second.running)
            assert second.terminate() == 0, second.log
        reader.drain()
        with reading(apache_broker, topics.dead) as morgue:
            assert morgue.drain() == []
    assert sorted(set(offsets(reader))) == list(range(200))
    assert group_offset(apache_broker, first.group, topics.frames) == 200
