"""Each seeded bug of the outputs breaks the promise that it is said to break, and without it the promise holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import confluent_kafka
import msgpack
import numpy as np
import pytest

from consumer.concurrency import Stop
from consumer.config import Config
from consumer.delivery.offsets import OffsetTracker
from consumer.delivery.reorder_buffer import HeldOutcomes, outcome_bytes
from consumer.delivery.transaction_budget import TransactionBudget
from consumer.errors import PublishError, TransactionError
from consumer.kafka.producer import Publisher
from consumer.kafka.transactions import TransactionalPublisher
from consumer.messages import DeadLetter, parse_frame, read_dead_letter
from consumer.types import Detected, Detections, Finished, Frame, ModelInfo, Outcome, Receipt, Record
from fake_kafka import FakeProducer, FakeTransactionalProducer, failed
from made_frames import P0, REJECTED, VirtualClock, detected, frame, result
from output_bugs import OUTPUT_BUGS
from reachable import kept_beside_held

_Code = confluent_kafka.KafkaError
TOO_LARGE, KEYLESS = failed(_Code.MSG_SIZE_TOO_LARGE), failed(_Code.INVALID_RECORD)
RETRIABLE = confluent_kafka.KafkaError(_Code._TIMED_OUT, "timed out", False, True, False)
ABORTABLE = confluent_kafka.KafkaError(_Code._INCONSISTENT, "1 message failed delivery", False, False, True)
MODEL = ModelInfo("m.pt", "sha256:0")
CLOCK = VirtualClock()


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"made": [], "fails": {}, "takes": {}, "hangs": {}, "advance": CLOCK.advance}.items():
        monkeypatch.setattr(FakeTransactionalProducer, name, value, raising=False)


def finished(outcome: Outcome = REJECTED, size: int = 10, offset: int = 0, **more: Any) -> Finished:
    item = frame(offset, payload=bytes(size))
    item = item._replace(record=item.record._replace(timestamp_ms=5, **more))
    return Finished(item, outcome, result([item], [outcome]).summary)


def written(item: Finished, report: Callable[[dict[str, Any]], Any] = lambda _: None) -> list[dict[str, Any]]:
    """What at-least-once sends until the frame is acknowledged, or gives up; at most 20 messages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confluent_kafka, "Producer", FakeProducer)
        publisher = Publisher(Config(), MODEL, clock=CLOCK, wall_clock_ms=CLOCK.unix_ms)
    client: FakeProducer = publisher.client  # type: ignore[assignment]
    client.report = report
    publisher.publish([item])
    with contextlib.suppress(PublishError):
        while not publisher.poll() and len(client.produced) < 20:
            pass
    return client.produced


def letter(message: dict[str, Any]) -> DeadLetter:
    record = Record(message["key"], message["value"], tuple(message["headers"]), message["timestamp"])
    found = read_dead_letter(record)
    assert found is not None
    return found


def failures(item: Finished, report: Callable[[dict[str, Any]], Any]) -> int:
    """Transactions that fail until the outcome is committed, at most 10. Real ones fail as their messages do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confluent_kafka, "Producer", FakeTransactionalProducer)
        publisher = TransactionalPublisher(Config(), MODEL, clock=CLOCK, wall_clock_ms=CLOCK.unix_ms)
        publisher.start(Stop(CLOCK))
        for count in range(10):
            client = FakeTransactionalProducer.made[-1]
            client.report, commit = report, client.commit_transaction

            def commits(timeout: float, client: Any = client, commit: Any = commit) -> None:
                lost = any(report(message) is not None for message in client.queue)
                FakeTransactionalProducer.fails["commit_transaction"] = [ABORTABLE] if lost else []
                commit(timeout)

            client.commit_transaction = commits  # type: ignore[method-assign]
            try:
                publisher.transact([item], [], b"member", 10.0)
            except TransactionError:
                publisher.renew()
            else:
                return count
    return 10


def is_rolled_back(*, reported: bool) -> bool:
    """What is said of a transaction that was not committed in time, with its message written or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confluent_kafka, "Producer", FakeTransactionalProducer)
        publisher = TransactionalPublisher(Config(), MODEL, clock=CLOCK, wall_clock_ms=CLOCK.unix_ms)
        publisher.start(Stop(CLOCK))
        FakeTransactionalProducer.made[-1].withheld = lambda _: not reported
        FakeTransactionalProducer.fails["commit_transaction"] = [RETRIABLE]
        FakeTransactionalProducer.takes["commit_transaction"] = 10.0
        with pytest.raises(TransactionError) as caught:
            publisher.transact([finished(detected())], [], b"member", 10.0)
    return caught.value.rolled_back


