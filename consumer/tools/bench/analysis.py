"""What came out of a run: the reader, the check that nothing is missing, and the figures. Timestamps are the records'.

The reader comes after the run, so that it takes no CPU from what is measured: every record carries when it was
produced, and what the producer wrote is known from its delivery reports, not from the program that is measured.
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

from consumer.messages import decode_result
from consumer.tools.bench.load_generator import Fed
from consumer.tools.bench.processes import BenchError

_EOF = confluent_kafka.KafkaError._PARTITION_EOF  # noqa: SLF001 - the library's own name
_QUIET_S = 30.0


class Result(NamedTuple):
    """One result message. `produced_ms`: the timestamp of its record, Unix milliseconds."""

    produced_ms: int
    source_id: str
    partition: int  # of the frame
    offset: int  # of the frame
    batch: tuple[int, float, float]  # size, ms in the engine, ms of waiting for decoding: no two batches agree in all


class Ran(NamedTuple):
    """One batch, by its results. `produced_ms`: when the first of them was."""

    produced_ms: int
    size: int
    infer_ms: float


@dataclass(frozen=True, slots=True)
class Integrity:
    """Frames in and out. All but the first two must be 0."""

    frames_in: int
    results_out: int
    lost: int
    duplicates: int
    unknown: int
    out_of_order: int
    dead_letters: int

    @property
    def sound(self) -> bool:
        """Each frame in has exactly one result, in order."""
        wrong = self.lost + self.duplicates + self.unknown + self.out_of_order + self.dead_letters
        return not wrong and self.frames_in == self.results_out


def read_topic(bootstrap_servers: str, topic: str, settings: Mapping[str, Any]) -> list[confluent_kafka.Message]:
    """All records of a topic, those of one partition in their order. For a topic that nobody writes to any more.

    Raises BenchError where the end is not reached.
    """
    client = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"sluice-bench-{uuid.uuid4().hex[:8]}",  # asked for by the client; nothing joins or commits
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
            message = client.poll(_QUIET_S)
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
    """Result messages, in the order read."""
    results = []
    for message in messages:
        body = decode_result(message.value() or b"")
        place, timings = body["input"], body["timings_ms"]
        # A skipped frame, of a user's own limit on age, never saw the engine.
        batch = (body.get("batch_size", 0), timings.get("infer", 0.0), timings.get("decode_wait", 0.0))
        produced_ms = message.timestamp()[1]
        results.append(Result(produced_ms, body["source_id"], place["partition"], place["offset"], batch))
    return results


def check(fed: Sequence[Fed], results: Sequence[Result], dead_letters: int) -> Integrity:
    """Every frame that was acknowledged has one result, with its source, and sources keep their order."""
    wanted = {(item.partition, item.offset): item.source_id for item in fed}
    seen: Counter[tuple[int, int]] = Counter()
    last: dict[str, int] = {}
    unknown = out_of_order = 0
    for result in results:
        place = (result.partition, result.offset)
        if wanted.get(place) != result.source_id:
            unknown += 1
            continue
        out_of_order += not seen[place] and result.offset < last.get(result.source_id, -1)
        last[result.source_id] = max(last.get(result.source_id, -1), result.offset)
        seen[place] += 1
    return Integrity(
        frames_in=len(fed),
        results_out=len(results),
        lost=len(wanted) - len(seen),
        duplicates=seen.total() - len(seen),
        unknown=unknown,
        out_of_order=out_of_order,
        dead_letters=dead_letters,
    )


def batches(results: Sequence[Result]) -> list[Ran]:
    """The batches that the results came in, oldest first."""
    grouped: dict[tuple[int, float, float], list[int]] = {}
    for result in results:
        grouped.setdefault(result.batch, []).append(result.produced_ms)
    return sorted(Ran(min(stamps), len(stamps), batch[1]) for batch, stamps in grouped.items())


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of whole batches: from the first result of one to the first result of a later one, excluded."""

    from_ms: int
    until_ms: int
    ran: Sequence[Ran]

    @property
    def frames(self) -> int:
        return sum(batch.size for batch in self.ran)

    @property
    def frames_per_second(self) -> float:
        return self.frames * 1000 / (self.until_ms - self.from_ms)

    @property
    def engine_busy_share(self) -> float:
        return sum(batch.infer_ms for batch in self.ran) / (self.until_ms - self.from_ms)

    @property
    def sizes(self) -> dict[int, int]:
        """How many batches of each size."""
        return dict(sorted(Counter(batch.size for batch in self.ran).items()))


def window(ran: Sequence[Ran], from_ms: float, until_ms: float) -> Window:
    """The whole batches within a time. Raises BenchError where there are too few to measure."""
    inside = [batch for batch in ran if from_ms <= batch.produced_ms <= until_ms]
    if len(inside) < 3 or inside[0].produced_ms == inside[-1].produced_ms:
        raise BenchError(f"only {len(inside)} batches in {(until_ms - from_ms) / 1000:.1f} s: too few to measure")
    # Batches whose results are of the same millisecond as the last are beyond the end too.
    until = inside[-1].produced_ms
    return Window(inside[0].produced_ms, until, [batch for batch in inside if batch.produced_ms < until])


def middle(ran: Sequence[Ran], low: float = 0.1, high: float = 0.9) -> Window:
    """From 10% to 90% of all frames: without the join of the group and without the last, smaller batches."""
    done = np.cumsum([batch.size for batch in ran])
    first, last = np.searchsorted(done, [low * done[-1], high * done[-1]])
    return window(ran, ran[first].produced_ms, ran[last].produced_ms)


def latencies_ms(fed: Sequence[Fed], results: Sequence[Result], from_ms: float, until_ms: float) -> list[int]:
    """From the timestamp of a frame's record to that of its result's, of the frames produced within a time."""
    produced = {(result.partition, result.offset): result.produced_ms for result in results}
    return [
        produced[item.partition, item.offset] - item.timestamp_ms
        for item in fed
        if from_ms <= item.timestamp_ms <= until_ms and (item.partition, item.offset) in produced
    ]
