"""A member of a consumer group in a process of its own, so that a test can kill it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from consumer.tools.embedded import dies_with_parent


class GroupMember:
    """The process, and what it says: `with GroupMember(topic, settings, log) as member: member.owned`."""

    def __init__(self, topic: str, settings: Mapping[str, Any], log: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).resolve()), topic, json.dumps(dict(settings))]
        self._log = log

    def __enter__(self) -> GroupMember:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(dies_with_parent(self._command), stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL: no goodbye to the group."""
        self._process.kill()
        self._process.wait()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its assignments so far, oldest first; raises with what it said if it died."""
        said = self._log.read_text(errors="replace")
        if self._process.poll() not in {None, -signal.SIGKILL}:
            raise RuntimeError(f"the group member ended with status {self._process.returncode}:\n{said[-2000:]}")
        return [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]

    @property
    def owned(self) -> set[int]:
        """The partitions that it has now, as far as it knows."""
        owned: set[int] = set()
        for event in self.events:
            partitions = set(event["partitions"])
            owned = owned | partitions if event["event"] == "assigned" else owned - partitions
        return owned


def main() -> None:
    topic, settings = sys.argv[1], json.loads(sys.argv[2])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def say(event: str, partitions: list[TopicPartition]) -> None:
        print(json.dumps({"event": event, "partitions": [each.partition for each in partitions]}), flush=True)

    consumer = Consumer(settings)
    consumer.subscribe(
        [topic],
        on_assign=lambda _, partitions: say("assigned", partitions),
        on_revoke=lambda _, partitions: say("revoked", partitions),
        on_lost=lambda _, partitions: say("lost", partitions),
    )
    while not stop.is_set():
        consumer.poll(0.1)
    consumer.close()


if __name__ == "__main__":
    main()
