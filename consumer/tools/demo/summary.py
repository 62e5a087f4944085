"""What came of a run, computed from what the topics hold. Pure: histories in, figures out.

The judgement does not rest on the consumer's own counters: an input record is what the input topic holds, an outcome
is what the output and dead-letter topics hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

Kind = Literal["detected", "skipped", "dead_letter"]
PERCENTILES: Final = (50, 95, 99)


class Place(NamedTuple):
    """Where an input record lies: its identity."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One message of the output or the dead-letter topic. Times are Unix milliseconds; None where it has none."""

    kind: Kind
    source_id: str
    place: Place  # of the input record that it answers
    published_at_ms: int
    captured_at_ms: int | None = None
    batch_size: int = 0  # 0: it came out of no batch that the engine looked at
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Engine:
    """Who looked. `busy_share`: of the time between first frame and last outcome."""

    model: str
    device: str
    simulated: bool
    busy_share: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run. `unexpected`: outcomes that answer no input record; `uncommitted`: records."""

    engine: Engine
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
        """Each broken promise as a sentence; empty where all were kept."""
        found = (
            (self.lost, "lost: no detection, no dead letter, no skipped message answers them"),
            (self.duplicates, "answered more than once"),
            (self.out_of_order, "answered after a later frame of the same source"),
            (self.unexpected, "outcomes answer a record that was never sent"),
            (self.uncommitted, "not committed, so a restart would do them again"),
        )
        return [f"{count} of {self.frames_in} frames: {what}" for count, what in found if count]

    def as_json(self) -> dict[str, Any]:
        """The form of `--json`."""
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
            "engine_busy_share": round(self.engine.busy_share, 4),
            "objects": dict(self.objects),
            "model": self.engine.model,
            "device": self.engine.device,
            "simulated": self.engine.simulated,
            "sources": list(self.sources),
        }


def summarise(
    inputs: Iterable[Place],
    outcomes: Sequence[Outcome],
    *,
    acknowledged: int,
    committed: Mapping[int, int],
    engine: Engine,
    sources: Sequence[str],
) -> Summary:
    """Hold the outcomes, in the order in which each topic has them, against the input records.

    `acknowledged`: frames of which the producer has the broker's word. `committed`: per partition, the offset up to
    which the group has committed.
    """
    expected = set(inputs)
    firsts = _firsts(outcomes)
    answered = expected & firsts.keys()
    messages = Counter(outcome.kind for outcome in outcomes)
    return Summary(
        engine=engine,
        sources=tuple(sources),
        frames_in=max(len(expected), acknowledged),
        detections_out=messages["detected"],
        dead_letters=messages["dead_letter"],
        skipped=messages["skipped"],
        # A frame that the broker acknowledged and no longer has is as lost as one that nobody answered.
        lost=len(expected) - len(answered) + max(0, acknowledged - len(expected)),
        duplicates=len(outcomes) - len(firsts),
        out_of_order=_out_of_order(firsts.values()),
        unexpected=len(firsts.keys() - expected),
        uncommitted=sum(place.offset >= committed.get(place.partition, 0) for place in expected),
        objects=_objects(firsts.values()),
        frames_per_second=_rate(firsts.values()),
        latency_ms=_latency(firsts.values()),
        batch_sizes=_batch_sizes(firsts.values()),
    )


def _firsts(outcomes: Iterable[Outcome]) -> dict[Place, Outcome]:
    """What a reader has that drops repeats."""
    firsts: dict[Place, Outcome] = {}
    for outcome in outcomes:
        firsts.setdefault(outcome.place, outcome)
    return firsts


def _out_of_order(outcomes: Iterable[Outcome]) -> int:
    """Outcomes behind one of a later frame. Dead letters are a topic of their own, with an order of their own."""
    highest: dict[tuple[bool, str, int], int] = {}
    count = 0
    for outcome in outcomes:
        lane = outcome.kind == "dead_letter", outcome.source_id, outcome.place.partition
        count += outcome.place.offset < highest.get(lane, -1)
        highest[lane] = max(highest.get(lane, -1), outcome.place.offset)
    return count


def _objects(outcomes: Iterable[Outcome]) -> dict[str, int]:
    counts = Counter(label for outcome in outcomes for label in outcome.labels)
    return dict(counts.most_common())


def _rate(outcomes: Iterable[Outcome]) -> float:
    """Frames a second from the first capture to the last outcome."""
    timed = [(o.captured_at_ms, o.published_at_ms) for o in outcomes if o.captured_at_ms is not None]
    if not timed:
        return 0.0
    ms = max(published for _, published in timed) - min(captured for captured, _ in timed)
    return len(timed) * 1000 / max(ms, 1)


def _latency(outcomes: Iterable[Outcome]) -> dict[str, float | None]:
    """From capture to the message about it, for frames that the engine looked at."""
    values = [
        max(0, o.published_at_ms - o.captured_at_ms)
        for o in outcomes
        if o.kind == "detected" and o.captured_at_ms is not None
    ]
    if not values:
        return {f"p{p}": None for p in PERCENTILES}
    return {f"p{p}": round(float(np.percentile(values, p)), 1) for p in PERCENTILES}


def _batch_sizes(outcomes: Iterable[Outcome]) -> dict[int, int]:
    """Size to number of batches. A batch with a rejected frame in it has fewer detections than its size: rounded up."""
    frames = Counter(outcome.batch_size for outcome in outcomes if outcome.batch_size)
    return {size: -(-count // size) for size, count in sorted(frames.items())}
