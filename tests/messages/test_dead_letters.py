"""Rejected frames to dead letters: the original byte for byte, and always small enough to be written."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer import messages as wire
from consumer.types import Frame, Receipt, Record, Rejected, TopicPartition
from wire_records import JPEG, RECEIPT, parse

DAMAGED = Rejected("decode", "damaged", "the JPEG ends too early")
HEADERS = st.lists(st.tuples(st.text(max_size=30), st.none() | st.binary(max_size=2000)), max_size=12)


def dead(frame: Frame, rejected: Rejected = DAMAGED, limit: int = 1_000_000) -> wire.Message:
    return wire.encode_dead_letter(frame, rejected, source="/sluice/g", max_bytes=limit, now_ms=99)


def replayed(message: wire.Message, offset: int = 7) -> Frame:
    """Return the frame that a dead letter becomes when it is copied, with its headers, back to the input."""
    record = Record(message.key, message.value, tuple(message.headers), message.timestamp_ms)
    return wire.parse_frame(record, Receipt(TopicPartition("frames", 0), offset, 1), 0.0)


def _record(message: wire.Message) -> Record:
    return Record(message.key, message.value, tuple(message.headers), message.timestamp_ms)


def wire_size(message: wire.Message) -> int:
    """Return the size that librdkafka and the broker count, with every varint at its maximum."""
    headers = chain.from_iterable((name.encode(), value or b"") for name, value in message.headers)
    parts = [message.key or b"", message.value or b"", *headers]
    return 61 + 30 + sum(5 + len(part) for part in parts)


class TestDeadLetters:
    @settings(max_examples=100, deadline=None)
    @given(key=st.none() | st.binary(), value=st.none() | st.binary(), headers=HEADERS, at=st.integers(0, 2**60))
    def test_key_value_headers_and_timestamp_of_the_record_are_kept(
        self, key: bytes | None, value: bytes | None, headers: Any, at: int
    ) -> None:
        """Catches a decoded, re-encoded or sorted copy, which a replay cannot trust."""
        message = dead(parse(value, key=key, headers=tuple(headers), at=at))
        assert (message.key, message.value) == (key, value)
        assert message.headers[: len(headers)] == headers
        assert dict(message.headers)["sluice-original-timestamp-ms"] == b"%d" % at
        letter = wire.read_dead_letter(_record(message))
        assert letter is not None
        assert letter.record == Record(key, value, tuple(headers), at)

    @pytest.mark.parametrize("at", [None, 5, 10**13])
    def test_the_timestamp_of_a_dead_letter_is_the_time_of_rejection(self, at: int | None) -> None:
        """Catches a dead letter that retention deletes at once, or that the broker refuses because it is in the
        future."""
        assert dead(parse(at=at)).timestamp_ms == 99

    def test_a_replayed_one_that_fails_again_keeps_its_first_timestamp(self) -> None:
        """Catches the time of the replay in place of the time of the frame."""
        first = dead(parse(at=5))
        again = replayed(first)
        assert again.captured_at_ms == 5
        second = wire.read_dead_letter(_record(dead(again._replace(record=again.record._replace(timestamp_ms=77)))))
        assert second is not None
        assert second.record.timestamp_ms == 5

    def test_a_dead_letter_of_an_earlier_version_keeps_its_timestamp(self) -> None:
        headers = tuple(header for header in dead(parse(at=5)).headers if header[0] != "sluice-original-timestamp-ms")
        letter = wire.read_dead_letter(Record(b"k", b"v", headers, 5))
        assert letter is not None
        assert letter.record.timestamp_ms == 5

    @settings(max_examples=100, deadline=None)
    @given(headers=HEADERS, limit=st.integers(0, 9000), value=st.none() | st.integers(0, 9000).map(bytes))
    def test_a_keyless_record_gets_a_key_in_a_compacted_topic_only(
        self, headers: Any, limit: int, value: bytes | None
    ) -> None:
        """Catches a frame without key that a compacted topic always refuses, and a replay with a key that nobody
        sent."""
        frame = parse(value, key=None, headers=tuple(headers))
        message = wire.encode_dead_letter(frame, DAMAGED, source="/sluice/g", max_bytes=limit, now_ms=99, keyed=True)
        assert message.key == b"frames/3/42"
        assert wire_size(message) <= max(limit, 4096)
        letter = wire.read_dead_letter(_record(message))
        assert letter is not None
        assert letter.record.key is None
        assert "sluice-original-key" not in dict(letter.record.headers)
        again = wire.encode_dead_letter(
            replayed(message), DAMAGED, source="/sluice/g", max_bytes=limit, now_ms=99, keyed=True
        )
        assert again.key == b"frames/0/7"

    def test_a_record_with_a_key_keeps_it_whatever_its_headers_claim(self) -> None:
        """Catches a header of the producer that makes a replay drop the key."""
        headers = (("sluice-original-key", b"none"),)
        letter = wire.read_dead_letter(_record(dead(parse(key=b"cam-1", headers=headers))))
        assert letter is not None
        assert (letter.record.key, letter.record.headers) == (b"cam-1", headers)

    def test_headers_name_the_record_the_stage_and_the_reason(self) -> None:
        message = dead(parse(headers=(("ce_id", b"theirs"),)))
        assert message.headers == [
            ("ce_id", b"theirs"),
            ("sluice-original-timestamp-ms", b"7"),
            ("__connect.errors.topic", b"frames"),
            ("__connect.errors.partition", b"3"),
            ("__connect.errors.offset", b"42"),
            ("__connect.errors.connector.name", b"/sluice/g"),
            ("__connect.errors.stage", b"decode"),
            ("__connect.errors.class.name", b"consumer.decoder"),
            ("__connect.errors.exception.class.name", b"damaged"),
            ("__connect.errors.exception.message", b"the JPEG ends too early"),
            ("sluice-rejected-at-ms", b"99"),
            ("ce_id", b"frames/3/42"),
        ]

    @pytest.mark.parametrize("at", [None, -1])
    def test_a_record_without_timestamp_gets_the_time_of_rejection(self, at: int | None) -> None:
        assert dead(parse(at=at)).timestamp_ms == 99

    @pytest.mark.parametrize("limit", [1_000_000, 4096])
    def test_a_dead_letter_that_is_replayed_and_fails_again_does_not_grow(self, limit: int) -> None:
        """Catches headers that add up with each replay until the dead letter itself is too large."""
        first = dead(parse(JPEG * 100, headers=(("ce_id", b"theirs"), ("a", b"b"))), limit=limit)
        again = dead(replayed(first), DAMAGED, limit)
        third = dead(replayed(again), DAMAGED, limit)
        assert third == again
        assert len(again.headers) == len(first.headers)
        headers = dict(again.headers)
        assert headers["ce_id"] == b"frames/0/7"  # the one of Sluice is new
        assert headers["__connect.errors.offset"] == b"7"
        assert again.headers[:2] == [("ce_id", b"theirs"), ("a", b"b")]

    def test_headers_of_kafka_connect_that_sluice_does_not_write_are_kept(self) -> None:
        connect = (("__connect.errors.topic", b"t"), ("__connect.errors.exception.stacktrace", b"at x"))
        headers = dead(parse(headers=connect)).headers
        assert headers[0] == connect[1]
        assert [value for name, value in headers if name == "__connect.errors.topic"] == [b"frames"]

    @settings(max_examples=300, deadline=None)
    @given(
        key=st.none() | st.binary(max_size=20) | st.integers(0, 9000).map(bytes),
        value=st.none() | st.integers(0, 20_000).map(bytes),
        headers=HEADERS,
        detail=st.text(max_size=2000),
        limit=st.integers(0, 15_000),
    )
    def test_a_dead_letter_can_always_be_written(
        self, key: bytes | None, value: bytes | None, headers: Any, detail: str, limit: int
    ) -> None:
        """Catches a truncation that forgets the headers, the key, or the headers that report it."""
        frame = parse(value, key=key, headers=tuple(headers))
        message = dead(frame, replace(DAMAGED, detail=detail), limit)
        assert wire_size(message) <= max(limit, 4096)
        told, record = dict(message.headers), frame.record
        kept = [header for header in headers if header in message.headers]
        if (message.key, message.value, len(kept)) != (record.key, record.value, len(headers)):
            assert told["sluice-truncated"] == b"true"
            assert told["sluice-original-bytes"] == b"%d" % len(value or b"")
            assert told["sluice-original-sha256"] == hashlib.sha256(value or b"").hexdigest().encode()
        if value is not None:
            assert message.value is not None
            assert value.startswith(message.value)
        if key is not None and len(key) <= 512:
            assert message.key == key

    def test_a_dead_letter_is_truncated_only_if_it_is_too_large(self) -> None:
        """Catches a generous margin: frames close to the limit would lose their end for nothing."""
        limit = 100_000
        fits = [
            size
            for size in range(98_000, limit)
            if len(dead(parse(bytes([1]) * size), limit=limit).value or b"") == size
        ]
        largest = fits[-1]
        assert fits == list(range(98_000, largest + 1))
        assert largest > limit - 1500
        cut = dead(parse(bytes([1]) * (largest + 1)), limit=limit)
        assert ("sluice-truncated", b"true") in cut.headers

    def test_the_value_is_cut_first_then_a_huge_key_then_large_headers(self) -> None:
        """Catches small headers, which identify the frame, that are lost because of a large one."""
        headers = (("small", b"s"), ("huge", bytes(50_000)), ("small-too", b"t"))
        message = dead(parse(JPEG, key=bytes(9000), headers=headers), limit=10_000)
        told = dict(message.headers)
        assert (told["small"], told["small-too"], "huge" in told) == (b"s", b"t", False)
        assert (told["sluice-dropped-headers"], told["sluice-original-key-bytes"]) == (b"1", b"9000")
        assert len(message.key or b"") == 512
        message = dead(parse(JPEG * 1000, headers=headers), limit=60_000)
        told = dict(message.headers)
        assert told["huge"] == headers[1][1]
        assert "sluice-dropped-headers" not in told

    def test_a_second_truncation_keeps_the_notes_of_the_first(self) -> None:
        """Catches size and digest of a fragment that are presented as those of the original."""
        value = JPEG * 1000
        first = dead(parse(value), limit=50_000)
        told = dict(dead(replayed(first), limit=5000).headers)
        assert told["sluice-original-bytes"] == b"%d" % len(value)
        assert told["sluice-original-sha256"] == hashlib.sha256(value).hexdigest().encode()

    def test_forged_notes_of_a_truncation_cannot_break_a_dead_letter(self) -> None:
        """Catches `int(header)` on text that everyone can write into a header."""
        forged = (
            ("sluice-rejected-at-ms", b"x"),
            ("sluice-truncated", bytes(9000)),
            ("sluice-dropped-headers", b"not a number"),
            ("sluice-original-sha256", b"\xff" * 64),
            *[("sluice-dropped-headers", b"9" * 20)] * 300,
        )
        message = dead(parse(JPEG * 100, headers=forged), limit=4096)
        assert wire_size(message) <= 4096

    def test_a_hundred_thousand_headers_cost_seconds_at_most(self) -> None:
        """Catches a quadratic search for the largest header: a legal record of 1 MB would block the loop for
        minutes."""
        frame = parse(headers=tuple((f"h{n % 7}", bytes(n % 5)) for n in range(100_000)))
        started = time.perf_counter()
        message = dead(frame, limit=50_000)
        assert time.perf_counter() - started < 2
        assert wire_size(message) <= 50_000

    def test_a_record_with_lost_headers_is_marked_as_truncated(self) -> None:
        """Catches a replay of it that is taken for a repair."""
        frame = wire.parse_frame(Record(b"cam-1", JPEG, (), 5, headers_lost=True), RECEIPT, 0.0)
        assert isinstance(frame.verdict, Rejected)
        assert (frame.verdict.reason, frame.source_id, frame.payload) == ("unreadable_headers", "cam-1", b"")
        letter = wire.read_dead_letter(_record(dead(frame, frame.verdict)))
        assert letter is not None
        assert (letter.reason, letter.truncated, letter.record.value) == ("unreadable_headers", True, JPEG)

    def test_read_dead_letter_gives_back_the_original_record(self) -> None:
        record = parse(headers=(("ce_id", b"theirs"), ("frame-id", b"5"))).record
        message = dead(wire.parse_frame(record, RECEIPT, 0.0))
        letter = wire.read_dead_letter(Record(message.key, message.value, tuple(message.headers), message.timestamp_ms))
        assert letter == wire.DeadLetter(
            id="frames/3/42",
            topic="frames",
            partition=3,
            offset=42,
            stage="decode",
            reason="damaged",
            detail="the JPEG ends too early",
            truncated=False,
            record=record,
        )

    def test_read_dead_letter_detects_other_records_and_truncation(self) -> None:
        assert wire.read_dead_letter(parse().record) is None
        assert wire.read_dead_letter(parse(headers=(("__connect.errors.offset", b"5"),)).record) is None
        cut = dead(parse(JPEG * 1000), limit=5000)
        letter = wire.read_dead_letter(Record(cut.key, cut.value, tuple(cut.headers), cut.timestamp_ms))
        assert letter is not None
        assert letter.truncated
