"""Child process: a reader of the results that notes when each could be seen, while the run goes on.

python -m consumer.tools.bench.result_reader JSON     (the fields of `Watch`)

It is `read_committed`: the results of a transaction come to it when that has committed, not when they were written.
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

_ANSWER_S = 10.0
_QUIET_S = 1.0  # after it was told to end: what was committed is here within this


@dataclass(frozen=True, slots=True)
class Watch:
    """Which topic to read, from its beginning, until SIGTERM."""

    bootstrap_servers: str
    topic: str
    report: str  # the file to write the times to

    def argument(self) -> str:
        """For the command line of the child process."""
        return json.dumps(asdict(self))

    def seen(self) -> dict[tuple[int, int], int]:
        """What the child process noted: Unix milliseconds by (partition, offset) of the frame."""
        return {(partition, offset): ms for partition, offset, ms in msgpack.unpackb(Path(self.report).read_bytes())}


def watch(job: Watch, stop: threading.Event) -> list[tuple[int, int, int]]:
    """(partition, offset, Unix milliseconds) for each frame whose result was seen."""
    client = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": "sluice-bench-watcher",  # asked for by the client; nothing joins or commits
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": 1,
            "fetch.wait.max.ms": 100,
        }
    )
    partitions = client.list_topics(job.topic, timeout=_ANSWER_S).topics[job.topic].partitions
    client.assign([TopicPartition(job.topic, number, 0) for number in partitions])
    came: list[tuple[int, bytes]] = []
    until: float | None = None
    while until is None or time.monotonic() < until:
        message = client.poll(0.1)
        if stop.is_set() and until is None:
            until = time.monotonic() + _QUIET_S
        if message is not None and message.error() is None:
            came.append((time.time_ns() // 1_000_000, message.value() or b""))
    client.close()
    places = ((ms, decode_result(value)["input"]) for ms, value in came)  # decoded now: it took no time from the run
    return [(place["partition"], place["offset"], ms) for ms, place in places]


def main() -> None:
    """Entry point of the child process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    job = Watch(**json.loads(sys.argv[1]))
    Path(job.report).write_bytes(msgpack.packb(watch(job, stop)))


if __name__ == "__main__":
    main()
