"""Reads the topics of a run, checks that no frame is missing, and computes the figures.

It reads after the run, so that it takes no CPU from the program that is measured. All times are timestamps of records.
What was produced is known from the delivery reports of the load generator, not from the measured program.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import confluent_kafka
import numpy as np
from confluent_kafka import Consumer, TopicPartition

from consumer.errors import SluiceError
from consumer.messages import decode_result
from consumer.tools.bench.load_generator import Produced

_EOF = confluent_kafka.KafkaError._PARTITION_EOF  # noqa: SLF001 - the public name in the library
_TIMEOUT_S = 30.0


class BenchError(SluiceError):
    """The figures of a run cannot be trusted."""


class Result(NamedTuple):
    """One result message.

    Attributes:
        produced_ms: The timestamp of its record, Unix milliseconds.
        source_id: The source of the frame.
        partition: The partition of the frame.
        offset: The offset of the frame.
        batch: Size, ms in the detector and ms of waiting for decoding. No two batches agree in all three.
    """

    produced_ms: int
    source_id: str
    partition: int
    offset: int
    batch: tuple[int, float, float]


class Batch(NamedTuple):
    """One batch, reconstructed from its results. `produced_ms` is the timestamp of its first result."""

    produced_ms: int
    size: int
    infer_ms: float


@dataclass(frozen=True, slots=True)
class Integrity:
    """Frames in and results out. All fields but the first two must be 0."""

    frames_in: int
    results_out: int
    lost: int
    duplicates: int
    unknown: int
    out_of_order: int
    dead_letters: int

    @property
    def sound(self) -> bool:
        """Each frame has exactly one result, in order."""
        wrong = self.lost + self.duplicates + self.unknown + self.out_of_order + self.dead_letters
        return not wrong and self.frames_in == self.results_out


def read_topic(bootstrap_servers: str, topic: str, settings: Mapping[str, Any]) -> list[confluent_kafka.Message]:
    """Read all records of a topic that nobody writes to any more.

    Returns:
        The messages; those of one partition are in order.

    Raises:
        BenchError: The end of a partition was not reached.
    """
    client = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"sluice-bench-{uuid.uuid4().hex[:8]}",  # the client requires one; it joins no group
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 10,
            **settings,
        }
    )
    try:
        partitions = client.list_topics(topic, timeout=10).topics[topic].partitions
        client.assign([TopicPartition(topic, number, 0) for number in partitions])
        unread, messages = set(partitions), []
        while unread:
            message = client.poll(_TIMEOUT_S)
            if message is None:
                raise BenchError(f"{topic}: the end of partitions {sorted(unread)} was not reached")
            if (error := message.error()) is None:
                messages.append(message)
            elif error.code() == _EOF:
                unread.discard(message.partition())
            elif not error.retriable():
                raise BenchError(f"{topic}: {error.str()}")
        return messages
    finally:
        client.close()


def parse(messages: Iterable[confluent_kafka.Message]) -> list[Result]:
    """Decode result messages. Keeps their order."""
    results = []
    for message in messages:
        body = decode_result(message.value() or b"")
        frame, timings = body["input"], body["timings_ms"]
        # A frame that was skipped for its age never reached the detector.
        batch = (body.get("batch_size", 0), timings.get("infer", 0.0), timings.get("decode_wait", 0.0))
        produced_ms = message.timestamp()[1]
        results.append(Result(produced_ms, body["source_id"], frame["partition"], frame["offset"], batch))
    return results


def check(produced: Sequence[Produced], results: Sequence[Result], dead_letters: int) -> Integrity:
    """Check that each acknowledged frame has one result, from its source, in the order of the source."""
    wanted = {(item.partition, item.offset): item.source_id for item in produced}
    seen: Counter[tuple[int, int]] = Counter()
    last: dict[str, int] = {}
    unknown = out_of_order = 0
    for result in results:
        frame = (result.partition, result.offset)
        if wanted.get(frame) != result.source_id:
            unknown += 1
            continue
        out_of_order += not seen[frame] and result.offset < last.get(result.source_id, -1)
        last[result.source_id] = max(last.get(result.source_id, -1), result.offset)
        seen[frame] += 1
    return Integrity(
        frames_in=len(produced),
        results_out=len(results),
        lost=len(wanted) - len(seen),
        duplicates=seen.total() - len(seen),
        unknown=unknown,
        out_of_order=out_of_order,
        dead_letters=dead_letters,
    )


def group_batches(results: Sequence[Result]) -> list[Batch]:
    """Reconstruct the batches of the results, oldest first."""
    grouped: dict[tuple[int, float, float], list[int]] = {}
    for result in results:
        grouped.setdefault(result.batch, []).append(result.produced_ms)
    return sorted(Batch(min(stamps), len(stamps), batch[1]) for batch, stamps in grouped.items())


@dataclass(frozen=True, slots=True)
class Window:
    """A period of whole batches, from the first result of one batch to the first result of a later, excluded one."""

    from_ms: int
    until_ms: int
    batches: Sequence[Batch]

    @property
    def frames(self) -> int:
        return sum(batch.size for batch in self.batches)

    @property
    def frames_per_second(self) -> float:
        return self.frames * 1000 / (self.until_ms - self.from_ms)

    @property
    def engine_busy_share(self) -> float:
        return sum(batch.infer_ms for batch in self.batches) / (self.until_ms - self.from_ms)

    @property
    def sizes(self) -> dict[int, int]:
        """Batch size to number of batches."""
        return dict(sorted(Counter(batch.size for batch in self.batches).items()))


def window(batches: Sequence[Batch], from_ms: float, until_ms: float) -> Window:
    """The whole batches between two times. Raises BenchError if there are too few to measure."""
    inside = [batch for batch in batches if from_ms <= batch.produced_ms <= until_ms]
    if len(inside) < 3 or inside[0].produced_ms == inside[-1].produced_ms:
        raise BenchError(f"only {len(inside)} batches in {(until_ms - from_ms) / 1000:.1f} s: too few to measure")
    # Batches with results in the same millisecond as the last one lie beyond the end, too.
    until = inside[-1].produced_ms
    return Window(inside[0].produced_ms, until, [batch for batch in inside if batch.produced_ms < until])


def middle(batches: Sequence[Batch], low: float = 0.1, high: float = 0.9) -> Window:
    """The batches between 10% and 90% of all frames: without the group join and without the last, smaller batches."""
    done = np.cumsum([batch.size for batch in batches])
    first, last = np.searchsorted(done, [low * done[-1], high * done[-1]])
    return window(batches, batches[first].produced_ms, batches[last].produced_ms)


def latencies_ms(produced: Sequence[Produced], results: Sequence[Result], from_ms: float, until_ms: float) -> list[int]:
    """Milliseconds from the record of a frame to the record of its result, of frames produced between two times."""
    results_ms = {(result.partition, result.offset): result.produced_ms for result in results}
    return [
        results_ms[item.partition, item.offset] - item.timestamp_ms
        for item in produced
        if from_ms <= item.timestamp_ms <= until_ms and (item.partition, item.offset) in results_ms
    ]
