"""Finds one dead letter, keeps the newest rows of a list, and saves the value of a dead letter."""

from __future__ import annotations

import heapq
import threading
from contextlib import AbstractContextManager
from pathlib import Path

from consumer.errors import ConfigError, KafkaError
from consumer.observability.logging import printable
from consumer.tools.clients import Connection
from consumer.tools.dlq.dead_letters import DeadLetterRecord, parse_position, read_letter
from consumer.tools.dlq.formatting import Row, size
from consumer.tools.kafka.reader import TopicReader, open_reader


def open_dead_letters(
    connection: Connection, stop: threading.Event, group: str | None = None
) -> AbstractContextManager[TopicReader]:
    """Open a reader of the dead-letter topic. `group`: the group whose committed offsets record the replays."""
    settings = {
        "auto.offset.reset": "earliest",  # records that retention has deleted are skipped
        **connection.settings,
        # Records of aborted transactions are not dead letters. Committed offsets wait for open transactions.
        "isolation.level": "read_committed",
    }
    return open_reader(connection.bootstrap_servers, settings, stop, group)


class NewestRows:
    """Keeps the newest `most` rows, or all rows if `most` is 0."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, tuple[int, int], Row]] = []

    def add(self, at_ms: int | None, position: tuple[int, int], row: Row) -> None:
        """Add a row. `position` (partition, offset) is unique, so the heap never compares rows."""
        entry = (at_ms or 0, position, row)
        if self._most and len(self._heap) == self._most:
            heapq.heappushpop(self._heap, entry)
        else:
            heapq.heappush(self._heap, entry)

    def rows(self) -> list[Row]:
        """The kept rows, oldest first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2])]


def find(reader: TopicReader, topic: str, which: str) -> tuple[DeadLetterRecord, list[str]]:
    """Find a dead letter by its position, or by the ID of its input record.

    Returns:
        The dead letter, and the positions of all dead letters with this ID. It is the last one of them.

    Raises:
        KafkaError: the dead letter does not exist.
    """
    if (position := parse_position(which)) is None:
        return _find_id(reader, topic, which)
    exists = position[0] in reader.partitions(topic)
    record = reader.record_at(topic, *position) if exists else None
    if record is None:
        raise KafkaError(f"topic {printable(topic)} has no record at {which}; `sluice dlq list` shows the positions")
    letter = read_letter(*position, record)
    if letter is None:
        raise KafkaError(f"the record at {which} is not a dead letter of Sluice: {size(len(record.value or b''))}")
    return letter, [letter.position]


def _find_id(reader: TopicReader, topic: str, which: str) -> tuple[DeadLetterRecord, list[str]]:
    positions: list[str] = []
    last: DeadLetterRecord | None = None
    for found in reader.scan_all(topic):
        letter = read_letter(*found)
        if letter is not None and letter.dead.id == which:
            positions.append(letter.position)
            last = letter
    if last is None:
        wanted = "expected PARTITION@OFFSET or topic/partition/offset"
        raise KafkaError(f"no dead letter has the ID {printable(which)}; {wanted}")
    return last, positions


def save_value(letter: DeadLetterRecord, path: Path) -> str:
    """Write the value of a dead letter to a new file.

    Returns:
        The line to print.

    Raises:
        ConfigError: the dead letter has no value, or the file exists or cannot be written.
    """
    value = letter.dead.record.value
    if value is None:
        raise ConfigError(f"--save: dead letter {letter.position} has no value")
    try:
        with path.open("xb") as file:
            file.write(value)
    except FileExistsError:
        raise ConfigError(f"--save {printable(str(path))}: the file already exists") from None
    except OSError as error:
        raise ConfigError(f"--save {printable(str(path))}: {error.strerror}") from None
    truncated = " (the value is truncated)" if letter.dead.truncated else ""
    return f"{len(value):,} bytes written to {printable(str(path))}{truncated}"
