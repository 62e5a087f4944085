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
from consumer.tools.dlq.dead_letters import Letter, Selection, message_for, read_letter
from consumer.tools.dlq.progress import Progress
from consumer.tools.dlq.replay_writer import Item, Outbox, Refused
from consumer.tools.kafka.reader import Found, scan

_CHUNK_BYTES: Final = 8 * 2**20


class Forgetful(Exception):  # noqa: N818 - the caller decides whether to go on
    """This broker does not keep what is committed with an offset, so no group can remember more than one selection.

    Nothing was written.
    """


Fate = Literal["replay", "no_match", "truncated", "too_often", "already_replayed", "no_dead_letter"]


@dataclass(slots=True)
class Tally:
    """What became of the records that were read. `replayed` are acknowledged, or would be sent in a dry run."""

    replayed: int = 0
    to: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left: Counter[Fate] = field(default_factory=Counter)
    seen_reasons: Counter[str] = field(default_factory=Counter)  # of all letters, whether they match or not
    first: dict[Fate, str] = field(default_factory=dict)  # the place of the first one of each fate
    ended: Literal["end", "limit", "stopped"] = "end"

    def leave(self, fate: Fate, found: Found) -> None:
        """Count a record that is not replayed."""
        self.left[fate] += 1
        self.first.setdefault(fate, f"{found.partition}@{found.offset}")

    def sent(self, letters: Iterable[Letter], selection: Selection) -> None:
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


def sort_out(
    records: Iterable[Found], selection: Selection, progress: dict[int, Progress], tally: Tally
) -> Iterator[tuple[Found, Letter | None]]:
    """Each record, with the letter where it is to be replayed. Counts those that are not. Pure."""
    for found in records:
        letter = read_letter(*found)
        fate: Fate = "no_dead_letter" if letter is None else selection.verdict(letter)
        if letter is not None:
            tally.seen_reasons[letter.dead.reason] += 1
            if fate == "replay" and progress[found.partition].is_done(letter, selection.destination(letter)):
                fate = "already_replayed"
        if fate != "replay":
            tally.leave(fate, found)
        yield found, letter if fate == "replay" else None


@dataclass(slots=True)
class _Chunk:
    letters: list[Letter] = field(default_factory=list)
    bytes: int = 0
    upto: dict[int, int] = field(default_factory=dict)  # partition: every record below is in here, or not wanted

    def add(self, letter: Letter) -> None:
        self.letters.append(letter)
        self.bytes += len(letter.raw.value or b"") + len(letter.raw.key or b"")


class Replay:
    """One run over the dead-letter topic. Without an outbox it writes nothing: a dry run."""

    def __init__(
        self,
        client: Consumer,
        topic: str,
        selection: Selection,
        *,
        make_outbox: Callable[[], Outbox] | None,
        limit: int | None,
        batch: int,
        stop: threading.Event,
        remembers: bool = False,
        on_letter: Callable[[Letter], Any] = lambda _: None,
    ) -> None:
        self.tally = Tally()
        self._client = client
        self._topic = topic
        self._selection = selection
        self._make_outbox = make_outbox
        self._limit = limit
        self._batch = batch
        self._stop = stop
        self._on_letter = on_letter
        self._remembers = remembers  # it need not be found out whether the broker keeps metadata
        self._progress: dict[int, Progress] = {}
        self._outbox: Outbox | None = None
        self._known: set[str] = set()

    def run(self) -> Tally:
        """Raises a SluiceError or Forgetful where it cannot go on; `tally` says what was done until then."""
        partitions = clients.partitions_of(self._client, self._topic)
        if self._selection.to is not None:
            self._check_destination(self._selection.to, "--to")
        if self._make_outbox is not None:
            self._outbox = self._make_outbox()  # 1
        self._progress = load(self._client, self._topic, partitions)  # 2
        starts = {number: each.start_for(self._selection) for number, each in self._progress.items()}
        chunk = _Chunk()
        records = scan(self._client, self._topic, starts, self._stop)
        for found, letter in sort_out(records, self._selection, self._progress, self.tally):  # 3
            if letter is not None:
                chunk = self._admit(letter, chunk)
            chunk.upto[found.partition] = found.offset + 1
            if self.tally.replayed + len(chunk.letters) == self._limit:
                self.tally.ended = "limit"
                break
            if len(chunk.letters) >= self._batch or chunk.bytes >= _CHUNK_BYTES:
                chunk = self._send(chunk)
        self._send(chunk)
        if self._stop.is_set():
            self.tally.ended = "stopped"
        return self.tally

    def _admit(self, letter: Letter, chunk: _Chunk) -> _Chunk:
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
        except Refused:
            self._send_singly(chunk.letters)
        return _Chunk()

    def _send_singly(self, letters: list[Letter]) -> None:
        """Find the one that is refused. Those before it must not wait for ever behind it."""
        for letter in letters:
            try:
                self._write([letter], {letter.partition: letter.offset + 1})
            except Refused as refused:
                to = printable(self._selection.destination(letter))
                raise PublishError(
                    f"dead letter {letter.place} was refused by topic {to}: {refused}; all before it are replayed. "
                    f"Mend that (max.message.bytes of the topic?), or choose others with --reason or --source"
                ) from None

    def _write(self, letters: list[Letter], upto: dict[int, int]) -> None:
        if self._outbox is not None:
            # Only where something is sent: so a run that finds nothing leaves no trace.
            partitions = {letter.partition for letter in letters}
            self._check_memory(self._outbox, partitions)
            self._check_alone(self._outbox)
            ahead = {
                number: self._progress[number].advanced(self._selection, upto[number], self._oldest(number))
                for number in partitions
            }
            items = [Item(self._selection.destination(each), message_for(each)) for each in letters]
            self._outbox.send(items, self._commits(ahead))
            self._progress |= ahead
        self.tally.sent(letters, self._selection)
        for letter in letters:
            self._on_letter(letter)

    def _check_memory(self, outbox: Outbox, partitions: Iterable[int]) -> None:
        """Once, before anything is sent: whether the broker gives back what is committed. It commits what was there."""
        if self._remembers:
            return
        unchanged = {number: self._progress[number] for number in partitions}
        outbox.send([], self._commits(unchanged))
        if not all(each.metadata for each in _committed(self._client, self._topic, unchanged)):
            raise Forgetful
        self._remembers = True

    def _check_alone(self, outbox: Outbox) -> None:
        """A connection made anew takes the transactional ID back from a replay that has started in the meantime."""
        if outbox.refresh() and load(self._client, self._topic, self._progress) != self._progress:
            raise KafkaError("another replay of this group has sent letters meanwhile: run the same command again")

    def _commits(self, progress: dict[int, Progress]) -> list[TopicPartition]:
        return [
            TopicPartition(self._topic, number, each.offset, metadata=each.to_metadata())
            for number, each in progress.items()
        ]

    def _oldest(self, partition: int) -> int:
        known = self._client.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        return max(0, known[0]) if known is not None else 0
