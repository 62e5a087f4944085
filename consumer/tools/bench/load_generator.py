"""Child process: the producer. Writes frames, at once or evenly paced, and notes what the broker acknowledged.

python -m consumer.tools.bench.load_generator JSON     (the fields of `Feed`)
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


class Fed(NamedTuple):
    """One frame that the broker has: where it lies, its record's timestamp (Unix milliseconds), its source."""

    partition: int
    offset: int
    timestamp_ms: int
    source_id: str


@dataclass(frozen=True, slots=True)
class Feed:
    """What to send. `rate`: frames a second over all sources, evenly spaced; 0: as fast as the broker takes them."""

    bootstrap_servers: str
    topic: str
    frames: str  # a file of `frames.save`
    count: int
    rate: float
    sources: int
    partitions: int
    report: str  # the file to write the acknowledgements to
    own_broker: bool = True  # else its client settings are those of the configuration

    def argument(self) -> str:
        """For the command line of the child process."""
        return json.dumps(asdict(self))

    def acknowledged(self) -> list[Fed]:
        """What the child process noted."""
        rows: list[list[Any]] = msgpack.unpackb(Path(self.report).read_bytes())
        return [Fed(*row) for row in rows]


def feed(job: Feed) -> list[Fed]:
    """Send it all and wait for the acknowledgements. Frame n is due n / rate seconds after the first.

    Raises RuntimeError where a frame was not acknowledged.
    """
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0 if job.rate else 5,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 64 * 1024,
            **client_settings(is_ours=job.own_broker),
        }
    )
    fed: list[Fed] = []
    failed: list[str] = []

    def report(error: Any, message: Message) -> None:
        if error is not None:
            failed.append(error.str())
        else:
            partition, offset, key = message.partition(), message.offset(), message.key()
            assert partition is not None and offset is not None and isinstance(key, bytes)  # noqa: PT018
            fed.append(Fed(partition, offset, message.timestamp()[1], key.decode()))

    payloads = images.load(Path(job.frames))
    keys = [b"cam-%d" % number for number in range(job.sources)]
    interval = 1 / job.rate if job.rate else 0.0
    started = time.monotonic()
    for number in range(job.count):
        source = number % job.sources
        if (early := started + number * interval - time.monotonic()) > 0:
            time.sleep(early)
        record = {
            "value": payloads[number % len(payloads)],
            "key": keys[source],
            "partition": source % job.partitions,  # evenly: the engine is measured, not the luck of the hash
            "timestamp": time.time_ns() // 1_000_000,
        }
        while not _sent(producer, job.topic, record, report):
            producer.poll(0.05)
        producer.poll(0)
    left = producer.flush(_FLUSH_S)
    if failed or left:
        raise RuntimeError(f"{len(failed)} frames were refused ({failed[:1]}), {left} not acknowledged")
    return fed


def _sent(producer: Producer, topic: str, record: dict[str, Any], report: Any) -> bool:
    """False where the local queue is full."""
    try:
        producer.produce(topic, on_delivery=report, **record)
    except BufferError:
        return False
    return True


def main() -> None:
    """Entry point of the child process."""
    job = Feed(**json.loads(sys.argv[1]))
    fed = feed(job)
    Path(job.report).write_bytes(msgpack.packb([list(row) for row in fed]))


if __name__ == "__main__":
    main()
