"""Sends dead letters back, each once, and remembers it.

The order is the guarantee:

1. begin to own the group's transactional ID: an older replay can write nothing from here on
2. read what was replayed before
3. read letters, choose, gather a chunk
4. in one transaction: write the chunk and how far the replay has come
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
from consumer.tools.dlq.dead_letters import DeadLetterRecord, Selection, message_for, read_letter
from consumer.tools.dlq.progress import Progress
from consumer.tools.dlq.replay_writer import Item, RecordRefused, ReplayWriter
from consumer.tools.kafka.reader import Found, scan

_CHUNK_BYTES: Final = 8 * 2**20


class MetadataNotKept(Exception):  # noqa: N818 - the caller decides whether to go on
    """This broker does not keep what is committed with an offset, so no group can remember more than one selection.

    Nothing was written.
    """


ReplayStatus = Literal["replay", "no_match", "truncated", "too_often", "already_replayed", "no_dead_letter"]


@dataclass(slots=True)
class ReplayCounts:
    """What became of the records that were read. `replayed` are acknowledged, or would be sent in a dry run."""

    replayed: int = 0
    to: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left: Counter[ReplayStatus] = field(default_factory=Counter)
    seen_reasons: Counter[str] = field(default_factory=Counter)  # of all letters, whether they match or not
    first: dict[ReplayStatus, str] = field(default_factory=dict)  # the place of the first one of each status
    ended: Literal["end", "limit", "stopped"] = "end"

    def leave(self, status: ReplayStatus, found: Found) -> None:
        """Count a record that is not replayed."""
        self.left[status] += 1
        self.first.setdefault(status, f"{found.partition}@{found.offset}")

    def sent(self, letters: Iterable[DeadLetterRecord], selection: Selection) -> None:
        """Count letters that are written."""
        for letter in letters:
            self.replayed += 1
            self.to[selection.destination(letter)] += 1
            self.reasons[letter.dead.reason] += 1


def load(client: Consumer, topic: str, partitions: Iterable[int]) -> dict[int, Progress]:
    """What the group of `client` has replayed. Raises KafkaError where it cannot be known."""
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
        found: list[TopicPartition] = client.committed(wanted, timeout=clients.CONTACT_TIMEOUT_S)
    except KafkaException as error:
        raise KafkaError(f"cannot read what was replayed: {clients.text_of(error)}") from None
    for each in found:
        if each.error is not None:
            raise KafkaError(f"cannot read what was replayed: {printable(each.error.str())}")
    return found


def classify(
    records: Iterable[Found], selection: Selection, progress: dict[int, Progress], counts: ReplayCounts
) -> Iterator[tuple[Found, DeadLetterRecord | None]]:
    """Each record, with the letter where it is to be replayed. Counts those that are not. Pure."""
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
    letters: list[DeadLetterRecord] = field(default_factory=list)
    bytes: int = 0
    upto: dict[int, int] = field(default_factory=dict)  # partition: every record below is in here, or not wanted

    def add(self, letter: DeadLetterRecord) -> None:
        self.letters.append(letter)
        self.bytes += len(letter.raw.value or b"") + len(letter.raw.key or b"")


class Replayer:
    """One run over the dead-letter topic. Without an writer it writes nothing: a dry run."""

    def __init__(
        self,
        client: Consumer,
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
        self._client = client
        self._topic = topic
        self._selection = selection
        self._make_writer = make_writer
        self._limit = limit
        self._batch = batch
        self._stop = stop
        self._on_letter = on_letter
        self._metadata_is_kept = metadata_is_kept  # it need not be found out whether the broker keeps metadata
        self._progress: dict[int, Progress] = {}
        self._writer: ReplayWriter | None = None
        self._known: set[str] = set()

    def run(self) -> ReplayCounts:
        """Raises a SluiceError or MetadataNotKept where it cannot go on; `counts` says what was done until then."""
        partitions = clients.partitions_of(self._client, self._topic)
        if self._selection.to is not None:
            self._check_destination(self._selection.to, "--to")
        if self._make_writer is not None:
            self._writer = self._make_writer()  # 1
        self._progress = load(self._client, self._topic, partitions)  # 2
        starts = {number: each.start_for(self._selection) for number, each in self._progress.items()}
        chunk = _Chunk()
        records = scan(self._client, self._topic, starts, self._stop)
        for found, letter in classify(records, self._selection, self._progress, self.counts):  # 3
            if letter is not None:
                chunk = self._admit(letter, chunk)
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

    def _admit(self, letter: DeadLetterRecord, chunk: _Chunk) -> _Chunk:
        try:
            self._check_destination(self._selection.destination(letter), f"dead letter {letter.place}")
        except (KafkaError, ConfigError):
            self._send(chunk)  # what came before it is not held up
            raise
        chunk.add(letter)
        return chunk

    def _check_destination(self, topic: str, who: str) -> None:
        """What stands in a dead letter is not trusted to name any topic of the cluster."""
        if topic in self._known:
            return
        if topic == self._topic:
            raise ConfigError(
                f"{who}: it would go to the dead-letter topic itself; use --to, or --input-topic to choose"
            )
        if topic.startswith("__") or not topic:
            raise ConfigError(f"{who}: it would go to {printable(topic)!r}, which is no topic for frames")
        try:
            clients.partitions_of(self._client, topic)
        except KafkaError as error:
            raise KafkaError(f"{who}: {error}; make the topic, use --to, or --input-topic to choose") from None
        self._known.add(topic)

    def _send(self, chunk: _Chunk) -> _Chunk:
        """Write a chunk; returns an empty one."""
        if not chunk.letters:
            return chunk  # what is not wanted need not be remembered
        try:
            self._write(chunk.letters, chunk.upto)
        except RecordRefused:
            self._send_singly(chunk.letters)
        return _Chunk()

    def _send_singly(self, letters: list[DeadLetterRecord]) -> None:
        """Find the one that is refused. Those before it must not wait for ever behind it."""
        for letter in letters:
            try:
                self._write([letter], {letter.partition: letter.offset + 1})
            except RecordRefused as refused:
                to = printable(self._selection.destination(letter))
                raise PublishError(
                    f"dead letter {letter.place} was refused by topic {to}: {refused}; all before it are replayed. "
                    f"Mend that (max.message.bytes of the topic?), or choose others with --reason or --source"
                ) from None

    def _write(self, letters: list[DeadLetterRecord], upto: dict[int, int]) -> None:
        if self._writer is not None:
            # Only where something is sent: so a run that finds nothing leaves no trace.
            partitions = {letter.partition for letter in letters}
            self._check_metadata_is_kept(self._writer, partitions)
            self._check_not_taken_over(self._writer)
            ahead = {
                number: self._progress[number].advanced(self._selection, upto[number], self._oldest(number))
                for number in partitions
            }
            items = [Item(self._selection.destination(each), message_for(each)) for each in letters]
            self._writer.send(items, self._commits(ahead))
            self._progress |= ahead
        self.counts.sent(letters, self._selection)
        for letter in letters:
            self._on_letter(letter)

    def _check_metadata_is_kept(self, writer: ReplayWriter, partitions: Iterable[int]) -> None:
        """Once, before anything is sent: whether the broker gives back what is committed. It commits what was there."""
        if self._metadata_is_kept:
            return
        unchanged = {number: self._progress[number] for number in partitions}
        writer.send([], self._commits(unchanged))
        if not all(each.metadata for each in _committed(self._client, self._topic, unchanged)):
            raise MetadataNotKept
        self._metadata_is_kept = True

    def _check_not_taken_over(self, writer: ReplayWriter) -> None:
        """A connection made anew takes the transactional ID back from a replay that has started in the meantime."""
        if writer.refresh() and load(self._client, self._topic, self._progress) != self._progress:
            raise KafkaError("another replay of this group has sent letters meanwhile: run the same command again")

    def _commits(self, progress: dict[int, Progress]) -> list[TopicPartition]:
        return [
            TopicPartition(self._topic, number, each.offset, metadata=each.to_metadata())
            for number, each in progress.items()
        ]

    def _oldest(self, partition: int) -> int:
        known = self._client.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        return max(0, known[0]) if known is not None else 0
