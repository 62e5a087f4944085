"""Replays dead letters, each one once, and records what was replayed.

The order is the guarantee:

1. take over the group's transactional ID: from here on an older replay cannot write
2. read what was replayed before
3. read dead letters, select them, and collect a chunk
4. in one transaction, write the chunk and the progress of the replay
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from confluent_kafka import Consumer, KafkaException, TopicPartition

from consumer.errors import ConfigError, KafkaError, PublishError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.dlq.dead_letters import DeadLetterRecord, ReplayStatus, Selection, message_for, read_letter
from consumer.tools.dlq.progress import Progress
from consumer.tools.dlq.replay_writer import Item, RecordRefused, ReplayWriter
from consumer.tools.kafka.reader import TopicReader, TopicRecord

_CHUNK_BYTES: Final = 8 * 2**20


class MetadataNotKept(Exception):  # noqa: N818 - the caller decides whether to continue
    """The broker does not keep the metadata of committed offsets, so a group can record only one selection.

    Nothing was written.
    """


@dataclass(slots=True)
class ReplayCounts:
    """How many records were read, by their status.

    Attributes:
        replayed: acknowledged records. In a dry run, the records that would be sent.
        to: replayed records by topic.
        reasons: replayed records by the reason of their rejection.
        left: records that were not replayed, by status.
        seen_reasons: reasons of all dead letters, whether they match the filter or not.
        first: the position of the first record of each status.
        ended: what ended the replay.
    """

    replayed: int = 0
    to: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left: Counter[ReplayStatus] = field(default_factory=Counter)
    seen_reasons: Counter[str] = field(default_factory=Counter)
    first: dict[ReplayStatus, str] = field(default_factory=dict)
    ended: Literal["end", "limit", "stopped"] = "end"

    def leave(self, status: ReplayStatus, found: TopicRecord) -> None:
        """Count a record that is not replayed."""
        self.left[status] += 1
        self.first.setdefault(status, f"{found.partition}@{found.offset}")

    def sent(self, letters: Iterable[DeadLetterRecord], selection: Selection) -> None:
        """Count dead letters that were written."""
        for letter in letters:
            self.replayed += 1
            self.to[selection.destination(letter)] += 1
            self.reasons[letter.dead.reason] += 1


def load_progress(client: Consumer, topic: str, partitions: Iterable[int]) -> dict[int, Progress]:
    """Read what the group of `client` has replayed, by partition.

    Raises:
        KafkaError: the committed offsets cannot be read, or another program wrote them.
    """
    progress = {}
    for each in _committed(client, topic, partitions):
        try:
            progress[each.partition] = Progress.from_commit(each.offset, each.metadata)
        except ValueError as error:
            raise KafkaError(
                f"partition {each.partition}: the group's committed offset is {printable(str(error))}; "
                f"choose another --group"
            ) from None
    return progress


def _committed(client: Consumer, topic: str, partitions: Iterable[int]) -> list[TopicPartition]:
    wanted = [TopicPartition(topic, number) for number in partitions]
    try:
        found: list[TopicPartition] = client.committed(wanted, timeout=clients.METADATA_TIMEOUT_S)
    except KafkaException as error:
        raise KafkaError(f"cannot read what was replayed: {clients.text_of(error)}") from None
    for each in found:
        if each.error is not None:
            raise KafkaError(f"cannot read what was replayed: {printable(each.error.str())}")
    return found


def classify(
    records: Iterable[TopicRecord], selection: Selection, progress: dict[int, Progress], counts: ReplayCounts
) -> Iterator[tuple[TopicRecord, DeadLetterRecord | None]]:
    """Yield each record, with its dead letter if that is to be replayed. Counts the other records. Pure."""
    for found in records:
        letter = read_letter(*found)
        status: ReplayStatus = "no_dead_letter" if letter is None else selection.status_of(letter)
        if letter is not None:
            counts.seen_reasons[letter.dead.reason] += 1
            if status == "replay" and progress[found.partition].is_done(letter, selection.destination(letter)):
                status = "already_replayed"
        if status != "replay":
            counts.leave(status, found)
        yield found, letter if status == "replay" else None


@dataclass(slots=True)
class _Chunk:
    """Dead letters to write together. Every record of a partition below `upto` is in the chunk, or is not selected."""

    letters: list[DeadLetterRecord] = field(default_factory=list)
    bytes: int = 0
    upto: dict[int, int] = field(default_factory=dict)

    def add(self, letter: DeadLetterRecord) -> None:
        self.letters.append(letter)
        self.bytes += len(letter.raw.value or b"") + len(letter.raw.key or b"")


class Replayer:
    """One run over the dead-letter topic.

    Args:
        reader: reads the dead-letter topic; its client belongs to the group that records the progress.
        topic: the dead-letter topic.
        selection: what to send, and to which topic.
        make_writer: opens the writer. None: a dry run, which writes nothing.
        limit: end after so many dead letters.
        batch: dead letters per chunk.
        stop: ends the run.
        metadata_is_kept: do not test whether the broker keeps the metadata of committed offsets.
        on_letter: receives each dead letter that was sent, or would be sent.
    """

    def __init__(
        self,
        reader: TopicReader,
        topic: str,
        selection: Selection,
        *,
        make_writer: Callable[[], ReplayWriter] | None,
        limit: int | None,
        batch: int,
        stop: threading.Event,
        metadata_is_kept: bool = False,
        on_letter: Callable[[DeadLetterRecord], Any] = lambda _: None,
    ) -> None:
        self.counts = ReplayCounts()
        self._reader = reader
        self._client = reader.client
        self._topic = topic
        self._selection = selection
        self._make_writer = make_writer
        self._limit = limit
        self._batch = batch
        self._stop = stop
        self._on_letter = on_letter
        self._metadata_is_kept = metadata_is_kept
        self._progress: dict[int, Progress] = {}
        self._writer: ReplayWriter | None = None
        self._known: set[str] = set()

    def run(self) -> ReplayCounts:
        """Replay the selected dead letters. If it raises, `counts` has what was done until then.

        Raises:
            MetadataNotKept: the broker does not keep the metadata of committed offsets.
            SluiceError: the replay cannot continue.
        """
        partitions = self._reader.partitions(self._topic)
        if self._selection.to is not None:
            self._check_destination(self._selection.to, "--to")
        if self._make_writer is not None:
            self._writer = self._make_writer()  # 1
        self._progress = load_progress(self._client, self._topic, partitions)  # 2
        ranges = {number: (each.start_for(self._selection), None) for number, each in self._progress.items()}
        chunk = _Chunk()
        records = self._reader.scan(self._topic, ranges)
        for found, letter in classify(records, self._selection, self._progress, self.counts):  # 3
            if letter is not None:
                chunk = self._add(letter, chunk)
            chunk.upto[found.partition] = found.offset + 1
            if self.counts.replayed + len(chunk.letters) == self._limit:
                self.counts.ended = "limit"
                break
            if len(chunk.letters) >= self._batch or chunk.bytes >= _CHUNK_BYTES:
                chunk = self._send(chunk)
        self._send(chunk)
        if self._stop.is_set():
            self.counts.ended = "stopped"
        return self.counts

    def _add(self, letter: DeadLetterRecord, chunk: _Chunk) -> _Chunk:
        try:
            self._check_destination(self._selection.destination(letter), f"dead letter {letter.position}")
        except (KafkaError, ConfigError):
            self._send(chunk)  # the dead letters before this one are still sent
            raise
        chunk.add(letter)
        return chunk

    def _check_destination(self, topic: str, subject: str) -> None:
        """Refuse topics that are not for frames: anyone who can write a dead letter can name any topic in it."""
        if topic in self._known:
            return
        if topic == self._topic:
            raise ConfigError(
                f"{subject}: it would go to the dead-letter topic itself; use --to, or --input-topic to choose"
            )
        if topic.startswith("__") or not topic:
            raise ConfigError(f"{subject}: it would go to {printable(topic)!r}, which is not a topic for frames")
        try:
            clients.partitions_of(self._client, topic)
        except KafkaError as error:
            raise KafkaError(f"{subject}: {error}; create the topic, use --to, or --input-topic to choose") from None
        self._known.add(topic)

    def _send(self, chunk: _Chunk) -> _Chunk:
        """Write a chunk. Returns an empty one."""
        if not chunk.letters:
            return chunk  # a chunk without selected records needs no commit
        try:
            self._write(chunk.letters, chunk.upto)
        except RecordRefused:
            self._send_singly(chunk.letters)
        return _Chunk()

    def _send_singly(self, letters: list[DeadLetterRecord]) -> None:
        """Write one dead letter at a time, to find the refused one and to send those before it."""
        for letter in letters:
            try:
                self._write([letter], {letter.partition: letter.offset + 1})
            except RecordRefused as refused:
                to = printable(self._selection.destination(letter))
                raise PublishError(
                    f"dead letter {letter.position} was refused by topic {to}: {refused}; all before it are replayed. "
                    f"Fix the cause (max.message.bytes of the topic?), or choose others with --reason or --source"
                ) from None

    def _write(self, letters: list[DeadLetterRecord], upto: dict[int, int]) -> None:
        """Write the dead letters and the progress. Without dead letters nothing is written, not even progress."""
        if self._writer is not None:
            partitions = {letter.partition for letter in letters}
            self._check_metadata_is_kept(self._writer, partitions)
            self._check_not_taken_over(self._writer)
            ahead = {
                number: self._progress[number].advanced(self._selection, upto[number], self._oldest(number))
                for number in partitions
            }
            items = [Item(self._selection.destination(each), message_for(each)) for each in letters]
            self._writer.send(items, self._commits(ahead))  # 4
            self._progress |= ahead
        self.counts.sent(letters, self._selection)
        for letter in letters:
            self._on_letter(letter)

    def _check_metadata_is_kept(self, writer: ReplayWriter, partitions: Iterable[int]) -> None:
        """Commit the progress unchanged, once and before anything is sent, and check that its metadata can be read."""
        if self._metadata_is_kept:
            return
        unchanged = {number: self._progress[number] for number in partitions}
        writer.send([], self._commits(unchanged))
        if not all(each.metadata for each in _committed(self._client, self._topic, unchanged)):
            raise MetadataNotKept
        self._metadata_is_kept = True

    def _check_not_taken_over(self, writer: ReplayWriter) -> None:
        """A new connection takes the transactional ID back from a replay that has started in the meantime."""
        if writer.refresh() and load_progress(self._client, self._topic, self._progress) != self._progress:
            raise KafkaError("another replay of this group has sent dead letters meanwhile: run the same command again")

    def _commits(self, progress: dict[int, Progress]) -> list[TopicPartition]:
        return [
            TopicPartition(self._topic, number, each.offset, metadata=each.to_metadata())
            for number, each in progress.items()
        ]

    def _oldest(self, partition: int) -> int:
        """The first offset that the partition still holds, as the latest fetch response reported it."""
        known = self._client.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        return max(0, known[0]) if known is not None else 0
