"""Calls that must come back: what a call that never does may not keep from happening."""

from __future__ import annotations

import subprocess
import sys

import pytest

HANGS = """
import sys, threading
from confluent_kafka import KafkaException
from consumer.publisher.caller import Caller
caller = Caller("hangs")
try:
    caller.call(lambda timeout_s: threading.Event().wait(), 0.1, 0.1)
except KafkaException as error:
    assert not error.args[0].retriable()
    caller.end(lambda: None)
    {end}
"""


@pytest.mark.parametrize(("end", "status"), [("sys.exit(7)", 7), ("raise RuntimeError", 1)])
def test_a_process_ends_although_a_call_hangs(end: str, status: int) -> None:
    """Catches a thread that Python waits for when it ends."""
    ended = subprocess.run([sys.executable, "-c", HANGS.format(end=end)], timeout=60, check=False, capture_output=True)
    assert ended.returncode == status, ended.stderr.decode()