def committed_within(count: int, seconds: float, bytes_per_s: float = 900_000, size: int = 300_000) -> bool:
    """Whether so many dead letters pass a slow way in time, with transactions of 10 s at most."""
    held, offsets, budget = HeldOutcomes(), OffsetTracker(), TransactionBudget()
    offsets.assign(P0, 1)
    for n in range(count):
        item = finished(size=size, offset=n)
        offsets.received(item.frame.receipt)
        held.hold(item)
    done, took = 0, 0.0
    while done < count and took < seconds:
        ready = held.take(offsets, budget.bytes)
        written = sum(map(outcome_bytes, ready))
        needs = 0.02 + written / bytes_per_s
        took += min(10.0, needs)
        if needs > 10.0:
            budget.failed(written, 10.0)
            for item in ready:
                held.hold(item)
        else:
            budget.committed(written, needs, full=held.more)
            for item in ready:
                offsets.done(item.frame.receipt)
            done += len(ready)
    return done == count


def envelope() -> Frame:
    value = msgpack.packb({"source_id": "cam-1", "data": bytes(1000)})
    return parse_frame(Record(None, value, (), 5), Receipt(P0, 0, 1), 0.0)


def crowd() -> Detected:
    boxes, scores = np.ones((40_000, 4), np.float32), np.ones(40_000, np.float32)
    return Detected(Detections(boxes, scores, np.zeros(40_000, np.int32)), 64, 48)


def refuses_large(message: dict[str, Any]) -> Any:
    return TOO_LARGE if len(message["value"]) > 1_000_000 else None


def refuses_keyless(message: dict[str, Any]) -> Any:
    return KEYLESS if message["key"] is None else None


LARGE, KEY_LESS = finished(size=2_000_000), finished(key=None)

# Whether the promise holds.
CHECKS: dict[str, Callable[[], bool]] = {
    "held-outcome-keeps-its-batch": lambda: kept_beside_held()[1] == 0,
    "envelope-counted-once": lambda: envelope().size_bytes >= 2000,
    "limits-forgotten": lambda: failures(LARGE, refuses_large) <= 1,
    "cut-without-a-note": lambda: letter(written(LARGE, refuses_large)[-1]).truncated,
    "keyless-letter-stays-keyless": lambda: failures(KEY_LESS, refuses_keyless) <= 1,
    "large-result-ends-the-process": lambda: written(finished(crowd()), refuses_large)[-1]["topic"] == "frames-dead",
    "letter-with-the-time-of-its-frame": lambda: written(finished())[0]["timestamp"] == CLOCK.unix_ms(),
    "original-time-lost": lambda: letter(written(finished())[0]).record.timestamp_ms == 5,
    "transactions-without-a-bound": lambda: committed_within(400, 200),
    "large-outcome-waits-for-the-budget": lambda: committed_within(1, 60, size=5_000_000),
    "in-doubt-counts-as-rolled-back": lambda: not is_rolled_back(reported=True),
    "late-flush-in-doubt": lambda: is_rolled_back(reported=False),
}


@pytest.mark.parametrize("name", OUTPUT_BUGS)
def test_a_seeded_bug_is_caught_and_without_it_all_is_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHECKS[name]()
    for owner, method, replacement in OUTPUT_BUGS[name].patches():
        monkeypatch.setattr(owner, method, replacement)
    assert not CHECKS[name]()
