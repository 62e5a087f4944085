"""Measures `sluice verify` on many small records: starts Apache Kafka, writes them and their outcomes, and checks them.

    python tests/support/verify_scale.py 10000000
    python tests/support/verify_scale.py 400 3000000        # records of so many bytes

Prints the object of `sluice verify --json` without its partitions, the seconds, the CPU seconds, and the largest
resident memory (RSS) of the process, asked for every 0.2 s. It needs some GB of disk below the temporary directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition

from apache_kafka import ApacheKafka
from consumer.tools.embedded import dies_with_parent

PARTITIONS, SOURCES, GROUP = 4, 1000, "scale"
_HEADERS = [
    ("ce_specversion", b"1.0"),
    ("ce_source", b"/sluice/" + GROUP.encode()),
    ("content-type", b"application/json"),
    ("ce_type", b"io.sluice.detections.v1"),
    ("ce_time", b"2026-01-31T22:00:00.000Z"),
]


def write(bootstrap: str, count: int, value: bytes) -> None:
    """Records in turn to all partitions, and the outcome of each, in order."""
    settings = {"enable.idempotence": True, "linger.ms": 50, "batch.num.messages": 100_000, "compression.type": "lz4"}
    limits = {"queue.buffering.max.messages": 500_000, "queue.buffering.max.kbytes": 200_000, "batch.size": 4_000_000}
    producer = Producer({**settings, **limits, "message.max.bytes": 16_000_000, "bootstrap.servers": bootstrap})
    sources = [b"cam-%d" % n for n in range(SOURCES)]
    for topic in ("frames", "detections"):
        for n in range(count):
            partition, offset = n % PARTITIONS, n // PARTITIONS
            source = sources[n % SOURCES]
            headers = [*_HEADERS, ("ce_id", b"frames/%d/%d" % (partition, offset)), ("ce_subject", source)]
            while True:
                try:
                    if topic == "frames":
                        producer.produce(topic, value, source, partition)
                    else:
                        producer.produce(topic, b"{}", source, partition, headers=headers)
                    break
                except BufferError:
                    producer.poll(0.1)
            if n % 10_000 == 0:
                producer.poll(0)
        assert producer.flush(600) == 0


def commit(bootstrap: str, count: int) -> None:
    """All that was written, for the group."""
    ends = [TopicPartition("frames", n, len(range(n, count, PARTITIONS))) for n in range(PARTITIONS)]
    with closing(Consumer({"bootstrap.servers": bootstrap, "group.id": GROUP})) as client:
        client.commit(offsets=ends, asynchronous=False)


def main(count: int, size: int = 1) -> None:
    with ApacheKafka() as kafka:
        for topic, partitions in (("frames", PARTITIONS), ("detections", PARTITIONS), ("frames-dead", 1)):
            kafka.create_topic(topic, partitions)
        started = time.monotonic()
        write(kafka.bootstrap_servers, count, os.urandom(size))
        commit(kafka.bootstrap_servers, count)
        print(f"written in {time.monotonic() - started:.0f} s", flush=True)
        command = [sys.executable, "-m", "consumer", "verify", "--bootstrap-servers", kafka.bootstrap_servers]
        started = time.monotonic()
        process = subprocess.Popen(
            dies_with_parent([*command, "--group", GROUP, "--json"]), stdout=subprocess.PIPE, text=True
        )
        watched, largest, cpu_s = psutil.Process(process.pid), 0, 0.0
        while process.poll() is None:
            largest = max(largest, watched.memory_info().rss)
            cpu_s = sum(watched.cpu_times()[:2])
            time.sleep(0.2)
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
        found.pop("partitions")
        print(json.dumps(found, indent=2))
        seconds = f"{time.monotonic() - started:.0f} s, CPU {cpu_s:.0f} s"
        print(f"exit code {process.returncode}, {seconds}, RSS {largest / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
