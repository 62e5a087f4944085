"""What `sluice verify` takes for an outcome of its group, and what its options mean."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.errors import ConfigError
from consumer.messages import ResultEncoder, encode_dead_letter
from consumer.tools.verify.outcome_parser import OutcomeParser, source_of, written_ms
from consumer.tools.verify.request import Bound, check_order, parse_bound
from consumer.tools.verify.types import Outcome, Position
from consumer.types import Detected, Detections, Frame, ModelInfo, Receipt, Record, Rejected, TopicPartition

FRAMES = TopicPartition("frames", 0)
NOW_MS = 1_700_000_000_000
MODEL = ModelInfo("m", "sha256:0")


def frame(source: str = "cam-ü", offset: int = 42, headers: Any = ()) -> Frame:
    record = Record(source.encode(), b"image", headers, NOW_MS)
    return Frame(source, "f", NOW_MS, b"image", 0.0, Receipt(TopicPartition("frames", 3), offset, 1), record)


def result(group: str) -> Record:
    message = ResultEncoder(format="msgpack", model=MODEL, source=f"/sluice/{group}").encode(
        frame(),
        Detected(Detections.none(), 640, 480),
        batch_size=1,
        timings_ms={"queue": 1.0, "decode_wait": 0.1, "infer": 6.5},
        published_at_ms=NOW_MS,
    )
    return Record(message.key, message.value, tuple(message.headers), message.timestamp_ms)


def letter(group: str, headers: Any = (), source: str = "cam-ü") -> Record:
    message = encode_dead_letter(
        frame(source, headers=headers),
        Rejected("decode", "damaged", "why"),
        source=f"/sluice/{group}",
        max_bytes=10**6,
        now_ms=NOW_MS + 5,
    )
    return Record(message.key, message.value, tuple(message.headers), message.timestamp_ms)


POSITION = Position("out", 0, 7)


@pytest.mark.parametrize("group", ["g", "a group / ü", "x" * 249, "ü" * 249])
def test_results_and_dead_letters_of_the_group_are_recognised(group: str) -> None:
    """Catches: a group whose name is quoted in one header and cut in the other."""
    parser = OutcomeParser(group)
    expected = Outcome("result", POSITION, TopicPartition("frames", 3), 42, "cam-ü")
    assert parser.parse("result", POSITION, result(group)) == expected
    assert parser.parse("dead_letter", POSITION, letter(group)) == expected._replace(role="dead_letter")
    assert parser.parse("result", POSITION, result("another")) == "other_group"
    assert parser.parse("dead_letter", POSITION, letter("another")) == "other_group"
    assert expected.id == "frames/3/42"


def test_headers_of_the_producer_do_not_hide_those_of_a_dead_letter() -> None:
    """Catches: the first ce_id, and a ce_source of the camera."""
    theirs = (("ce_id", b"theirs"), ("ce_source", b"/camera"), ("source-id", b"cam-header"))
    found = OutcomeParser("g").parse("dead_letter", POSITION, letter("g", theirs))
    assert isinstance(found, Outcome)
    assert (found.id, found.source) == ("frames/3/42", "cam-header")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("ce_id", b"frames/3/42"),),  # of no type of ours
        (("ce_id", b"1234"), ("ce_type", b"io.sluice.detections.v1")),
        (("ce_id", b"frames/3/042"), ("ce_type", b"io.sluice.detections.v1")),
        (("ce_id", b"frames/3/-1"), ("ce_type", b"io.sluice.detections.v1")),
        (("ce_id", "frames/3/٤".encode()), ("ce_type", b"io.sluice.detections.v1")),
        (("ce_id", None), ("ce_type", None)),
    ],
)
def test_what_another_program_wrote_is_foreign(headers: Any) -> None:
    """Catches: a verdict, or a crash, that anyone can cause who may write to the topic."""
    assert OutcomeParser("g").parse("result", POSITION, Record(b"k", b"v", headers, NOW_MS)) == "foreign"


def test_a_dead_letter_was_written_when_it_was_rejected() -> None:
    """Catches: the age of a dead letter taken from its timestamp, which can be the frame's."""
    assert written_ms(letter("g")) == NOW_MS + 5
    assert written_ms(result("g")) == NOW_MS
    assert source_of(Record(b"\xff", b"image", (), None), FRAMES, 0) is None


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("0", Bound(0, is_time=False)),
        ("99999999999", Bound(99_999_999_999, is_time=False)),
        ("1700000000000", Bound(1_700_000_000_000, is_time=True)),
        ("2h", Bound(NOW_MS - 7_200_000, is_time=True)),
        ("2023-11-14T22:13:20+00:00", Bound(NOW_MS, is_time=True)),
        (None, None),
    ],
)
def test_a_bound_is_an_offset_or_a_time(text: str | None, bound: Bound | None) -> None:
    assert parse_bound("--from", text, NOW_MS) == bound


@pytest.mark.parametrize("text", ["", "-1", "yesterday", "2 hours", "1e3", "9" * 16])
def test_a_bound_that_is_neither_is_a_wrong_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--to .*: expected an offset"):
        parse_bound("--to", text, NOW_MS)


def test_a_range_that_ends_before_it_begins_is_a_wrong_option() -> None:
    """Catches: a check of nothing that is reported as clean."""
    for start, end in (
        (Bound(5, is_time=False), Bound(5, is_time=False)),
        (Bound(9, is_time=True), Bound(8, is_time=True)),
    ):
        with pytest.raises(ConfigError, match="the range is empty"):
            check_order(start, end)
    check_order(Bound(5, is_time=False), Bound(1, is_time=True))
