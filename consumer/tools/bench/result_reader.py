"""Child process: reads the results while the run goes on, and records when each one became visible.

python -m consumer.tools.bench.result_reader JSON     (the fields of `ReadJob`)

The reader is `read_committed`: it gets the results of a transaction when that has committed, not when they are
written.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import msgpack
from confluent_kafka import Consumer, TopicPartition

from consumer.messages import decode_result

_TIMEOUT_S = 10.0
_READ_ON_S = 1.0  # after SIGTERM; committed results arrive within this time


@dataclass(frozen=True, slots=True)
class ReadJob:
    """The topic to read, from its beginning until SIGTERM, and the file to write the times to."""

    bootstrap_servers: str
    topic: str
    report: str

    def argument(self) -> str:
        """The job as the command line argument of the child process."""
        return json.dumps(asdict(self))

    def visible_at_ms(self) -> dict[tuple[int, int], int]:
        """Read the report of the child process: Unix milliseconds by (partition, offset) of the frame."""
        return {(partition, offset): ms for partition, offset, ms in msgpack.unpackb(Path(self.report).read_bytes())}


def read_results(job: ReadJob, stop: threading.Event) -> list[tuple[int, int, int]]:
    """Read until `stop` is set.

    Returns:
        (partition, offset, Unix milliseconds) of each frame with a visible result.
    """
    client = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": "sluice-bench-watcher",  # the client requires one; it joins no group and commits nothing
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": 1,
            "fetch.wait.max.ms": 100,
        }
    )
    partitions = client.list_topics(job.topic, timeout=_TIMEOUT_S).topics[job.topic].partitions
    client.assign([TopicPartition(job.topic, number, 0) for number in partitions])
    received: list[tuple[int, bytes]] = []
    until: float | None = None
    while until is None or time.monotonic() < until:
        message = client.poll(0.1)
        if stop.is_set() and until is None:
            until = time.monotonic() + _READ_ON_S
        if message is not None and message.error() is None:
            received.append((time.time_ns() // 1_000_000, message.value() or b""))
    client.close()
    # Decoded after the run, so that decoding takes no CPU from it.
    inputs = ((ms, decode_result(value)["input"]) for ms, value in received)
    return [(frame["partition"], frame["offset"], ms) for ms, frame in inputs]


def main() -> None:
    """Entry point of the child process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    job = ReadJob(**json.loads(sys.argv[1]))
    Path(job.report).write_bytes(msgpack.packb(read_results(job, stop)))


if __name__ == "__main__":
    main()
