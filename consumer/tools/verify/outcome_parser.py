"""Finds the input record of an outcome. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from consumer.messages import parse_frame, read_dead_letter
from consumer.tools.verify.types import Outcome, Position, Role
from consumer.types import Receipt, Record, TopicPartition

_ID: Final = re.compile(rb"([A-Za-z0-9._-]{1,249})/(0|[1-9][0-9]{0,9})/(0|[1-9][0-9]{0,18})")
_TYPE: Final = b"io.sluice."  # prefix of the `ce_type` of every result
_REJECTED_AT: Final = "sluice-rejected-at-ms"  # a header of every dead letter
_CONSUMER: Final = "__connect.errors.connector.name"
_NAME_BYTES: Final = 253  # a dead letter cuts a longer consumer name after a whole character


class OutcomeParser:
    """Parses the outcomes that one group wrote."""

    def __init__(self, group: str) -> None:
        self._source = f"/sluice/{group}"
        self._known: dict[bytes, bool] = {}  # consumer name -> whether it is this group's

    def parse(self, role: Role, position: Position, record: Record) -> Outcome | str:
        """Parse a record of an output topic.

        Returns:
            The outcome, or the reason why the record is not an outcome of the group: "foreign" or "other_group".
        """
        headers = dict(record.headers)  # the last header with a name is from Sluice, earlier ones are the producer's
        found = _ID.fullmatch(headers.get("ce_id") or b"")
        is_letter = _REJECTED_AT in headers
        if found is None or not (is_letter or (headers.get("ce_type") or b"").startswith(_TYPE)):
            return "foreign"
        if not self._is_this_group(headers.get(_CONSUMER if is_letter else "ce_source") or b""):
            return "other_group"
        topic, partition, offset = found.groups()
        of = TopicPartition(topic.decode(), int(partition))
        source = _source_of_letter(record) if is_letter else _text(headers.get("ce_subject") or record.key)
        return Outcome(role, position, of, int(offset), source)

    def _is_this_group(self, name: bytes) -> bool:
        known = self._known.get(name)
        if known is None:
            if len(self._known) > 1000:  # another program writes to the topic
                self._known.clear()
            text = name.decode("utf-8", "replace")
            known = text == self._source or unquote(text) == self._source
            known = known or (len(name) >= _NAME_BYTES and self._source.startswith(text))
            self._known[name] = known
        return known


def source_of(record: Record, partition: TopicPartition, offset: int) -> str | None:
    """The source of an input record, as Sluice parses it; None if it has no valid source."""
    return parse_frame(record, Receipt(partition, offset, 0), 0.0).source_id or None


def _source_of_letter(record: Record) -> str:
    letter = read_dead_letter(record)
    if letter is None:
        return ""
    return source_of(letter.record, TopicPartition(letter.topic, letter.partition), letter.offset) or ""


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def written_ms(record: Record) -> int | None:
    """When an outcome was written, in Unix milliseconds.

    A dead letter has its own header, because its timestamp may be that of the frame.
    """
    rejected_at = dict(record.headers).get(_REJECTED_AT) or b""
    if rejected_at.isdigit() and len(rejected_at) <= 15:
        return int(rejected_at)
    return record.timestamp_ms
