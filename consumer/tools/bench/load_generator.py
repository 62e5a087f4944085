"""Child process: produces frames, at once or evenly paced, and records what the broker acknowledged.

python -m consumer.tools.bench.load_generator JSON     (the fields of `LoadJob`)
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from confluent_kafka import Message, Producer

from consumer.tools.bench import frames as images
from consumer.tools.bench.broker import client_settings

_FLUSH_S = 60.0


class Produced(NamedTuple):
    """One acknowledged frame: its partition and offset, its record's timestamp in Unix milliseconds, its source."""

    partition: int
    offset: int
    timestamp_ms: int
    source_id: str


@dataclass(frozen=True, slots=True)
class LoadJob:
    """What to produce.

    Attributes:
        bootstrap_servers: The address of the broker.
        topic: The topic to write to.
        frames: A file of `frames.save`; its frames repeat.
        count: The number of frames.
        rate: Frames/s over all sources, evenly spaced; 0: as fast as the broker accepts them.
        sources: The number of sources, which take turns.
        partitions: The number of partitions.
        report: The file to write the acknowledged frames to.
        embedded: Whether the broker is embedded; else the client settings are those of the configuration.
    """

    bootstrap_servers: str
    topic: str
    frames: str
    count: int
    rate: float
    sources: int
    partitions: int
    report: str
    embedded: bool = True

    def argument(self) -> str:
        """The job as the command line argument of the child process."""
        return json.dumps(asdict(self))

    def acknowledged(self) -> list[Produced]:
        """Read the report of the child process."""
        rows: list[list[Any]] = msgpack.unpackb(Path(self.report).read_bytes())
        return [Produced(*row) for row in rows]


def generate(job: LoadJob) -> list[Produced]:
    """Produce all frames and wait for the acknowledgements. Frame n is due n / rate seconds after the first.

    Returns:
        The acknowledged frames, in the order of their delivery reports.

    Raises:
        RuntimeError: A frame was not acknowledged.
    """
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0 if job.rate else 5,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 64 * 1024,
            **client_settings(is_embedded=job.embedded),
        }
    )
    produced: list[Produced] = []
    failed: list[str] = []

    def report(error: Any, message: Message) -> None:
        if error is not None:
            failed.append(error.str())
        else:
            partition, offset, key = message.partition(), message.offset(), message.key()
            assert partition is not None and offset is not None and isinstance(key, bytes)  # noqa: PT018
            produced.append(Produced(partition, offset, message.timestamp()[1], key.decode()))

    payloads = images.load(Path(job.frames))
    keys = [b"cam-%d" % number for number in range(job.sources)]
    interval = 1 / job.rate if job.rate else 0.0
    started = time.monotonic()
    for number in range(job.count):
        source = number % job.sources
        if (wait_s := started + number * interval - time.monotonic()) > 0:
            time.sleep(wait_s)
        record = {
            "value": payloads[number % len(payloads)],
            "key": keys[source],
            "partition": source % job.partitions,  # evenly, so that the run does not depend on hashes
            "timestamp": time.time_ns() // 1_000_000,
        }
        while not _sent(producer, job.topic, record, report):
            producer.poll(0.05)
        producer.poll(0)
    pending = producer.flush(_FLUSH_S)
    if failed or pending:
        raise RuntimeError(f"{len(failed)} frames were refused ({failed[:1]}), {pending} not acknowledged")
    return produced


def _sent(producer: Producer, topic: str, record: dict[str, Any], report: Any) -> bool:
    """False if the local queue is full."""
    try:
        producer.produce(topic, on_delivery=report, **record)
    except BufferError:
        return False
    return True


def main() -> None:
    """Entry point of the child process."""
    job = LoadJob(**json.loads(sys.argv[1]))
    Path(job.report).write_bytes(msgpack.packb([list(row) for row in generate(job)]))


if __name__ == "__main__":
    main()
