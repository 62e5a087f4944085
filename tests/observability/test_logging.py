"""The log has one line per event. A hostile text can neither forge a line nor control a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = 'x\n{"level": "critical", "event": "forged"}\r\n\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u2028\u202egpj.exe'

_PROGRAM = """
import logging, sys
import structlog
from consumer.observability.logging import set_up_logging
from consumer.config import LogConfig
set_up_logging(LogConfig(format=sys.argv[1]))
hostile = sys.argv[2]
structlog.get_logger("ours").warning(hostile, source=hostile, model=hostile, count=3)
logging.getLogger("librdkafka").error(hostile)
logging.getLogger("librdkafka").error("broker %s", hostile)
try:
    raise ValueError(hostile)
except ValueError:
    structlog.get_logger("ours").exception("failed")
"""


def lines(log_format: str) -> list[str]:
    command = [sys.executable, "-c", _PROGRAM, log_format, HOSTILE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout == b""
    return done.stderr.decode().split("\n")[:-1]


def test_json_is_one_ascii_line_per_event_with_the_complete_text() -> None:
    """Catches a source ID, a header or a text of a broker that becomes a line of its own."""
    found = lines("json")
    assert len(found) == 4
    assert all(line.isascii() and line.isprintable() for line in found)
    ours, plain, formatted, failed = map(json.loads, found)
    escaped = ours["event"]
    assert escaped == ours["source"] == ours["model"] == plain["event"]
    assert formatted["event"] == f"broker {escaped}"
    assert (ours["count"], ours["level"]) == (3, "warning")
    assert "forged" in escaped
    assert "\n" not in escaped
    assert "ValueError" in failed["exception"]


def test_the_console_has_no_control_character_of_others() -> None:
    """Catches a terminal that the name of a camera has cleared, renamed or written to."""
    found = lines("console")
    ours = "\n".join(found[:3])
    assert len(found) > 3
    assert "forged" in ours
    for forbidden in ("\x1b]", "\x1b[2J", "\x9b", "\x7f", "\r", "\u2028", "\u202e", "\x07"):
        assert forbidden not in ours


def test_an_error_message_is_printed_without_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a text of a broker or a file that reaches stderr unescaped in the final error message."""
    from consumer import cli as program
    from consumer.errors import KafkaError

    def fail(**_: object) -> None:
        raise KafkaError("first\x1b[2J\nsecond\x07")

    monkeypatch.setattr(program, "app", fail)
    with pytest.raises(SystemExit):
        program.main()
    assert capsys.readouterr().err == "sluice: first\\x1b[2J\nsecond\\x07\n"
