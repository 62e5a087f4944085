"""Parses and selects dead letters, and builds the record that a replay writes. Pure."""

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

REPLAYS: Final = "sluice-replays"  # number of replays of a record; a replay writes this header, a dead letter keeps it
_REJECTED_AT: Final = "sluice-rejected-at-ms"
_NOT_TRUNCATION: Final = (_REJECTED_AT, ORIGINAL_TIMESTAMP, ORIGINAL_KEY)
_LATEST_MS: Final = 253_402_300_799_999  # the last millisecond of the year 9999, the largest time that datetime takes
_COUNT: Final = re.compile(rb"[0-9]{1,6}")
_STAMP: Final = re.compile(rb"[0-9]{1,15}")
_POSITION: Final = re.compile(r"([0-9]{1,9})@([0-9]{1,18})")
_DURATION: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

ReplayStatus = Literal["replay", "no_match", "truncated", "too_often", "already_replayed", "no_dead_letter"]


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """One record of the dead-letter topic.

    Attributes:
        raw: the record as stored in the topic.
        dead: the parsed dead letter.
        frame: the original record, parsed as a frame.
        rejected_at_ms: Unix milliseconds of the rejection, if the record has them.
        replays: how often the original record was replayed before.
    """

    partition: int
    offset: int
    raw: Record
    dead: DeadLetter
    frame: Frame
    rejected_at_ms: int | None
    replays: int

    @property
    def position(self) -> str:
        """PARTITION@OFFSET in the dead-letter topic, as `sluice dlq show` takes it."""
        return f"{self.partition}@{self.offset}"


def read_letter(partition: int, offset: int, raw: Record) -> DeadLetterRecord | None:
    """Parse a record of the dead-letter topic. None if Sluice did not write it."""
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
    """The last header with this name and form. None if there is none, or if it is larger than `most`."""
    found = [int(v) for n, v in record.headers if n == name and v is not None and form.fullmatch(v)]
    return found[-1] if found and found[-1] <= most else None


def message_for(letter: DeadLetterRecord) -> Message:
    """Build the record that a replay writes: the original record with the current time and two more headers.

    One header counts the replays. The other one keeps the original timestamp, because retention could delete a record
    that still had that timestamp before it is read. A frame without a capture time gets its capture time from there.
    A truncated record keeps the headers about its truncation, so it still counts as truncated if it fails again.
    """
    record = letter.dead.record
    headers = [header for header in record.headers if header[0] != REPLAYS]
    if letter.dead.truncated:
        headers += _truncation_headers(letter)
    if record.timestamp_ms is not None and record.timestamp_ms >= 0:
        headers.append((ORIGINAL_TIMESTAMP, b"%d" % record.timestamp_ms))
    headers.append((REPLAYS, b"%d" % (letter.replays + 1)))
    return Message(record.key, record.value, headers, None)


def _truncation_headers(letter: DeadLetterRecord) -> list[tuple[str, bytes | None]]:
    """The headers that describe the truncation: those of Sluice that the original record did not have."""
    original = list(letter.dead.record.headers)
    found = []
    for header in letter.raw.headers:
        if original and header == original[0]:
            original.pop(0)
        elif header[0].startswith("sluice-") and header[0] not in _NOT_TRUNCATION:
            found.append(header)
    return found


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects dead letters. An empty set is no condition."""

    reasons: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int | None = None  # rejected at that time or later

    def matches(self, letter: DeadLetterRecord) -> bool:
        """Whether a dead letter meets all conditions."""
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
        """Whether this filter matches every possible dead letter that `other` matches."""
        pairs = (
            (self.reasons, other.reasons),
            (self.stages, other.stages),
            (self.sources, other.sources),
            (self.topics, other.topics),
        )
        return all(not wide or (narrow and narrow <= wide) for wide, narrow in pairs) and (
            self.since_ms is None or (other.since_ms is not None and self.since_ms <= other.since_ms)
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters a replay sends, and to which topic."""

    filter: Filter = Filter()
    to: str | None = None  # None: the topic that each record came from
    truncated: bool = False  # also send truncated records
    max_replays: int = 3  # do not send records that were replayed so often

    def status_of(self, letter: DeadLetterRecord) -> ReplayStatus:
        """`replay`, or the reason why the dead letter is not replayed."""
        if not self.filter.matches(letter):
            return "no_match"
        if letter.dead.truncated and not self.truncated:
            return "truncated"
        return "too_often" if letter.replays >= self.max_replays else "replay"

    def destination(self, letter: DeadLetterRecord) -> str:
        """The topic to which the record is sent."""
        return self.to or letter.dead.topic

    def covers(self, other: Selection) -> bool:
        """Whether this selection sends every dead letter that `other` sends, to the same topic."""
        return (
            self.to == other.to
            and self.truncated >= other.truncated
            and self.max_replays >= other.max_replays
            and self.filter.covers(other.filter)
        )


def digest_of(selection: Selection) -> str:
    """A short hash that identifies a selection."""
    chosen = selection.filter
    sets = [sorted(values) for values in (chosen.reasons, chosen.stages, chosen.sources, chosen.topics)]
    parts = (sets, chosen.since_ms, selection.to, selection.truncated, selection.max_replays)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def parse_since(text: str | None, now_ms: int) -> int | None:
    """Parse `2h`, `30m`, `7d`, or a time such as `2026-01-31T22:00` (local unless it has a UTC offset).

    Returns:
        Unix milliseconds, or None if `text` is None.

    Raises:
        ConfigError: the text is neither a duration nor a time.
    """
    if text is None:
        return None
    if (match := _DURATION.fullmatch(text)) is not None:
        return max(0, now_ms - 1000 * int(match[1]) * _SECONDS[match[2]])
    try:
        moment = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"--since {printable(text)}: expected 90s, 30m, 2h, 7d or 2026-01-31T22:00") from None
    return max(0, (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1))


def parse_position(text: str) -> tuple[int, int] | None:
    """Parse `PARTITION@OFFSET`. None for any other text, such as the ID of an input record."""
    match = _POSITION.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None
