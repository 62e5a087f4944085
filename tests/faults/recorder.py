"""Three threads that write a history: one feeds frames, one reads the outcomes, one samples the committed offsets.

They talk to the brokers directly, never through a proxy, and ride out whatever is done to the brokers.
"""

from __future__ import annotations

import abc
import threading
import time
from collections import defaultdict
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaException

import pictures
from brokers import unique_name
from history import Delivery, History, InputId, Position, Sample, Sent
from sluice_process import Topics
from waiting import wait_until

SAMPLE_EVERY_S = 0.1
_ANSWER_S = 2.0
_CLIENT = {"log_level": 0, "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 500}


class Loop(abc.ABC):
    """A thread that calls `turn` until it is stopped. What it raises is raised again by `stop`."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abc.abstractmethod
    def turn(self) -> None:
        """What is done over and over."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.turn()
        except BaseException as error:  # noqa: BLE001 - raised again by stop
            self._failure = error


class Feeder(Loop):
    """Frames of `sources` cameras in turn, `rate` a second in all, however long the brokers take them."""

    def __init__(self, history: History, bootstrap: str, topic: str, *, sources: int, rate: float) -> None:
        super().__init__()
        self._history = history
        self._topic = topic
        self._sources = [f"cam-{number}" for number in range(sources)]
        self._every_s = 1 / rate
        self._number = 0
        self._due = time.monotonic()
        self._bootstrap = bootstrap
        self._client = self._new_client()

    def turn(self) -> None:
        # A feeder that was held up goes on from now: a burst of its own would look like a fault's backlog.
        self._due = max(self._due + self._every_s, time.monotonic() - 0.5)
        try:
            self._client.poll(max(0.0, self._due - time.monotonic()))
        except (KafkaException, SystemError):
            # A fatal error of the idempotent producer; SystemError where it meets a delivery report in the library.
            # What it had not delivered may be in the topic or not: the topic itself says what was sent.
            self._client = self._new_client()
        self.send()

    def send(self) -> None:
        source = self._sources[self._number % len(self._sources)]
        value = pictures.frame(self._number)
        self._number += 1
        try:
            self._client.produce(self._topic, value, source, on_delivery=self._delivered)
        except BufferError:
            self._client.poll(0.05)

    def finish(self, timeout_s: float) -> None:
        """Stop, and wait until the brokers have answered for every frame."""
        self.stop()
        left = self._client.flush(timeout_s)
        assert left == 0, f"the brokers did not take {left} frames within {timeout_s:g} s"

    def _new_client(self) -> confluent_kafka.Producer:
        return confluent_kafka.Producer(
            {
                **_CLIENT,
                "bootstrap.servers": self._bootstrap,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "delivery.timeout.ms": 300_000,
            }
        )

    def _delivered(self, error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
        # Acknowledged as a duplicate of an attempt whose answer was lost, it comes without its offset.
        if error is None and message.offset() >= 0:
            self._history.acknowledged.append(Sent(InputId(message.partition(), message.offset()), key_of(message)))


class Observer(Loop):
    """Notes when outcomes arrive at a reader. What the topics hold in the end is for `read_outcomes` to say."""

    def __init__(self, delivery: Delivery, bootstrap: str, topics: Topics) -> None:
        super().__init__()
        self._client = reader(bootstrap, isolation_of(delivery))
        self._client.assign(beginnings(self._client, topics.detections) + beginnings(self._client, topics.dead))
        self.seen: set[InputId] = set()
        self.fresh_s: dict[int, float] = defaultdict(float)  # input partition -> when its last new outcome came
        self.arrived_s: dict[Position, float] = {}

    def turn(self) -> None:
        message = self._client.poll(0.1)
        if message is None or message.error() is not None:  # brokers come and go here
            return
        now, outcome = time.monotonic(), input_id(message)
        if outcome not in self.seen:
            self.seen.add(outcome)
            self.fresh_s[outcome.partition] = now
        self.arrived_s[position_of(message)] = now

    def stop(self) -> None:
        super().stop()
        self._client.close()


class Sampler(Loop):
    """Asks for the committed offsets, then for the ends of the topics. A question without an answer makes no sample."""

    def __init__(self, history: History, bootstrap: str, group: str, topics: Topics) -> None:
        super().__init__()
        self._history = history
        # Uncommitted: what a transaction wrote is acknowledged before its offsets can become visible.
        self._client = reader(bootstrap, "read_uncommitted", group)
        self._inputs = beginnings(self._client, topics.frames)
        self._outputs = beginnings(self._client, topics.detections) + beginnings(self._client, topics.dead)

    def turn(self) -> None:
        if (sample := self.take()) is not None:
            self._history.samples.append(sample)
        self._stopped.wait(SAMPLE_EVERY_S)

    def take(self) -> Sample | None:
        asked_s = time.monotonic()
        try:
            committed = self._client.committed(self._inputs, timeout=_ANSWER_S)
            ends = {
                (each.topic, each.partition): self._client.get_watermark_offsets(each, timeout=_ANSWER_S)[1]
                for each in self._outputs
            }
        except KafkaException:
            return None
        if any(each.error is not None for each in committed):
            return None
        return Sample(asked_s, {each.partition: each.offset for each in committed if each.offset >= 0}, ends)

    def stop(self) -> None:
        super().stop()
        self._client.close()


def reader(bootstrap: str, isolation: str, group: str = "", **more: Any) -> confluent_kafka.Consumer:
    return confluent_kafka.Consumer(
        {
            **_CLIENT,
            "bootstrap.servers": bootstrap,
            "group.id": group or unique_name("observer"),
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 10,
            "fetch.wait.max.ms": 20,
            **more,
        }
    )


def isolation_of(delivery: Delivery) -> str:
    return "read_committed" if delivery == "exactly_once" else "read_uncommitted"


def beginnings(client: confluent_kafka.Consumer, topic: str) -> list[confluent_kafka.TopicPartition]:
    partitions: list[int] = []

    def known() -> bool:  # a broker may have heard of the topic, and of no partition of it yet
        partitions[:] = client.list_topics(topic, timeout=10).topics[topic].partitions
        return bool(partitions)

    wait_until(known, 30, f"the partitions of {topic}")
    return [confluent_kafka.TopicPartition(topic, number, 0) for number in partitions]


def input_id(message: confluent_kafka.Message) -> InputId:
    _, partition, offset = dict(message.headers())["ce_id"].decode().rsplit("/", 2)
    return InputId(int(partition), int(offset))


def position_of(message: confluent_kafka.Message) -> Position:
    return Position(message.topic(), message.partition(), message.offset())


def key_of(message: confluent_kafka.Message) -> str:
    return (message.key() or b"").decode()
