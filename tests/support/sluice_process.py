"""The real program as a child process, and a reader of the topics that it writes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import confluent_kafka

from brokers import Broker, unique_name
from consumer.messages import decode_result
from consumer.tools.embedded import dies_with_parent, free_port
from waiting import wait_until


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one test on one broker."""

    frames: str
    detections: str
    dead: str

    @classmethod
    def on(cls, broker: Broker, partitions: int = 4) -> Topics:
        return cls(*(broker.new_topic(partitions) for _ in range(3)))


_LOGS = tempfile.TemporaryDirectory(prefix="sluice-logs-")  # gone with this process


@dataclass
class Sluice:
    """`sluice run` with its configuration in the environment, as a pod has it. Restartable; one group over restarts."""

    broker: Broker
    topics: Topics
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = field(default_factory=lambda: unique_name("group"))
    port: int = field(default_factory=free_port)
    entry: Sequence[str] = ("-m", "consumer")  # what Python runs
    variables: Mapping[str, str] = field(default_factory=dict)  # more of the environment
    _process: subprocess.Popen[bytes] | None = None
    _log: Path = field(default_factory=lambda: Path(tempfile.mkstemp(".log", dir=_LOGS.name)[1]))

    def environment(self) -> dict[str, str]:
        settings = {
            "kafka.bootstrap_servers": self.broker.bootstrap_servers,
            "kafka.group_id": self.group,
            "kafka.consumer": dict(self.broker.client_settings),
            "input.topics": [self.topics.frames],
            "output.topic": self.topics.detections,
            "dead_letter.topic": self.topics.dead,
            "detector.model": self.model,
            "http.port": self.port,
            **self.options,
        }
        encoded = {
            "SLUICE_" + path.replace(".", "__").upper(): value if isinstance(value, str) else json.dumps(value)
            for path, value in settings.items()
        }
        return {**os.environ, **encoded, **self.variables}

    def start(self) -> Sluice:
        command = dies_with_parent([sys.executable, *self.entry, "run"])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log)
        return self

    def wait_ready(self, timeout: float = 120) -> Sluice:
        wait_until(lambda: self._alive() and self.get("/readyz")[0] == 200, timeout, "/readyz to answer 200")
        return self

    def get(self, path: str) -> tuple[int, str]:
        """(status, body); status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: nothing is drained, nothing is committed."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Killed, unless it has ended: for the end of a test."""
        if self.running:
            self.kill()

    def terminate(self, timeout: float = 40) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self.wait(timeout)

    def wait(self, timeout: float = 40) -> int:
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program did not end within {timeout} s\n{self.log}") from None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def remove_log(self) -> None:
        self._log.unlink(missing_ok=True)

    def _alive(self) -> bool:
        assert self.running, f"the program has ended\n{self.log}"
        return True


@contextlib.contextmanager
def running(broker: Broker, topics: Topics, model: str, **options: Any) -> Iterator[Sluice]:
    """Started; killed at the end unless it has ended before. Options with `__` for the dot."""
    sluice = Sluice(broker, topics, model, {path.replace("__", "."): value for path, value in options.items()})
    try:
        yield sluice.start()
    finally:
        sluice.stop()


def produce(
    broker: Broker, topic: str, records: Sequence[tuple[bytes | str | None, bytes | None]], **more: Any
) -> None:
    """Write (key, value) records and wait until all are acknowledged."""
    failed: list[object] = []
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.max.bytes": 20_000_000,
            "linger.ms": 5,
            **broker.own_settings,
        }
    )
    for key, value in records:
        producer.produce(topic, value, key, on_delivery=lambda error, _: error and failed.append(error), **more)
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not failed, failed


class Reader:
    """Reads a topic from its beginning, without a group, and keeps all that it saw in `messages`."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.topic = topic
        self.messages: list[confluent_kafka.Message] = []
        self._client = confluent_kafka.Consumer(
            {
                "bootstrap.servers": broker.bootstrap_servers,
                "group.id": unique_name("reader"),
                "enable.auto.commit": False,
                "fetch.queue.backoff.ms": 10,
                "fetch.wait.max.ms": 50,
                **broker.own_settings,
            }
        )
        partitions = self._client.list_topics(topic, timeout=10).topics[topic].partitions
        self._client.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in partitions])

    def read(
        self, count: int, timeout: float, alive: Callable[[], object] = lambda: True
    ) -> list[confluent_kafka.Message]:
        """Read until `count` messages were seen in all. AssertionError with the number seen after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while len(self.messages) < count:
            assert time.monotonic() < deadline, f"{self.topic}: {len(self.messages)} of {count} after {timeout} s"
            assert alive()
            self._poll(0.2)
        return self.messages

    def drain(self, quiet_s: float = 1.0) -> list[confluent_kafka.Message]:
        """Read what is there, until nothing has come for `quiet_s`."""
        while self._poll(quiet_s):
            pass
        return self.messages

    def results(self) -> list[dict[str, Any]]:
        """The messages seen so far, decoded."""
        return [decode_result(message.value()) for message in self.messages]

    def close(self) -> None:
        self._client.close()

    def _poll(self, timeout: float) -> bool:
        message = self._client.poll(timeout)
        if message is None:
            return False
        assert message.error() is None, message.error()
        self.messages.append(message)
        return True


@contextlib.contextmanager
def reading(broker: Broker, topic: str) -> Iterator[Reader]:
    reader = Reader(broker, topic)
    try:
        yield reader
    finally:
        reader.close()
