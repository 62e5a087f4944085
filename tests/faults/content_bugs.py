"""Seeded bugs after which an outcome says something wrong of its frame, or is of the wrong kind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from consumer.pipeline import Pipeline
from consumer.types import BatchResult, Detected, Detections, Outcome, Rejected
from patching import Bug, Patch


def _changed_outcomes(change: Callable[[BatchResult], list[Outcome]]) -> list[Patch]:
    """Before they are published, in either delivery."""
    publish = Pipeline._publish

    def changed(self: Pipeline, results: Sequence[BatchResult]) -> None:
        publish(self, [dataclasses.replace(result, outcomes=change(result)) for result in results])

    return [Patch(Pipeline, "_publish", changed)]


def _exchange_detections() -> list[Patch]:
    """The first two results of a batch have each other's detections; the sizes of the pictures stay with theirs."""

    def exchanged(result: BatchResult) -> list[Outcome]:
        outcomes = list(result.outcomes)
        places = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Detected)][:2]
        if len(places) == 2:
            one, two = (outcomes[n] for n in places)
            assert isinstance(one, Detected)
            assert isinstance(two, Detected)
            outcomes[places[0]] = one._replace(detections=two.detections)
            outcomes[places[1]] = two._replace(detections=one.detections)
        return outcomes

    return _changed_outcomes(exchanged)


def _rejections_become_empty() -> list[Patch]:
    """A frame that cannot be decoded counts as one on which nothing was seen."""

    def emptied(result: BatchResult) -> list[Outcome]:
        nothing = Detected(Detections.none(), 1, 1)
        return [nothing if isinstance(outcome, Rejected) else outcome for outcome in result.outcomes]

    return _changed_outcomes(emptied)


def _good_frames_rejected() -> list[Patch]:
    """Every second good frame becomes a dead letter."""
    good = itertools.count(1)
    dead = Rejected("infer", "engine", "the engine fails on this frame alone")

    def rejected(result: BatchResult) -> list[Outcome]:
        return [
            dead if isinstance(outcome, Detected) and next(good) % 2 == 0 else outcome for outcome in result.outcomes
        ]

    return _changed_outcomes(rejected)


CONTENT_BUGS: Mapping[str, Bug] = {
    "exchange-detections": Bug("right", "at_least_once", _exchange_detections, "sigterm"),
    "rejections-become-empty": Bug("honest", "at_least_once", _rejections_become_empty, "sigterm"),
    "good-frames-rejected": Bug("honest", "exactly_once", _good_frames_rejected, "sigterm"),
}
