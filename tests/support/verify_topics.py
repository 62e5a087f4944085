"""What tests of `sluice verify` share: topics written by hand, and the command as a person calls it."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Place
from typer.testing import CliRunner

from apache_kafka import KafkaCluster
from brokers import Broker, unique_name
from consumer.cli import app
from consumer.errors import SluiceError
from consumer.messages import Message, ResultEncoder, encode_dead_letter
from consumer.tools import clients
from consumer.tools.verify.request import Request
from consumer.tools.verify.run import Progress, open_run
from consumer.tools.verify.types import Report
from consumer.types import Detected, Detections, Frame, ModelInfo, Receipt, Record, Rejected, TopicPartition
from kafka_clients import consumer_settings, new_producer
from sluice_process import Topics

AT = 1_700_000_000_000


class ByHand:
    """Topics, a group, and what stands in them. An input record is named by its partition and offset."""

    def __init__(self, broker: Broker, partitions: int = 1) -> None:
        self.broker, self.partitions = broker, partitions
        self.topics = Topics.on(broker, partitions)
        self.group = unique_name("group")
        self._encoder = ResultEncoder(format="json", model=ModelInfo("m", "sha256:0"), source=f"/sluice/{self.group}")
        self.producer = new_producer(broker, partitioner="murmur2_random")

    def send(self, count: int, partition: int = 0, producer: Producer | None = None) -> ByHand:
        """So many frames, of three cameras in turn, a second apart."""
        sender = producer or self.producer
        for n in range(count):
            sender.produce(self.topics.frames, b"image", f"cam-{n % 3}", partition=partition, timestamp=AT + 1000 * n)
        assert sender.flush(30) == 0
        return self

    def result(self, *offsets: int, source: str = "cam", partition: int = 0, group: str | None = None) -> ByHand:
        for offset in offsets:
            self._write(self.topics.detections, self._result(offset, source, partition))
        return self

    def letter(self, *offsets: int, source: str = "cam", partition: int = 0) -> ByHand:
        for offset in offsets:
            message = encode_dead_letter(
                self._frame(offset, source, partition),
                Rejected("decode", "damaged", "why"),
                source=f"/sluice/{self.group}",
                max_bytes=10**6,
                now_ms=int(time.time() * 1000),
            )
            self._write(self.topics.dead, message)
        return self

    def commit(self, offset: int, partition: int = 0) -> ByHand:
        place = Place(self.topics.frames, partition, offset)
        with closing(Consumer(consumer_settings(self.broker, group_id=self.group))) as client:
            client.commit(offsets=[place], asynchronous=False)
        return self

    def options(self) -> list[str]:
        """Of `sluice verify`."""
        topics = ["--input", self.topics.frames, "--output", self.topics.detections, "--dead-letter", self.topics.dead]
        return ["--bootstrap-servers", self.broker.bootstrap_servers, *topics, "--group", self.group]

    def verify(self, *more: str, code: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(sluice_verify(*self.options(), "--json", *more, code=code))
        return found

    def _frame(self, offset: int, source: str, partition: int) -> Frame:
        record = Record(source.encode(), b"image", (), AT)
        at = TopicPartition(self.topics.frames, partition)
        return Frame(source, str(offset), AT, b"image", 0.0, Receipt(at, offset, 1), record)

    def _result(self, offset: int, source: str, partition: int) -> Message:
        return self._encoder.encode(
            self._frame(offset, source, partition),
            Detected(Detections.none(), 640, 480),
            batch_size=1,
            timings_ms={"queue": 1.0, "decode_wait": 0.1, "infer": 6.5},
            published_at_ms=int(time.time() * 1000),
        )

    def _write(self, topic: str, message: Message) -> None:
        self.producer.produce(
            topic, message.value, message.key, headers=message.headers, timestamp=message.timestamp_ms or 0
        )
        assert self.producer.flush(30) == 0


def sluice_verify(*arguments: str, code: int) -> str:
    """Its stdout. `code` is the exit code that the program would have."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = CliRunner().invoke(app, ["verify", *arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    failure = done.exception
    found = failure.exit_code if isinstance(failure, SluiceError) else done.exit_code
    assert found == code, (found, failure, done.output)
    return done.stdout if failure is None or isinstance(failure, SystemExit) else str(failure)


def run_in_process(by_hand: ByHand, progress: Progress) -> Report:
    """Something happens in the middle of the check: `progress` does it."""
    topics = by_hand.topics
    request = Request(
        (topics.frames,), topics.detections, topics.dead, by_hand.group, exactly_once=True, isolation="read_committed"
    )
    connection = clients.connection(None, by_hand.broker.bootstrap_servers, None)
    now_ms = int(time.time() * 1000)
    return open_run(connection, request, now_ms=now_ms, stop=threading.Event(), progress=progress)()


def kinds(found: dict[str, Any]) -> dict[str, int]:
    return {kind: count for kind, count in found["counts"]["violations"].items() if count}


def delete(kafka: KafkaCluster, topic: str, before: int) -> None:
    """Remove what stands below an offset of partition 0, as retention does."""
    admin = kafka.admin()
    for each in admin.delete_records([Place(topic, 0, before)]).values():
        each.result(10)
