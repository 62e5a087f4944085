"""The schemas, the golden vectors and the code agree, and old messages stay readable."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer import messages as wire
from consumer.types import REASONS, Detected, Detections, Record, Rejected, Skipped

SCHEMAS = Path(__file__).parents[2] / "schemas"
VECTORS = SCHEMAS / "vectors"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load(SCHEMAS / "make_vectors.py")


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


VALIDATORS = {name: validator(name) for name in ("frame-envelope", "detections", "skipped", "dead-letter")}


def stored(pattern: str) -> list[Path]:
    found = sorted(VECTORS.rglob(pattern))
    assert found, pattern
    return found


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda data: base64.b64encode(data).decode()))


@pytest.mark.parametrize("name", VALIDATORS)
def test_each_schema_is_a_valid_schema(name: str) -> None:
    """Catches a misspelt keyword, which JSON Schema ignores silently."""
    schema = VALIDATORS[name].schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"].endswith(f"/v{wire.SCHEMA_VERSION}/{name}.schema.json")


# The fields that a reader of version 1 relies on. Never remove one. A new required input field breaks producers.
REQUIRED = {
    "frame-envelope": {"data"},
    "detections": {
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
    },
    "skipped": {
        "schema_version",
        "id",
        "source_id",
        "frame_id",
        "input",
        "captured_at_ms",
        "published_at_ms",
        "model",
        "timings_ms",
        "skipped",
    },
    "dead-letter": {"key", "value", "timestamp_ms", "headers"},
}


@pytest.mark.parametrize("name", REQUIRED)
def test_required_fields_of_version_1_are_frozen(name: str) -> None:
    """Catches a schema that is changed with the code: both agree then, and every external reader breaks."""
    assert set(VALIDATORS[name].schema["required"]) == REQUIRED[name]


def _closed(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        bad = [key for key in ("additionalProperties", "unevaluatedProperties") if schema.get(key) is False]
        return bad + [key for value in schema.values() for key in _closed(value)]
    return [key for value in schema for key in _closed(value)] if isinstance(schema, list) else []


@pytest.mark.parametrize("name", VALIDATORS)
def test_a_later_minor_version_may_add_fields_anywhere(name: str) -> None:
    """Catches `additionalProperties: false`, which turns each new field into a breaking change."""
    assert _closed(VALIDATORS[name].schema) == []


def test_the_writer_still_writes_the_golden_vectors_byte_for_byte() -> None:
    """Catches a reordered field, another float width or another rounding, which a round trip cannot detect."""
    for name, data in golden.vectors():
        assert (VECTORS / name).read_bytes() == data, name


def test_every_golden_vector_is_tested() -> None:
    """Catches a vector that was renamed in the script and whose old file remains untested."""
    assert {path.name for path in VECTORS.iterdir() if path.is_file()} == {name for name, _ in golden.vectors()}


@pytest.mark.parametrize("path", stored("envelope-*.msgpack"), ids=lambda path: path.stem)
def test_stored_envelopes_validate_and_parse_to_their_json(path: Path) -> None:
    value, meaning = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    frame = wire.parse_frame(Record(None, value, (), golden.TIMESTAMP_MS), golden.RECEIPT, 0.0)
    assert frame.verdict is None
    assert as_json({name: getattr(frame, name) for name in meaning["frame"]}) == meaning["frame"]
    assert as_json(msgpack.unpackb(value)) == meaning["envelope"]
    VALIDATORS["frame-envelope"].validate(meaning["envelope"])


@pytest.mark.parametrize("name", golden.CANONICAL)
def test_encode_envelope_writes_the_canonical_envelopes(name: str) -> None:
    """Catches a producer helper that diverges from the canonical form in the schema."""
    assert wire.encode_envelope(**golden.ENVELOPES[name]) == (VECTORS / f"envelope-{name}.msgpack").read_bytes()


@pytest.mark.parametrize("path", stored("hostile-*.msgpack"), ids=lambda path: path.stem)
def test_hostile_envelopes_are_rejected_for_the_reason_in_their_json(path: Path) -> None:
    frame = wire.parse_frame(Record(None, path.read_bytes(), (), 0), golden.RECEIPT, 0.0)
    assert isinstance(frame.verdict, Rejected)
    assert frame.verdict.reason == json.loads(path.with_suffix(".json").read_text())["reason"]


@pytest.mark.parametrize(
    "path", [*stored("detections-*.msgpack"), *stored("skipped-*.msgpack")], ids=lambda path: path.stem
)
def test_stored_results_still_validate_and_decode_to_their_json(path: Path) -> None:
    """Catches a change within the major version that breaks readers of the messages already in a topic."""
    message = json.loads(path.with_suffix(".json").read_text())
    assert wire.decode_result(path.read_bytes()) == message
    VALIDATORS[path.stem.partition("-")[0]].validate(message)


@pytest.mark.parametrize("name", golden.RESULTS)
def test_both_formats_have_the_same_content(name: str) -> None:
    """Catches a field that only one of the two formats has."""
    in_json = golden.encode(name, "json").value
    assert in_json.startswith(b"{")
    assert wire.decode_result(in_json) == json.loads((VECTORS / f"{name}.json").read_text())
    assert list(wire.decode_result(in_json)) == list(wire.decode_result(golden.encode(name).value))


@pytest.mark.parametrize("path", stored("dead-letter-*.json"), ids=lambda path: path.stem)
def test_stored_dead_letters_validate(path: Path) -> None:
    VALIDATORS["dead-letter"].validate(json.loads(path.read_text()))


def test_detection_and_skipped_messages_are_distinguished() -> None:
    """Catches schemas so loose that a skipped frame is taken for an empty detection."""
    detections = json.loads((VECTORS / "detections-none.json").read_text())
    skipped = json.loads((VECTORS / "skipped-stale.json").read_text())
    assert not VALIDATORS["skipped"].is_valid(detections)
    assert not VALIDATORS["detections"].is_valid(skipped)
    assert not VALIDATORS["detections"].is_valid(detections | {"skipped": skipped["skipped"]})


FLOATS = st.floats(-1e6, 1e6, width=32)
NAMES = st.text(min_size=1, max_size=128).filter(lambda text: text.isprintable() and text == text.strip(" "))


@st.composite
def detected(draw: st.DrawFn) -> Detected:
    count = draw(st.integers(0, 30))
    boxes = draw(st.lists(st.tuples(FLOATS, FLOATS, FLOATS, FLOATS), min_size=count, max_size=count))
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count))
    classes = draw(st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count))
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
    )
    return Detected(found, draw(st.integers(1, 65_535)), draw(st.integers(1, 65_535)))


@settings(max_examples=150, deadline=None)
@given(
    outcome=detected() | st.builds(Skipped, st.just("stale"), st.floats(0, 1e9)),
    format_=st.sampled_from(["msgpack", "json"]),
    source_id=NAMES,
    frame_id=NAMES,
    captured=st.none() | st.integers(0, 2**53),
    timings=st.lists(st.floats(0, 1e6), min_size=3, max_size=3),
    batch_size=st.integers(1, 1024),
)
def test_every_result_that_the_program_writes_validates(
    *,
    outcome: Detected | Skipped,
    format_: Any,
    source_id: str,
    frame_id: str,
    captured: int | None,
    timings: list[float],
    batch_size: int,
) -> None:
    """Catches an outcome that the schema forgot: no box, no capture time, an emoji in a name, one format only."""
    encoder = wire.ResultEncoder(format=format_, model=golden.MODEL, source=golden.SOURCE)
    frame = golden.frame(source_id=source_id, frame_id=frame_id, captured_at_ms=captured)
    named = dict(zip(("queue", "decode_wait", "infer"), timings, strict=True))
    message = encoder.encode(frame, outcome, batch_size=batch_size, timings_ms=named, published_at_ms=5)
    body = wire.decode_result(message.value or b"")
    VALIDATORS["detections" if isinstance(outcome, Detected) else "skipped"].validate(body)
    headers = dict(message.headers)
    assert headers["ce_id"] == body["id"].encode()
    assert message.key == headers["ce_subject"] == body["source_id"].encode() == source_id.encode()


@settings(max_examples=150, deadline=None)
@given(
    key=st.none() | st.binary(max_size=600),
    value=st.none() | st.binary(max_size=6000),
    headers=st.lists(st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=900)), max_size=8),
    timestamp=st.none() | st.integers(-1, 2**53),
    stage=st.sampled_from(["parse", "decode", "infer", "publish"]),
    reason=st.sampled_from(REASONS),
    detail=st.text(max_size=3000),
    limit=st.integers(0, 8000),
)
def test_every_dead_letter_that_the_program_writes_validates(
    *,
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    timestamp: int | None,
    stage: Any,
    reason: str,
    detail: str,
    limit: int,
) -> None:
    """Catches a reason outside the closed set, and a dead letter that lost the headers of Sluice to a truncation."""
    frame = golden.frame(record=Record(key, value, tuple(headers), timestamp))
    message = wire.encode_dead_letter(
        frame, Rejected(stage, reason, detail), source=golden.SOURCE, max_bytes=limit, now_ms=7
    )
    VALIDATORS["dead-letter"].validate(golden.described(message))


def test_the_readme_explains_each_reason_and_no_other() -> None:
    """Catches a reason that operators see in a dashboard and that no page explains."""
    section = (SCHEMAS / "README.md").read_text().partition("| reason |")[2].partition("## Versions")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == REASONS
