"""What lies in the dead-letter topic, which of it is asked for, and what a replay writes. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from consumer.errors import ConfigError
from consumer.messages import ORIGINAL_KEY, ORIGINAL_TIMESTAMP, DeadLetter, Message, parse_frame, read_dead_letter
from consumer.observability.logging import printable
from consumer.types import Frame, Receipt, Record, TopicPartition

REPLAYS: Final = "sluice-replays"  # how often a record was replayed; a replay writes it, a dead letter keeps it
_REJECTED_AT: Final = "sluice-rejected-at-ms"
_NO_NOTES: Final = (_REJECTED_AT, ORIGINAL_TIMESTAMP, ORIGINAL_KEY)
_LATEST_MS: Final = 253_402_300_799_999  # the last millisecond of the year 9999, as far as a calendar goes
_COUNT: Final = re.compile(rb"[0-9]{1,6}")
_STAMP: Final = re.compile(rb"[0-9]{1,15}")
_PLACE: Final = re.compile(r"([0-9]{1,9})@([0-9]{1,18})")
_DURATION: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Verdict = Literal["replay", "no_match", "truncated", "too_often"]


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """One dead letter: `raw` as it lies in the topic, `dead` taken apart, `frame` what its record says as a frame."""

    partition: int
    offset: int
    raw: Record
    dead: DeadLetter
    frame: Frame
    rejected_at_ms: int | None
    replays: int

    @property
    def place(self) -> str:
        """Where it lies in the dead-letter topic; what `show` takes."""
        return f"{self.partition}@{self.offset}"


def read_letter(partition: int, offset: int, raw: Record) -> DeadLetterRecord | None:
    """None for a record that is no dead letter of ours."""
    dead = read_dead_letter(raw)
    if dead is None:
        return None
    receipt = Receipt(TopicPartition(dead.topic, dead.partition), dead.offset, 0)
    return DeadLetterRecord(
        partition,
        offset,
        raw,
        dead,
        parse_frame(dead.record, receipt, 0.0),
        rejected_at_ms=_number(raw, _REJECTED_AT, _STAMP, _LATEST_MS),
        replays=_number(dead.record, REPLAYS, _COUNT, 10**6) or 0,
    )


def _number(record: Record, name: str, form: re.Pattern[bytes], most: int) -> int | None:
    """The last header of that name that is such a number."""
    found = [int(v) for n, v in record.headers if n == name and v is not None and form.fullmatch(v)]
    return found[-1] if found and found[-1] <= most else None


def message_for(letter: DeadLetterRecord) -> Message:
    """What a replay writes: the original record, with the present time, and headers that count and date it.

    With the original timestamp, retention could delete it before it is read. So that goes into a header, and it stays
    the capture time of a frame that has no other. Of a truncated one the notes of what was cut go with it, so that it
    stays known as truncated if it fails again.
    """
    record = letter.dead.record
    headers = [header for header in record.headers if header[0] != REPLAYS]
    if letter.dead.truncated:
        headers += _notes(letter)
    if record.timestamp_ms is not None and record.timestamp_ms >= 0:
        headers.append((ORIGINAL_TIMESTAMP, b"%d" % record.timestamp_ms))
    headers.append((REPLAYS, b"%d" % (letter.replays + 1)))
    return Message(record.key, record.value, headers, None)


def _notes(letter: DeadLetterRecord) -> list[tuple[str, bytes | None]]:
    """The headers that say what was cut. The original headers are the others of `raw` less the rest of ours."""
    original = list(letter.dead.record.headers)
    notes = []
    for header in letter.raw.headers:
        if original and header == original[0]:
            original.pop(0)
        elif header[0].startswith("sluice-") and header[0] not in _NO_NOTES:
            notes.append(header)
    return notes


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant. An empty set is no condition."""

    reasons: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int | None = None  # rejected at that time or later

    def matches(self, letter: DeadLetterRecord) -> bool:
        """Whether a letter fulfils all conditions."""
        return (
            (not self.reasons or letter.dead.reason in self.reasons)
            and (not self.stages or letter.dead.stage in self.stages)
            and (not self.sources or letter.frame.source_id in self.sources)
            and (not self.topics or letter.dead.topic in self.topics)
            and (
                self.since_ms is None or (letter.rejected_at_ms is not None and letter.rejected_at_ms >= self.since_ms)
            )
        )

    def covers(self, other: Filter) -> bool:
        """Whether every letter that `other` matches is matched by this, whatever letters there are."""
        pairs = (
            (self.reasons, other.reasons),
            (self.stages, other.stages),
            (self.sources, other.sources),
            (self.topics, other.topics),
        )
        return all(not mine or (theirs and theirs <= mine) for mine, theirs in pairs) and (
            self.since_ms is None or (other.since_ms is not None and self.since_ms <= other.since_ms)
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """What a replay is asked to do: with which letters, and where they go."""

    filter: Filter = Filter()
    to: str | None = None  # None: the topic that each came from
    truncated: bool = False  # send also what was cut
    max_replays: int = 3  # leave alone what was replayed so often

    def status_of(self, letter: DeadLetterRecord) -> Verdict:
        """Whether it is to be replayed, and why not."""
        if not self.filter.matches(letter):
            return "no_match"
        if letter.dead.truncated and not self.truncated:
            return "truncated"
        return "too_often" if letter.replays >= self.max_replays else "replay"

    def destination(self, letter: DeadLetterRecord) -> str:
        """The topic that the record goes to."""
        return self.to or letter.dead.topic

    def covers(self, other: Selection) -> bool:
        """Whether this sends every letter that `other` sends, to the same place."""
        return (
            self.to == other.to
            and self.truncated >= other.truncated
            and self.max_replays >= other.max_replays
            and self.filter.covers(other.filter)
        )


def digest_of(selection: Selection) -> str:
    """A short name of a selection."""
    chosen = selection.filter
    sets = [sorted(values) for values in (chosen.reasons, chosen.stages, chosen.sources, chosen.topics)]
    parts = (sets, chosen.since_ms, selection.to, selection.truncated, selection.max_replays)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def parse_since(text: str | None, now_ms: int) -> int | None:
    """`2h`, `30m`, `7d`, or a time as `2026-01-31T22:00`, which is local unless it says otherwise."""
    if text is None:
        return None
    if (match := _DURATION.fullmatch(text)) is not None:
        return max(0, now_ms - 1000 * int(match[1]) * _SECONDS[match[2]])
    try:
        moment = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"--since {printable(text)}: expected 90s, 30m, 2h, 7d or 2026-01-31T22:00") from None
    return max(0, (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1))


def parse_place(text: str) -> tuple[int, int] | None:
    """`PARTITION@OFFSET`; None for what is none, such as the ID of an input record."""
    match = _PLACE.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None
