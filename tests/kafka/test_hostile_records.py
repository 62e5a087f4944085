"""Hostile records through a real broker and the real program: none of them ends it, each has its one outcome."""

from __future__ import annotations

import os
import subprocess
import sys

import images
from brokers import Broker
from raw_producer import produce_raw
from sluice_process import Topics, produce, reading, running

FREE = "simulated://0ms@1,0ms@32"


def test_a_header_name_that_is_no_text_costs_its_record_alone(broker: Broker) -> None:
    """Catches a poison pill: confluent-kafka raises SystemError for its headers, and each restart would meet it again.

    `tail` and `dlq` read the same topics with the same library.
    """
    topics = Topics.on(broker, partitions=1)
    good = ("cam-good", images.jpeg(64, 48))
    with running(broker, topics, FREE) as sluice, reading(broker, topics.detections) as reader:
        produce(broker, topics.frames, [good])
        produce_raw(broker, topics.frames, b"cam-1", b"value", [(b"source-id", b"x"), (b"caf\xe9", b"y")])
        produce(broker, topics.frames, [good])
        reader.read(2, 60, alive=lambda: sluice.running)
        with reading(broker, topics.dead) as morgue:
            (letter,) = morgue.read(1, 30, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
    assert [result["input"]["offset"] for result in reader.results()] == [0, 2]
    headers = dict(letter.headers())
    assert headers["__connect.errors.exception.class.name"] == b"unreadable_headers"
    assert headers["sluice-truncated"] == b"true"  # a replay of it is no repair
    assert (letter.key(), letter.value()) == (b"cam-1", b"value")

    produce_raw(broker, topics.detections, b"cam-1", b"value", [(b"\xff", b"y")])
    said = _sluice("tail", "--topic", topics.detections, "--from-beginning", "--frames", "2", "--json", broker=broker)
    assert said.count('"source_id": "cam-good"') == 2
    produce_raw(broker, topics.dead, b"cam-1", b"value", [(b"\xff", b"y")])
    listed = _sluice("dlq", "list", "--topic", topics.dead, broker=broker)
    assert "unreadable_headers" in listed
    assert "1 record is no dead letter of Sluice" in listed


def _sluice(*arguments: str, broker: Broker) -> str:
    command = [sys.executable, "-m", "consumer", *arguments, "--bootstrap-servers", broker.bootstrap_servers]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
