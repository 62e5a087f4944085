"""Says of which input record a record of an output topic is the outcome. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from consumer.messages import parse_frame, read_dead_letter
from consumer.tools.verify.types import Outcome, Position, Role
from consumer.types import Receipt, Record, TopicPartition

_ID: Final = re.compile(rb"([A-Za-z0-9._-]{1,249})/(0|[1-9][0-9]{0,9})/(0|[1-9][0-9]{0,18})")
_TYPE: Final = b"io.sluice."  # how the `ce_type` of every result begins
_REJECTED_AT: Final = "sluice-rejected-at-ms"  # every dead letter has it
_CONSUMER: Final = "__connect.errors.connector.name"
_NAME_BYTES: Final = 253  # a dead letter cuts a longer name of its consumer, at a character


class OutcomeParser:
    """Reads the outcomes that one group wrote."""

    def __init__(self, group: str) -> None:
        self._source = f"/sluice/{group}"
        self._known: dict[bytes, bool] = {}  # names of consumers that were seen: whether each is this group's

    def read(self, role: Role, place: Position, record: Record) -> Outcome | str:
        """The outcome; or why the record is none of the group: "foreign" or "other_group"."""
        headers = dict(record.headers)  # of several with one name the last is ours; earlier ones are the producer's
        found = _ID.fullmatch(headers.get("ce_id") or b"")
        is_letter = _REJECTED_AT in headers
        if found is None or not (is_letter or (headers.get("ce_type") or b"").startswith(_TYPE)):
            return "foreign"
        if not self._is_ours(headers.get(_CONSUMER if is_letter else "ce_source") or b""):
            return "other_group"
        topic, partition, offset = found.groups()
        of = TopicPartition(topic.decode(), int(partition))
        source = _source_of_letter(record) if is_letter else _text(headers.get("ce_subject") or record.key)
        return Outcome(role, place, of, int(offset), source)

    def _is_ours(self, name: bytes) -> bool:
        known = self._known.get(name)
        if known is None:
            if len(self._known) > 1000:  # somebody else's topic
                self._known.clear()
            text = name.decode("utf-8", "replace")
            known = text == self._source or unquote(text) == self._source
            known = known or (len(name) >= _NAME_BYTES and self._source.startswith(text))
            self._known[name] = known
        return known


def source_of(record: Record, partition: TopicPartition, offset: int) -> str | None:
    """The source of an input record, as Sluice reads it; None where it has none that can be read."""
    return parse_frame(record, Receipt(partition, offset, 0), 0.0).source_id or None


def _source_of_letter(record: Record) -> str:
    letter = read_dead_letter(record)
    if letter is None:
        return ""
    return source_of(letter.record, TopicPartition(letter.topic, letter.partition), letter.offset) or ""


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def written_ms(record: Record) -> int | None:
    """When an outcome was written, in Unix milliseconds. The timestamp of a dead letter may be the frame's."""
    rejected_at = dict(record.headers).get(_REJECTED_AT) or b""
    if rejected_at.isdigit() and len(rejected_at) <= 15:
        return int(rejected_at)
    return record.timestamp_ms
