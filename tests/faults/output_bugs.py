"""Seeded bugs of the outputs: what is held, how large it may be, when it was, and what a failed transaction means.

As in `bugs.py`, each is a wrong design that breaks a promise, to prove that the tests would notice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from consumer.delivery.offsets import OffsetTracker
from consumer.delivery.reorder_buffer import HeldOutcomes, outcome_bytes
from consumer.kafka import dead_letter_fitting as letters
from consumer.kafka.producer import Publisher
from consumer.kafka.result_fitting import Results
from consumer.kafka.topic_limits import TopicLimits
from consumer.kafka.transactions import TransactionalPublisher
from consumer.messages import ORIGINAL_TIMESTAMP, Message, encode_dead_letter
from consumer.types import BatchResult, BatchSummary, Finished, Frame
from patching import Bug, Patch, real_bug

_NOTES = ("sluice-truncated", "sluice-original-bytes", "sluice-original-sha256")


class _WholeBatch(BatchSummary):
    result: BatchResult


def _held_outcome_keeps_its_batch() -> list[Patch]:
    """A held outcome refers to its batch, and so to the payloads of all its frames."""

    def summary(self: BatchResult) -> BatchSummary:
        whole = _WholeBatch(len(self.batch.frames), self.timings, self.taken_at)
        whole.result = self
        return whole

    return [Patch(BatchResult, "summary", _property(summary))]


def _envelope_counted_once() -> list[Patch]:
    """The payload out of an envelope, which is a copy, does not count as held memory."""
    return [Patch(Frame, "size_bytes", _property(lambda self: self.record.size_bytes))]


def _limits_forgotten() -> list[Patch]:
    """A refusal says nothing of the next message: each large one is refused, and fails its transaction."""
    return [
        Patch(TopicLimits, "refused", lambda self, topic, size, *, exactly=False: True),
        Patch(TopicLimits, "_learn", lambda self, topic, described: None),
    ]


def _cut_without_a_note() -> list[Patch]:
    """A dead letter that was cut looks whole."""

    def encode(*arguments: Any, **options: Any) -> Message:
        message = encode_dead_letter(*arguments, **options)
        return message._replace(headers=[header for header in message.headers if header[0] not in _NOTES])

    return [Patch(letters, "encode_dead_letter", encode)]


def _keyless_letter_stays_keyless() -> list[Patch]:
    """A compacted topic refuses the same record again and again."""
    return [
        Patch(TopicLimits, "needs_key", lambda self, topic: False),
        Patch(TopicLimits, "refused_keyless", lambda self, topic: True),
    ]


def _large_result_ends_the_process() -> list[Patch]:
    """A result above the limit of its topic is no rejection. A restart meets it again."""
    whole = Publisher.learn

    def learn(self: Publisher, pending: Any, error: Any) -> bool:
        return not hasattr(pending.outcome, "detections") and whole(self, pending, error)

    return [Patch(Publisher, "learn", learn), Patch(Results, "largest", _property(lambda self: math.inf))]


def _letter_with_the_time_of_its_frame() -> list[Patch]:
    """Retention deletes the dead letter of an old frame, and the brokers refuse that of a future one."""

    def encode(frame: Frame, *arguments: Any, **options: Any) -> Message:
        message = encode_dead_letter(frame, *arguments, **options)
        return message._replace(timestamp_ms=frame.record.timestamp_ms or message.timestamp_ms)

    return [Patch(letters, "encode_dead_letter", encode)]


def _original_time_lost() -> list[Patch]:
    """Nobody knows when the frame of a dead letter was written: a replay dates it anew."""

    def encode(*arguments: Any, **options: Any) -> Message:
        message = encode_dead_letter(*arguments, **options)
        return message._replace(headers=[header for header in message.headers if header[0] != ORIGINAL_TIMESTAMP])

    return [Patch(letters, "encode_dead_letter", encode)]


def _transactions_without_a_bound() -> list[Patch]:
    """A transaction holds all that is ready, whatever its size and the way to the brokers."""
    whole = HeldOutcomes.take

    def take(self: HeldOutcomes, offsets: OffsetTracker, max_bytes: float = math.inf) -> list[Finished]:
        return whole(self, offsets)

    return [Patch(HeldOutcomes, "take", take)]


def _large_outcome_waits_for_the_budget() -> list[Patch]:
    """An outcome larger than the budget of a transaction is never taken, and nothing behind it."""
    whole = HeldOutcomes.take

    def take(self: HeldOutcomes, offsets: OffsetTracker, max_bytes: float = math.inf) -> list[Finished]:
        ready = whole(self, offsets, max_bytes)
        if len(ready) == 1 and outcome_bytes(ready[0]) > max_bytes / 100:
            self.hold(ready.pop())
        return ready

    return [Patch(HeldOutcomes, "take", take)]


def _judged(*, rolled_back: bool) -> list[Patch]:
    whole = TransactionalPublisher._judge

    def judge(self: TransactionalPublisher, failure: Any, reports: Any, **options: Any) -> Any:
        return whole(self, failure, reports, **(options | {"rolled_back": rolled_back}))

    return [Patch(TransactionalPublisher, "_judge", judge)]


def _in_doubt_counts_as_rolled_back() -> list[Patch]:
    """A transaction whose end was asked for, and not answered, is written again: it may have committed."""
    return _judged(rolled_back=True)


def _late_flush_in_doubt() -> list[Patch]:
    """A transaction whose messages were not all written drops what is held: the engine runs again on all of it."""
    return _judged(rolled_back=False)


def _property(function: Any) -> Any:
    return property(function)


OUTPUT_BUGS: Mapping[str, Bug] = {
    "held-outcome-keeps-its-batch": real_bug(
        "bounded", "exactly_once", _held_outcome_keeps_its_batch, "camera-backlog"
    ),
    "envelope-counted-once": real_bug("bounded", "at_least_once", _envelope_counted_once, "envelopes-large"),
    "limits-forgotten": real_bug("complete", "exactly_once", _limits_forgotten, "letters-large"),
    "cut-without-a-note": real_bug("honest", "at_least_once", _cut_without_a_note, "letters-large"),
    "keyless-letter-stays-keyless": real_bug(
        "complete", "exactly_once", _keyless_letter_stays_keyless, "records-without-keys"
    ),
    "large-result-ends-the-process": real_bug(
        "complete", "at_least_once", _large_result_ends_the_process, "results-too-large"
    ),
    "letter-with-the-time-of-its-frame": real_bug(
        "complete", "at_least_once", _letter_with_the_time_of_its_frame, "frames-old"
    ),
    "original-time-lost": real_bug("right", "at_least_once", _original_time_lost, "frames-old"),
    "transactions-without-a-bound": real_bug("complete", "exactly_once", _transactions_without_a_bound, "way-out-slow"),
    "large-outcome-waits-for-the-budget": real_bug(
        "complete", "exactly_once", _large_outcome_waits_for_the_budget, "way-out-slow"
    ),
    "in-doubt-counts-as-rolled-back": real_bug(
        "exactly once", "exactly_once", _in_doubt_counts_as_rolled_back, "net-end-txn-unanswered"
    ),
    "late-flush-in-doubt": real_bug("fair", "exactly_once", _late_flush_in_doubt),
}
