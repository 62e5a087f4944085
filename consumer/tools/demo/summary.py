"""Computes the figures of a run from the contents of its topics. Pure.

The figures do not depend on the counters of the consumer: the input topic defines the input records, the output topic
and the dead-letter topic define the outcomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

Kind = Literal["detected", "skipped", "dead_letter"]
PERCENTILES: Final = (50, 95, 99)


class RecordId(NamedTuple):
    """Partition and offset of an input record, which identify it."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One message of the output topic or the dead-letter topic.

    Attributes:
        kind: What the message is.
        source_id: The source of the frame.
        record: The input record.
        published_at_ms: The timestamp of the message, Unix milliseconds.
        captured_at_ms: The capture time of the frame, Unix milliseconds; None if unknown.
        batch_size: The size of its batch; 0 if the frame did not reach the detector.
        labels: The labels of its detections.
    """

    kind: Kind
    source_id: str
    record: RecordId
    published_at_ms: int
    captured_at_ms: int | None = None
    batch_size: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectorUse:
    """The detector of the run. `busy_share` is the share of the streaming time in which it worked."""

    model: str
    device: str
    simulated: bool
    busy_share: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run. `as_json` names them.

    `unexpected` counts outcomes without an input record, `uncommitted` counts input records beyond the committed
    offsets.
    """

    detector: DetectorUse
    sources: tuple[str, ...]
    frames_in: int
    detections_out: int
    dead_letters: int
    skipped: int
    lost: int
    duplicates: int
    out_of_order: int
    unexpected: int
    uncommitted: int
    objects: Mapping[str, int]
    frames_per_second: float
    latency_ms: Mapping[str, float | None]
    batch_sizes: Mapping[int, int]

    @property
    def problems(self) -> list[str]:
        """One sentence per kind of fault; empty if there is none."""
        found = (
            (self.lost, "lost, without a detection message, a dead letter or a skipped message"),
            (self.duplicates, "with more than one outcome"),
            (self.out_of_order, "with an outcome after that of a later frame of the same source"),
            (self.unexpected, "outcomes without an input record"),
            (self.uncommitted, "not committed, so that a restart would repeat them"),
        )
        return [f"{count} of {self.frames_in} frames: {what}" for count, what in found if count]

    def as_json(self) -> dict[str, Any]:
        """The content of the `--json` file."""
        return {
            "frames_in": self.frames_in,
            "detections_out": self.detections_out,
            "dead_letters": self.dead_letters,
            "skipped": self.skipped,
            "lost": self.lost,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "unexpected": self.unexpected,
            "uncommitted": self.uncommitted,
            "frames_per_second": round(self.frames_per_second, 2),
            "latency_ms": dict(self.latency_ms),
            "batch_sizes": {str(size): count for size, count in self.batch_sizes.items()},
            "engine_busy_share": round(self.detector.busy_share, 4),
            "objects": dict(self.objects),
            "model": self.detector.model,
            "device": self.detector.device,
            "simulated": self.detector.simulated,
            "sources": list(self.sources),
        }


def summarise(
    inputs: Iterable[RecordId],
    outcomes: Sequence[Outcome],
    *,
    acknowledged: int,
    committed: Mapping[int, int],
    detector: DetectorUse,
    sources: Sequence[str],
) -> Summary:
    """Compare the outcomes with the input records.

    Args:
        inputs: The records of the input topic.
        outcomes: The outcomes, in the order of each topic.
        acknowledged: Frames that the broker acknowledged to the producer.
        committed: Partition to committed offset.
        detector: The detector of the run.
        sources: The source IDs.
    """
    expected = set(inputs)
    firsts = _without_repeats(outcomes)
    answered = expected & firsts.keys()
    messages = Counter(outcome.kind for outcome in outcomes)
    return Summary(
        detector=detector,
        sources=tuple(sources),
        frames_in=max(len(expected), acknowledged),
        detections_out=messages["detected"],
        dead_letters=messages["dead_letter"],
        skipped=messages["skipped"],
        # A frame that the broker acknowledged but does not have counts as lost, too.
        lost=len(expected) - len(answered) + max(0, acknowledged - len(expected)),
        duplicates=len(outcomes) - len(firsts),
        out_of_order=_out_of_order(firsts.values()),
        unexpected=len(firsts.keys() - expected),
        uncommitted=sum(record.offset >= committed.get(record.partition, 0) for record in expected),
        objects=_objects(firsts.values()),
        frames_per_second=_rate(firsts.values()),
        latency_ms=_latency(firsts.values()),
        batch_sizes=_batch_sizes(firsts.values()),
    )


def _without_repeats(outcomes: Iterable[Outcome]) -> dict[RecordId, Outcome]:
    """The first outcome of each record, as a reader that drops repeats has it."""
    firsts: dict[RecordId, Outcome] = {}
    for outcome in outcomes:
        firsts.setdefault(outcome.record, outcome)
    return firsts


def _out_of_order(outcomes: Iterable[Outcome]) -> int:
    """Count outcomes after that of a later frame of the source. Results and dead letters each have their own order."""
    highest: dict[tuple[bool, str, int], int] = {}
    count = 0
    for outcome in outcomes:
        lane = outcome.kind == "dead_letter", outcome.source_id, outcome.record.partition
        count += outcome.record.offset < highest.get(lane, -1)
        highest[lane] = max(highest.get(lane, -1), outcome.record.offset)
    return count


def _objects(outcomes: Iterable[Outcome]) -> dict[str, int]:
    counts = Counter(label for outcome in outcomes for label in outcome.labels)
    return dict(counts.most_common())


def _rate(outcomes: Iterable[Outcome]) -> float:
    """Frames/s from the first capture to the last outcome."""
    timed = [(o.captured_at_ms, o.published_at_ms) for o in outcomes if o.captured_at_ms is not None]
    if not timed:
        return 0.0
    ms = max(published for _, published in timed) - min(captured for captured, _ in timed)
    return len(timed) * 1000 / max(ms, 1)


def _latency(outcomes: Iterable[Outcome]) -> dict[str, float | None]:
    """Percentiles of the milliseconds from capture to result, of frames that the detector processed."""
    values = [
        max(0, o.published_at_ms - o.captured_at_ms)
        for o in outcomes
        if o.kind == "detected" and o.captured_at_ms is not None
    ]
    if not values:
        return {f"p{p}": None for p in PERCENTILES}
    return {f"p{p}": round(float(np.percentile(values, p)), 1) for p in PERCENTILES}


def _batch_sizes(outcomes: Iterable[Outcome]) -> dict[int, int]:
    """Batch size to number of batches, rounded up: a batch with a rejected frame has fewer results than its size."""
    frames = Counter(outcome.batch_size for outcome in outcomes if outcome.batch_size)
    return {size: -(-count // size) for size, count in sorted(frames.items())}
