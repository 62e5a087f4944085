"""Writes the golden vectors: `python schemas/make_vectors.py`. What stands in `vectors/` is never changed, see README.

A file that exists with other bytes stops it: a released vector is a promise to readers and producers elsewhere.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np

from consumer import messages as wire
from consumer.types import (
    Detected,
    Detections,
    Frame,
    ModelInfo,
    Receipt,
    Record,
    Rejected,
    Skipped,
    TopicPartition,
)

HERE = Path(__file__).parent
VECTORS = HERE / "vectors"

IMAGE = b"\xff\xd8\xff\xe0 not a whole JPEG; the wire does not look inside \xff\xd9"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RECEIPT = Receipt(TopicPartition("frames", 3), 42, 1)
TIMESTAMP_MS = 1_700_000_000_000
MODEL = ModelInfo("yolo26n.pt", "sha256:" + "ab" * 32, {0: "person", 2: "car", 7: "Lkw/Laster \U0001f69a"})
SOURCE = "/sluice/sluice"

# name: the fields of a valid envelope, in the order in which they are packed.
ENVELOPES: dict[str, dict[str, Any]] = {
    "full": {
        "source_id": "cam-1",
        "frame_id": "17",
        "captured_at_ms": 1_699_999_999_999,
        "content_type": "image/jpeg",
        "traceparent": TRACE,
        "data": IMAGE,
    },
    "minimal": {"source_id": "cam-1", "data": IMAGE},
    "unicode": {"source_id": "Küche 2 · 東", "frame_id": "größer", "data": IMAGE},
    "hyphenated": {
        "source-id": "cam-1",
        "frame-id": 17,
        "captured-at-ms": 0,
        "content-type": "image/jpeg",
        "data": IMAGE,
    },
    "unknown-fields": {
        "exif": {"iso": [100, 200.5, None, {"a": b"b"}]},
        "source_id": "cam-1",
        "data": IMAGE,
        "zoom": 2.5,
    },
    "nil-fields": {"source_id": "cam-1", "frame_id": None, "captured_at_ms": None, "traceparent": None, "data": IMAGE},
    "bad-trace": {"source_id": "cam-1", "traceparent": ["not", "text"], "data": IMAGE},
}
CANONICAL = ("full", "minimal", "unicode")  # `encode_envelope` writes these byte for byte


def _packed(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


# name: (value, reason). Each is a map, so none can be taken for an image.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty-map": (b"\x80", "bad_envelope"),
    "cut-off": (_packed(source_id="cam-1", data=IMAGE)[:-1], "bad_envelope"),
    "trailing-byte": (_packed(source_id="cam-1", data=IMAGE) + b"\x00", "bad_envelope"),
    "two-maps": (_packed(source_id="cam-1", data=IMAGE) * 2, "bad_envelope"),
    "four-billion-fields": (b"\xdf\xff\xff\xff\xff\xa4data", "bad_envelope"),
    "array-of-four-billion": (b"\x82\xa1x\xdd\xff\xff\xff\xff\xa4data\xc4\x01x", "bad_envelope"),
    "nested-arrays": (b"\x81\xa1x" + b"\x91" * 5000 + b"\xc0", "bad_envelope"),
    "nested-maps": (b"\x81" * 5000, "bad_envelope"),
    "field-twice": (b"\x83" + b"\xa9source_id\xa1a" * 2 + b"\xa4data\xc4\x01x", "bad_envelope"),
    "field-in-both-spellings": (_packed(**{"source_id": "a", "source-id": "b", "data": IMAGE}), "bad_envelope"),
    "name-is-binary": (b"\x81\xc4\x04data\xc4\x01x", "bad_envelope"),
    "name-is-a-number": (b"\x82\x01\x02\xa4data\xc4\x01x", "bad_envelope"),
    "data-is-text": (_packed(source_id="cam-1", data="text"), "bad_envelope"),
    "data-is-nil": (_packed(source_id="cam-1", data=None), "bad_envelope"),
    "data-is-empty": (_packed(source_id="cam-1", data=b""), "empty"),
    "data-is-an-extension": (_packed(source_id="cam-1", data=msgpack.ExtType(1, IMAGE)), "bad_envelope"),
    "time-is-true": (_packed(source_id="cam-1", captured_at_ms=True, data=IMAGE), "bad_envelope"),
    "time-is-a-float": (_packed(source_id="cam-1", captured_at_ms=1.0, data=IMAGE), "bad_envelope"),
    "time-is-negative": (_packed(source_id="cam-1", captured_at_ms=-1, data=IMAGE), "bad_envelope"),
    "time-is-too-late": (_packed(source_id="cam-1", captured_at_ms=2**53 + 1, data=IMAGE), "bad_envelope"),
    "time-is-an-extension": (
        _packed(source_id="cam-1", captured_at_ms=msgpack.Timestamp(1), data=IMAGE),
        "bad_envelope",
    ),
    "frame-id-is-a-map": (_packed(source_id="cam-1", frame_id={"a": 1}, data=IMAGE), "bad_envelope"),
    "frame-id-has-a-newline": (_packed(source_id="cam-1", frame_id="1\n2", data=IMAGE), "bad_envelope"),
    "source-id-missing": (_packed(data=IMAGE), "bad_source_id"),
    "source-id-is-empty": (_packed(source_id="", data=IMAGE), "bad_source_id"),
    "source-id-is-binary": (_packed(source_id=b"cam-1", data=IMAGE), "bad_envelope"),
    "source-id-is-not-utf8": (b"\x82\xa9source_id\xa2\xff\xfe\xa4data\xc4\x01x", "bad_source_id"),
    "source-id-has-an-escape": (_packed(source_id="cam\x1b[2J", data=IMAGE), "bad_source_id"),
    "source-id-turns-the-text": (_packed(source_id="cam\u202e1", data=IMAGE), "bad_source_id"),
    "source-id-too-long": (_packed(source_id="x" * 129, data=IMAGE), "bad_source_id"),
}


def frame(**changes: Any) -> Frame:
    """The frame that the result vectors are about."""
    record = Record(b"cam-1", IMAGE, (("captured-at-ms", b"1699999999999"),), TIMESTAMP_MS)
    fields: dict[str, Any] = {
        "source_id": "cam-1",
        "frame_id": "3-42",
        "captured_at_ms": 1_699_999_999_999,
        "payload": IMAGE,
        "received_at": 0.0,
        "receipt": RECEIPT,
        "record": record,
    }
    return Frame(**(fields | changes))


def _seen(*objects: tuple[int, float, tuple[float, float, float, float]]) -> Detected:
    boxes = np.array([box for _, _, box in objects], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in objects], np.float32)
    return Detected(Detections(boxes, scores, np.array([c for c, _, _ in objects], np.int32)), 1280, 720)


# Fractions that float32 and 4 decimals both hold exactly, so that one .json tells both formats.
RESULTS: dict[str, tuple[Frame, Detected | Skipped]] = {
    "detections-two-cars": (
        frame(traceparent=TRACE),
        _seen((2, 0.9375, (10.5, 20.25, 110.0, 80.125)), (2, 0.5, (0.0, 0.0, 1.0, 1.0))),
    ),
    "detections-unicode": (frame(source_id="Küche 2 · 東", frame_id="größer"), _seen((7, 1.0, (0, 0, 1280, 720)))),
    "detections-unnamed-class": (frame(), _seen((80, 0.25, (1, 2, 3, 4)))),
    "detections-none": (frame(captured_at_ms=None), _seen()),
    "skipped-stale": (frame(), Skipped("stale", 2500.5)),
}

DEAD: dict[str, tuple[Frame, Rejected, int]] = {
    "dead-letter-damaged-2": (frame(), Rejected("decode", "damaged", "the JPEG ends too early"), 1_000_000),
    "dead-letter-truncated-2": (
        frame(record=Record(b"cam-1", IMAGE * 200, (("raw", b"\xff\x00"), ("unset", None)), None)),
        Rejected("publish", "unpublishable", "Broker: Message size too large"),
        4096,
    ),
    "dead-letter-bad-source-id-2": (
        frame(source_id="", record=Record(None, IMAGE, (("ce_id", b"theirs"),), TIMESTAMP_MS)),
        Rejected("parse", "bad_source_id", "the frame has no source ID: set the record key or the header source-id"),
        1_000_000,
    ),
    "dead-letter-keyless": (
        frame(record=Record(None, IMAGE, (("source-id", b"cam-1"),), TIMESTAMP_MS)),
        Rejected("decode", "damaged", "the JPEG ends too early"),
        1_000_000,
    ),
}
KEYED: Final = frozenset(("dead-letter-keyless",))  # written to a compacted topic


def encode(name: str, format_: Any = "msgpack") -> wire.Message:
    """The message of one of RESULTS."""
    about, outcome = RESULTS[name]
    encoder = wire.ResultEncoder(format=format_, model=MODEL, source=SOURCE)
    timings = {"queue": 3.25, "decode_wait": 0.5, "infer": 6.625}
    return encoder.encode(about, outcome, batch_size=8, timings_ms=timings, published_at_ms=TIMESTAMP_MS + 40)


def described(message: wire.Message) -> dict[str, Any]:
    """A record as `dead-letter.schema.json` describes it."""

    def header(name: str, value: bytes | None) -> dict[str, Any]:
        try:
            return {"name": name, "value": None if value is None else value.decode()}
        except UnicodeDecodeError:
            return {"name": name, "value_base64": _base64(value)}

    return {
        "key": _base64(message.key),
        "value": _base64(message.value),
        "timestamp_ms": message.timestamp_ms,
        "headers": [header(*each) for each in message.headers],
    }


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _as_json(value: Any) -> bytes:
    return (
        json.dumps(value, indent=2, ensure_ascii=False, default=lambda v: base64.b64encode(v).decode()).encode() + b"\n"
    )


def vectors() -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of every vector."""
    for name, fields in ENVELOPES.items():
        value = msgpack.packb(fields)
        parsed = wire.parse_frame(Record(None, value, (), TIMESTAMP_MS), RECEIPT, 0.0)
        names = ("source_id", "frame_id", "captured_at_ms", "traceparent", "payload")
        yield f"envelope-{name}.msgpack", value
        yield f"envelope-{name}.json", _as_json({"envelope": fields, "frame": {n: getattr(parsed, n) for n in names}})
    for name, (value, reason) in HOSTILE.items():
        yield f"hostile-{name}.msgpack", value
        yield f"hostile-{name}.json", _as_json({"reason": reason})
    for name in RESULTS:
        value = encode(name).value
        yield f"{name}.msgpack", value or b""
        yield f"{name}.json", _as_json(wire.decode_result(value or b""))
    for name, (about, rejected, limit) in DEAD.items():
        message = wire.encode_dead_letter(
            about, rejected, source=SOURCE, max_bytes=limit, now_ms=TIMESTAMP_MS + 40, keyed=name in KEYED
        )
        yield f"{name}.json", _as_json(described(message))


def main() -> int:
    VECTORS.mkdir(exist_ok=True)
    changed = [name for name, data in vectors() if (VECTORS / name).exists() and (VECTORS / name).read_bytes() != data]
    if changed:
        print(f"these vectors would change; see README.md: {', '.join(changed)}", file=sys.stderr)
        return 1
    for name, data in vectors():
        (VECTORS / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
