"""Hostile records through a real broker and the real program: none of them ends it, each has its one outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import confluent_kafka
import numpy as np
import pytest

import fuzz_images
import fuzz_records
import images
from brokers import Broker
from consumer import messages as wire
from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.types import Letterbox, LetterboxPolicy, Record, Rejected
from raw_producer import produce_raw
from sluice_process import Reader, Topics, reading, running
from sluice_process import produce as produce_all
from wire_records import RECEIPT

FREE = "simulated://0ms@1,0ms@32"


def test_a_header_name_that_is_no_text_costs_its_record_alone(broker: Broker) -> None:
    """Catches a poison pill: confluent-kafka raises SystemError for its headers, and each restart would meet it again.

    `tail` and `dlq` read the same topics with the same library.
    """
    topics = Topics.on(broker, partitions=1)
    good = ("cam-good", images.jpeg(64, 48))
    with running(broker, topics, FREE) as sluice, reading(broker, topics.detections) as reader:
        produce_all(broker, topics.frames, [good])
        produce_raw(broker, topics.frames, b"cam-1", b"value", [(b"source-id", b"x"), (b"caf\xe9", b"y")])
        produce_all(broker, topics.frames, [good])
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
    assert "1 record is not a dead letter of Sluice" in listed


@pytest.mark.kafka
def test_a_header_name_that_is_no_text_costs_its_record_alone_in_a_program_that_has_run_for_a_while(
    apache_broker: Broker,
) -> None:
    """Catches an error of the client library that only a program at its start sees where it happens.

    CPython checks it in the first few calls of a line. Later it appears somewhere else, and ends the process.
    """
    topics = Topics.on(apache_broker, partitions=1)
    good = ("cam-good", images.jpeg(64, 48))
    with running(apache_broker, topics, FREE) as sluice, reading(apache_broker, topics.detections) as reader:
        produce_all(apache_broker, topics.frames, [good] * 100)
        reader.read(100, 60, alive=lambda: sluice.running)
        produce_raw(apache_broker, topics.frames, b"cam-1", b"value", [(b"caf\xe9", b"y")])
        produce_all(apache_broker, topics.frames, [good])
        reader.read(101, 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log


GOOD = Record(b"cam-good", images.jpeg(64, 48), (), None)
CASES = 300  # of each kind


@pytest.fixture(scope="module")
def mix() -> list[Record]:
    """Malformed images and records of the fuzz tests, a good frame behind each."""
    hostile = [Record(b"cam-%d" % (seed % 7), fuzz_images.image(seed), (), None) for seed in range(CASES)]
    hostile += [fuzz_records.record(seed) for seed in range(CASES)]
    return [record for bad in hostile for record in (bad, GOOD)]


def test_of_hundreds_of_malformed_records_each_has_its_one_outcome_and_its_neighbours_are_detected(
    broker: Broker, mix: list[Record]
) -> None:
    """Catches a frame that is lost, answered twice, or answered for another reason than parsing and decoding gave.

    And a line of the log that a producer wrote: every one of them must be one JSON object. On one of the brokers the
    frames are decoded in processes of their own, which changes no outcome.
    """
    topics = Topics.on(broker, partitions=1)
    isolation = "process" if broker.name == "apache" else "none"
    with (
        running(broker, topics, FREE, log__format="json", decode__isolation=isolation) as sluice,
        reading(broker, topics.detections) as reader,
        reading(broker, topics.dead) as morgue,
    ):
        _send(broker, topics.frames, mix)
        expected = {offset: _expected(record) for offset, record in enumerate(mix)}
        kinds = Counter("detected" if outcome == "detected" else "dead" for outcome in expected.values())
        reader.read(kinds["detected"], 60, alive=lambda: sluice.running)
        morgue.read(kinds["dead"], 60, alive=lambda: sluice.running)
        assert sluice.terminate() == 0, sluice.log
        reader.drain()
        morgue.drain()
    outcomes = [(result["input"]["offset"], "detected") for result in reader.results()]
    outcomes += [(letter.offset, letter.reason) for letter in _letters(morgue)]
    assert Counter(offset for offset, _ in outcomes) == Counter(range(len(mix))), "not one outcome each"
    assert dict(outcomes) == expected
    assert kinds["dead"] > CASES
    assert len(set(expected.values())) > 6, "the mix is no longer one"
    for line in sluice.log.splitlines():
        if not line.startswith("libpng "):  # it says what it says, without a word of the file
            assert json.loads(line)["event"], line


def _send(broker: Broker, topic: str, records: list[Record]) -> None:
    failed: list[object] = []
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": broker.bootstrap_servers, "enable.idempotence": True, "message.max.bytes": 20_000_000}
    )
    for record in records:
        headers = list(record.headers) or None
        producer.produce(
            topic,
            record.value,
            record.key,
            headers=headers,
            on_delivery=lambda error, _: error and failed.append(error),
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not failed, failed


def _expected(record: Record) -> str:
    """What parsing and decoding by themselves make of it."""
    verdict = wire.parse_frame(record, RECEIPT, 0.0).verdict
    if verdict is None:
        decoder = Decoder(DecodeConfig(), LetterboxPolicy())
        slot = np.empty(decoder.slot_bytes, np.uint8)
        outcome = decoder.decode(wire.parse_frame(record, RECEIPT, 0.0).payload, slot)
        if isinstance(outcome, Letterbox):
            return "detected"
        verdict = outcome
    assert isinstance(verdict, Rejected)
    return verdict.reason


def _letters(morgue: Reader) -> list[wire.DeadLetter]:
    letters = [wire.read_dead_letter(wire.read_record(message)) for message in morgue.messages]
    assert all(letters)
    return [letter for letter in letters if letter is not None]


def _sluice(*arguments: str, broker: Broker) -> str:
    command = [sys.executable, "-m", "consumer", *arguments, "--bootstrap-servers", broker.bootstrap_servers]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
