"""Finds one dead letter, keeps the newest of many, and saves one."""

from __future__ import annotations

import heapq
import threading
from pathlib import Path

from confluent_kafka import Consumer

from consumer.errors import ConfigError, KafkaError
from consumer.observability.logging import printable
from consumer.tools.dlq.dead_letters import DeadLetterRecord, parse_place, read_letter
from consumer.tools.dlq.formatting import Row, size
from consumer.tools.kafka.reader import record_at, scan_all


class NewestRows:
    """Keeps the newest rows, `most` of them; 0: all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, tuple[int, int], Row]] = []

    def add(self, at_ms: int | None, place: tuple[int, int], row: Row) -> None:
        """`place` is unique, so rows are never compared."""
        entry = (at_ms or 0, place, row)
        if self._most and len(self._heap) == self._most:
            heapq.heappushpop(self._heap, entry)
        else:
            heapq.heappush(self._heap, entry)

    def rows(self) -> list[Row]:
        """Oldest first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2])]


def find(client: Consumer, topic: str, which: str, stop: threading.Event) -> tuple[DeadLetterRecord, list[str]]:
    """The letter at a place, or the last one of an input record, with the places of all. KafkaError: there is none."""
    if (place := parse_place(which)) is None:
        return _find_id(client, topic, which, stop)
    record = record_at(client, topic, *place)
    if record is None:
        raise KafkaError(f"topic {printable(topic)} has no record at {which}; `sluice dlq list` shows the places")
    letter = read_letter(*place, record)
    if letter is None:
        raise KafkaError(f"the record at {which} is no dead letter of Sluice: {size(len(record.value or b''))}")
    return letter, [letter.place]


def _find_id(client: Consumer, topic: str, which: str, stop: threading.Event) -> tuple[DeadLetterRecord, list[str]]:
    places: list[str] = []
    last: DeadLetterRecord | None = None
    for found in scan_all(client, topic, stop):
        letter = read_letter(*found)
        if letter is not None and letter.dead.id == which:
            places.append(letter.place)
            last = letter
    if last is None:
        wanted = "expected PARTITION@OFFSET or topic/partition/offset"
        raise KafkaError(f"no dead letter has the ID {printable(which)}; {wanted}")
    return last, places


def save_value(letter: DeadLetterRecord, path: Path) -> str:
    """Write the value of a letter to a new file; returns what to say. Raises ConfigError where that cannot be."""
    value = letter.dead.record.value
    if value is None:
        raise ConfigError(f"--save: dead letter {letter.place} has no value")
    try:
        with path.open("xb") as file:
            file.write(value)
    except FileExistsError:
        raise ConfigError(f"--save {printable(str(path))}: there is such a file already") from None
    except OSError as error:
        raise ConfigError(f"--save {printable(str(path))}: {error.strerror}") from None
    cut = ", of a value that was cut" if letter.dead.truncated else ""
    return f"{len(value):,} bytes written to {printable(str(path))}{cut}"
