"""Outcomes to messages: exact, finite, and readable in both formats."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer import messages as wire
from consumer.types import Detected, Detections, Frame, ModelInfo, Skipped
from wire_records import JPEG, RECEIPT, TRACE, parse

MODEL = ModelInfo("yolo26n.pt", "sha256:" + "ab" * 32, {0: "person", 2: "car"})
TIMINGS = {"queue": 1.5, "decode_wait": 0.25, "infer": 6.0}
FIELDS = [
    "schema_version",
    "id",
    "source_id",
    "frame_id",
    "input",
    "captured_at_ms",
    "published_at_ms",
    "width",
    "height",
    "model",
    "batch_size",
    "timings_ms",
    "detections",
]


def encoder(format_: Any = "msgpack", model: ModelInfo = MODEL, source: str = "/sluice/g") -> wire.ResultEncoder:
    return wire.ResultEncoder(format=format_, model=model, source=source)


def detected(boxes: Any, scores: Any, classes: Any) -> Detected:
    return Detected(
        Detections(np.array(boxes, np.float32).reshape(-1, 4), np.float32(scores), np.array(classes, np.int32)),
        640,
        480,
    )


def result(outcome: Detected | Skipped, *, using: wire.ResultEncoder, frame: Frame | None = None) -> wire.Message:
    return using.encode(frame or parse(), outcome, batch_size=8, timings_ms=TIMINGS, published_at_ms=1_700_000_000_123)


ONE = detected([[1, 2, 3, 4]], [0.5], [2])


class TestResults:
    def test_the_fields_come_in_the_order_of_the_contract(self) -> None:
        body = wire.decode_result(result(ONE, using=encoder()).value or b"")
        assert list(body) == FIELDS
        assert body["timings_ms"] == TIMINGS
        assert body["detections"] == [{"class_id": 2, "label": "car", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.0]}]

    def test_headers_follow_the_cloudevents_kafka_binding(self) -> None:
        """Catches percent-encoding, which the HTTP binding requires and this one does not."""
        frame = parse(key="Küche 2".encode(), headers=(("traceparent", TRACE.encode()),))
        message = result(ONE, using=encoder(source="/sluice/my group"), frame=frame)
        assert dict(message.headers) == {
            "ce_specversion": b"1.0",
            "ce_id": b"frames/3/42",
            "ce_source": b"/sluice/my%20group",
            "ce_type": b"io.sluice.detections.v1",
            "ce_time": b"2023-11-14T22:13:20.123Z",
            "ce_subject": "Küche 2".encode(),
            "content-type": b"application/msgpack",
            "traceparent": TRACE.encode(),
        }
        assert len(message.headers) == 8
        assert (message.key, message.timestamp_ms) == ("Küche 2".encode(), 1_700_000_000_123)

    def test_a_skipped_frame_is_a_message_of_its_own_kind(self) -> None:
        """Catches an empty detections list for a frame that was not processed."""
        message = result(Skipped("stale", 2500.5), using=encoder("json"))
        headers, body = dict(message.headers), wire.decode_result(message.value or b"")
        assert (headers["ce_type"], headers["content-type"]) == (b"io.sluice.skipped.v1", b"application/json")
        assert body["skipped"] == {"reason": "stale", "age_ms": 2500.5}
        assert not {"detections", "width", "height", "batch_size"} & body.keys()

    def test_headers_of_one_message_do_not_leak_into_the_next(self) -> None:
        """Catches an append to the shared list of constant headers: it would grow until the broker refuses messages."""
        using = encoder()
        traced = result(ONE, using=using, frame=parse(headers=(("traceparent", TRACE.encode()),)))
        assert len(traced.headers) == 8
        assert len(result(ONE, using=using).headers) == 7

    @settings(max_examples=100, deadline=None)
    @given(
        corner=st.tuples(st.floats(0, 7680, width=32), st.floats(0, 4320, width=32)),
        size=st.tuples(st.floats(0.25, 50, width=32), st.floats(0.25, 50, width=32)),
        score=st.floats(0, 1, width=32),
        format_=st.sampled_from(["msgpack", "json"]),
    )
    def test_rounding_keeps_even_tiny_boxes_within_the_tolerance(
        self, corner: tuple[float, float], size: tuple[float, float], score: float, format_: str
    ) -> None:
        """Catches boxes with two decimals: a box of half a pixel would be below IoU 0.99."""
        (x, y), (w, h) = corner, size
        outcome = detected([[x, y, x + w, y + h]], [score], [0])
        (found,) = wire.decode_result(result(outcome, using=encoder(format_)).value or b"")["detections"]
        want = [float(edge) for edge in outcome.detections.boxes[0]]
        assert abs(found["score"] - score) < 1e-6
        assert iou(found["box"], want) > 0.995
        if format_ == "msgpack":
            assert (found["box"], found["score"]) == (want, score)

    @pytest.mark.parametrize("format_", ["msgpack", "json"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("where", ["box", "score", "two boxes", "timing", "age"])
    def test_a_result_that_is_not_finite_is_refused(self, where: str, bad: float, format_: str) -> None:
        """Catches NaN in JSON, which no other parser reads, and an infinity that another one cancels."""
        outcome: Detected | Skipped = {
            "box": detected([[0, 0, bad, 1], [0, 0, 1, 1]], [0.5, 0.5], [0, 0]),
            "two boxes": detected([[0, 0, bad, -bad]], [0.5], [0]),
            "score": detected([[0, 0, 1, 1]], [bad], [0]),
            "timing": ONE,
            "age": Skipped("stale", bad),
        }[where]
        timings = TIMINGS | ({"infer": bad} if where == "timing" else {})
        with pytest.raises(ValueError, match="not finite"):
            encoder(format_).encode(parse(), outcome, batch_size=1, timings_ms=timings, published_at_ms=0)

    @pytest.mark.parametrize("format_", ["msgpack", "json"])
    def test_a_model_with_names_that_have_no_encoding_can_still_publish(self, format_: str) -> None:
        """Catches a file name in Latin-1 (a lone surrogate in Python) with which every result fails."""
        model = ModelInfo("mod\udce8le.pt", "sha256:0", {0: "b\udcffd"})
        body = wire.decode_result(
            result(detected([[0, 0, 1, 1]], [1], [0]), using=encoder(format_, model)).value or b""
        )
        assert (body["model"]["name"], body["detections"][0]["label"]) == ("mod?le.pt", "b?d")

    def test_a_class_without_a_name_gets_its_number_as_label(self) -> None:
        body = wire.decode_result(result(detected([[0, 0, 1, 1]], [1], [9]), using=encoder()).value or b"")
        assert body["detections"][0]["label"] == "9"

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"{",
            b"[]",
            b"{}",
            b"\x80",
            b"\xc1",
            b"\x81\xa1x",
            JPEG,
            b'{"schema_version": true}',
            b'{"schema_version": 1, "x": NaN}',
            b'{"a":' * 100_000,
            b"\x91" * 100_000,
            msgpack.packb({"schema_version": "1"}),
            msgpack.packb({"schema_version": 1}) + b"\x00",
        ],
    )
    def test_decode_result_raises_value_error_for_anything_else(self, value: bytes) -> None:
        with pytest.raises(ValueError, match=r"JSON|Sluice message"):
            wire.decode_result(value)

    def test_decode_result_refuses_a_later_major_version(self) -> None:
        """Catches a reader that reads fields whose meaning has changed."""
        with pytest.raises(ValueError, match="schema_version 2"):
            wire.decode_result(json.dumps({"schema_version": 2}).encode())

    def test_decode_result_ignores_unknown_fields(self) -> None:
        body = wire.decode_result(result(ONE, using=encoder()).value or b"") | {"track_id": 5}
        assert wire.decode_result(msgpack.packb(body)) == wire.decode_result(json.dumps(body).encode()) == body


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both)


def test_record_id_is_the_same_under_every_assignment() -> None:
    """Catches an ID with the epoch in it: after a rebalance a repeat would appear as another result."""
    assert wire.record_id(RECEIPT) == wire.record_id(RECEIPT._replace(epoch=9)) == "frames/3/42"
