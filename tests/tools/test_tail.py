"""What tail prints can be read, can be trusted, and cannot steer a terminal."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.messages import ResultEncoder, encode_dead_letter
from consumer.observability.logging import printable
from consumer.tools.kafka.reader import TopicRecord
from consumer.tools.tail import Printer, json_line, result_line
from consumer.types import Detected, Detections, Frame, ModelInfo, Receipt, Record, Rejected, Skipped, TopicPartition

INPUT = Record(b"cam-1", b"image", (), 1_700_000_000_000)
FRAME = Frame("cam-1", "17", 1_700_000_000_000, b"image", 0.0, Receipt(TopicPartition("frames", 3), 42, 1), INPUT)
MODEL = ModelInfo("m", "sha256:0", {0: "person", 2: "car", 3: "\x1b]0;owned\x07"})
SEEN = ((2, 0.91), (2, 0.88), (0, 0.77))


def written(*seen: tuple[int, float], outcome: Skipped | None = None, format_: Any = "msgpack") -> Record:
    boxes = np.tile(np.array([1.1, 2, 3, 4], np.float32), (len(seen), 1))
    found = Detections(boxes, np.array([s for _, s in seen], np.float32), np.array([c for c, _ in seen], np.int32))
    message = ResultEncoder(format=format_, model=MODEL, source="/s").encode(
        FRAME,
        outcome or Detected(found, 640, 480),
        batch_size=8,
        timings_ms={"queue": 1.5, "decode_wait": 0.1, "infer": 6.5},
        published_at_ms=1_700_000_000_023,
    )
    return Record(message.key, message.value, tuple(message.headers), message.timestamp_ms)


class Shown:
    """A printer whose output is kept."""

    def __init__(self, *sources: str, as_json: bool = False) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.printer = Printer(
            "detections", frozenset(sources), as_json=as_json, zone=UTC, out=self.out.append, complain=self.err.append
        )

    def __call__(self, *records: Record) -> Shown:
        for record in records:
            self.printer(TopicRecord(1, 7, record))
        return self


@pytest.mark.parametrize("format_", ["msgpack", "json"])
def test_a_line_has_time_source_frame_latency_and_detections(format_: str) -> None:
    (line,) = Shown()(written(*SEEN, format_=format_)).out
    assert line == "22:13:20.023  cam-1         17          batch   8     23 ms  2 car 0.91 0.88, 1 person 0.77"


def test_no_detections_and_a_skipped_frame_differ() -> None:
    nothing, skipped = Shown()(written(), written(outcome=Skipped("stale", 2500.4))).out
    assert nothing.endswith("  nothing")
    assert skipped.endswith("  skipped: stale, 2500 ms old")


def test_a_crowd_stays_on_one_line() -> None:
    (line,) = Shown()(written(*[(0, 0.5)] * 300)).out
    assert line.endswith("300 person 0.50 0.50 0.50 0.50 0.50 ...")


def test_a_frame_without_capture_time_has_no_latency() -> None:
    """Catches an invented number where the producer gave none."""
    body = json.loads(json_line(msgpack.unpackb(written().value or b""))) | {"captured_at_ms": None}
    assert "         -  nothing" in result_line(body, UTC)


def test_json_is_the_message_as_it_is_on_one_line() -> None:
    """Catches derived fields creeping in, and 0.91 printed as 0.9100000262260437."""
    (line,) = Shown(as_json=True)(written(*SEEN)).out
    body = json.loads(line)
    assert list(body) == list(msgpack.unpackb(written().value or b""))
    assert body["detections"][0] == {"class_id": 2, "label": "car", "score": 0.91, "box": [1.1, 2.0, 3.0, 4.0]}
    assert (body["id"], body["timings_ms"]["queue"]) == ("frames/3/42", 1.5)
    assert np.float32(body["detections"][0]["box"][0]) == np.float32(1.1)


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_json_keeps_every_double_and_every_float32_exactly(number: float) -> None:
    shown = json.loads(json_line({"x": number}))["x"]
    with np.errstate(over="ignore"):
        is_float32 = float(np.float32(number)) == number
    assert np.float32(shown) == np.float32(number) if is_float32 else shown == number


def test_json_shows_binary_and_extensions_of_later_versions_as_text() -> None:
    """Catches a reader that fails at a field that a later minor version added."""
    body = json.loads(json_line({"mask": b"\x00\xff", "at": msgpack.Timestamp(1), "n": [None, True]}))
    assert (body["mask"], body["n"]) == ("AP8=", [None, True])
    assert isinstance(body["at"], str)


def test_only_the_asked_for_sources_are_shown_and_counted() -> None:
    shown = Shown("cam-2")(written())
    assert (shown.out, shown.err, shown.printer.printed) == ([], [], 0)
    assert Shown("cam-2", "cam-1")(written()).printer.printed == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_no_result_is_reported_with_its_place_and_does_not_count(as_json: bool) -> None:
    """Catches junk on stdout, which a JSON reader behind a pipe cannot parse."""
    shown = Shown(as_json=as_json)(Record(None, b"junk", (), None), Record(None, None, (), None))
    assert (shown.out, shown.printer.printed, len(shown.err)) == ([], 0, 2)
    assert all(line.startswith("detections[1]@7: ") for line in shown.err)


def test_a_dead_letter_is_recognised() -> None:
    rejected = Rejected("decode", "damaged", "ends too early\x1b[2J")
    message = encode_dead_letter(FRAME, rejected, source="/s", max_bytes=10**6, now_ms=1)
    shown = Shown()(Record(message.key, message.value, tuple(message.headers), message.timestamp_ms))
    assert shown.err == ["detections[1]@7: dead letter of frames/3/42: decode, damaged: ends too early\\x1b[2J"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_label_cannot_steer_the_terminal(as_json: bool) -> None:
    """Catches a class called ESC ]0;... that retitles the window, or one that writes lines of its own."""
    (line,) = Shown(as_json=as_json)(written((3, 0.5))).out
    assert line.isprintable()
    assert line.isascii()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["source_id", "frame_id", "captured_at_ms", "published_at_ms", "batch_size", "detections", "skipped"]
)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(FIELDS, JUNK, max_size=3), as_json=st.booleans())
def test_no_message_whatever_is_in_it_ends_the_reading_or_prints_control_characters(
    changes: dict[str, Any], as_json: bool
) -> None:
    """Catches a viewer that one malformed message, written by anyone with access, takes down for all."""
    body = msgpack.unpackb(written(*SEEN).value or b"") | changes
    shown = Shown(as_json=as_json)(Record(None, msgpack.packb(body), (), None))
    assert len(shown.out) + len(shown.err) == 1
    assert all(line.isprintable() for line in (*shown.out, *shown.err))


@settings(max_examples=200, deadline=None)
@given(value=st.binary(max_size=60))
def test_arbitrary_bytes_are_reported_and_nothing_else(value: bytes) -> None:
    shown = Shown()(Record(None, value, (), None))
    assert (len(shown.out), len(shown.err)) == (0, 1)
    assert shown.err[0].isprintable()


@given(text=st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Co"])))
def test_printable_text_stays_and_the_rest_is_escaped(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text
