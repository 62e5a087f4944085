"""Repeated lines of librdkafka are logged only now and then, and no other line is suppressed."""

from __future__ import annotations

import logging

import pytest

from consumer.errors import KafkaError
from consumer.observability.log_filter import QUIET_S, Repeats
from consumer.tools import clients


def record(message: object, name: str = "librdkafka.consumer") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "", 0, message, None, None)


def refused(ms: int) -> logging.LogRecord:
    return record(f"FAIL [thrd:b:1]: Connect to b:1 failed: Connection refused (after {ms}ms in state CONNECT)")


def told(text: str, event: str = "kafka") -> logging.LogRecord:
    return record({"event": event, "error": "_TRANSPORT", "text": text}, "consumer.kafka.consumer_errors")


def test_a_repeated_line_is_logged_now_and_then_with_a_count() -> None:
    """Catches an outage that writes forty lines a second, and one that the log forgets after its first minute."""
    now = 0.0
    repeats = Repeats(lambda: now)
    said = 0
    for _ in range(1000):
        now += QUIET_S / 100
        said += repeats.filter(refused(int(now)))
        last = told("b:1: Connection refused (after 3ms in state CONNECT)")
        if repeats.filter(last):
            held = last.msg.get("suppressed")  # type: ignore[attr-defined]
    assert 9 <= said <= 11
    assert held == 99


def test_no_other_line_is_suppressed() -> None:
    """Catches a rejected frame, another broker, or another client that is missing in the log."""
    repeats = Repeats(lambda: 0.0)
    for _ in range(3):
        assert repeats.filter(told("x", "commit failed"))
        assert repeats.filter(record("text", "ultralytics"))
    assert all(repeats.filter(told(f"broker {n} is down")) for n in range(3))
    assert all(repeats.filter(record("same", f"librdkafka.{name}")) for name in ("consumer", "producer"))


def test_memory_is_bounded() -> None:
    repeats = Repeats(lambda: 0.0)
    for n in range(5000):
        repeats.filter(told(f"text {n}"))
    assert len(repeats._said) <= 1000


def test_a_tool_reports_once_that_no_broker_answers(caplog: pytest.LogCaptureFixture) -> None:
    """Catches `sluice tail` with a wrong address: a hundred lines before the useful one."""
    client = clients.consumer("127.0.0.1:1", {"group.id": "g"})
    with pytest.raises(KafkaError, match="check --bootstrap-servers"):
        clients.partitions_of(client, "t", 2.0)
    client.close()
    assert len([line for line in caplog.messages if "refused" in line]) == 1
