"""A topic full of bad frames must not fill the disk with log lines."""

from __future__ import annotations

from unittest import mock

from consumer.observability.rate_limited_log import BURST, SparingLog
from made_frames import VirtualClock


def test_a_few_lines_are_written_as_they_come() -> None:
    """Catches a first rejection that is suppressed, although an operator needs it."""
    written = mock.Mock()
    log = SparingLog(written, VirtualClock())
    for number in range(BURST):
        log.warning("frame rejected", frame=number)
    assert written.warning.mock_calls == [mock.call("frame rejected", frame=n) for n in range(BURST)]


def test_a_flood_gives_a_line_per_second_and_counts_the_others() -> None:
    clock, written = VirtualClock(), mock.Mock()
    log = SparingLog(written, clock)
    for _ in range(100_000):
        clock.advance(0.001)
        log.warning("frame rejected")
    lines = written.warning.mock_calls
    assert 100 <= len(lines) <= 100 + BURST
    suppressed = sum(line.kwargs.get("suppressed", 0) for line in lines)
    assert len(lines) + suppressed + log._suppressed == 100_000


def test_after_a_quiet_period_a_few_lines_are_written_at_once_again() -> None:
    clock, written = VirtualClock(), mock.Mock()
    log = SparingLog(written, clock)
    for _ in range(50):
        log.warning("frame rejected")
    clock.advance(3600)
    written.reset_mock()
    for _ in range(50):
        log.warning("frame rejected")
    assert len(written.warning.mock_calls) == BURST
    assert written.warning.mock_calls[0] == mock.call("frame rejected", suppressed=40)
