"""Encodes outcomes as detection and skipped messages, and decodes these messages for readers.

See `schemas/detections.schema.json` and `schemas/skipped.schema.json`.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import quote

import msgpack
import numpy as np
from numpy.typing import NDArray

from consumer.messages.message import HeaderList, Message, record_id, utf8
from consumer.types import Detected, Detections, Frame, ModelInfo, Skipped

SCHEMA_VERSION: Final = 1
DETECTIONS_TYPE: Final = "io.sluice.detections.v1"
SKIPPED_TYPE: Final = "io.sluice.skipped.v1"
CONTENT_TYPES: Final = {"msgpack": "application/msgpack", "json": "application/json"}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_JSON: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
# Decimals in JSON. The rounding changes the IoU of a box of one pixel by 0.0002 at most; 0.01 is guaranteed.
_BOX_DECIMALS: Final = 4
_SCORE_DECIMALS: Final = 6


class ResultEncoder:
    """Encodes one message per outcome, for one model and one format.

    In msgpack, numbers with a fraction are float32, as the detector returned them. In JSON, boxes have 4 decimals and
    scores have 6. Not thread-safe, because it reuses a buffer.

    Args:
        format: The format of the messages.
        model: The model that produces the results.
        source: This consumer as a URI reference, for example `/sluice/<group>`.
    """

    def __init__(self, *, format: Literal["msgpack", "json"], model: ModelInfo, source: str) -> None:  # noqa: A002
        self._json = format == "json"
        self._packer = msgpack.Packer(use_single_float=True)
        self._model = {"name": _clean(model.name), "digest": model.digest}
        self._labels = {class_id: _clean(label) for class_id, label in model.labels.items()}
        content_type = CONTENT_TYPES[format].encode()
        shared: HeaderList = [
            ("ce_specversion", b"1.0"),
            ("ce_source", quote(utf8(source), safe="/:@%!$&'()*+,;=?").encode()),
            ("content-type", content_type),
        ]
        self._detections_headers: HeaderList = [*shared, ("ce_type", DETECTIONS_TYPE.encode())]
        self._skipped_headers: HeaderList = [*shared, ("ce_type", SKIPPED_TYPE.encode())]

    def encode(
        self,
        frame: Frame,
        outcome: Detected | Skipped,
        *,
        batch_size: int,
        timings_ms: dict[str, float],
        published_at_ms: int,
    ) -> Message:
        """Encode the message of one frame.

        Args:
            frame: The frame.
            outcome: Its outcome.
            batch_size: The number of frames in its batch.
            timings_ms: The times of the stages in milliseconds, with exactly the keys `queue`, `decode_wait` and
                `infer`.
            published_at_ms: The current Unix time in milliseconds.

        Raises:
            ValueError: A number is NaN or infinite, which no reader could use. The caller sends the frame to the
                dead-letter topic (`unpublishable`); it never publishes an empty detection instead.
        """
        identity = record_id(frame.receipt)
        (topic, partition), offset, _ = frame.receipt
        body: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "id": identity,
            "source_id": frame.source_id,
            "frame_id": frame.frame_id,
            "input": {"topic": topic, "partition": partition, "offset": offset},
            "captured_at_ms": frame.captured_at_ms,
            "published_at_ms": published_at_ms,
        }
        if isinstance(outcome, Detected):
            _finite(sum(timings_ms.values()))
            shared = self._detections_headers
            body["width"] = outcome.width
            body["height"] = outcome.height
            body["model"] = self._model
            body["batch_size"] = batch_size
            body["timings_ms"] = timings_ms
            body["detections"] = self._listed(outcome.detections)
        else:
            queue = timings_ms["queue"]
            _finite(queue + outcome.age_ms)
            shared = self._skipped_headers
            body["model"] = self._model
            body["timings_ms"] = {"queue": queue}  # the frame was not decoded or processed by the detector
            body["skipped"] = {"reason": outcome.reason, "age_ms": outcome.age_ms}
        value = _JSON.encode(body).encode() if self._json else self._packer.pack(body)
        key = frame.source_id.encode()
        headers: HeaderList = [
            *shared,
            ("ce_id", identity.encode()),
            ("ce_time", _rfc3339(published_at_ms)),
            ("ce_subject", key),
        ]
        if frame.traceparent is not None:
            headers.append(("traceparent", frame.traceparent.encode()))
        return Message(key, value, headers, published_at_ms)

    def _listed(self, detections: Detections) -> list[dict[str, Any]]:
        boxes: NDArray[np.floating] = detections.boxes
        scores: NDArray[np.floating] = detections.scores
        if self._json:
            boxes = boxes.astype(np.float64).round(_BOX_DECIMALS)
            scores = scores.astype(np.float64).round(_SCORE_DECIMALS)
        edges, chances = boxes.tolist(), scores.tolist()
        _finite(sum(map(sum, edges)) + sum(chances))  # the sum is not finite if any number is NaN or infinite
        labels = self._labels
        return [
            {"class_id": class_id, "label": labels.get(class_id) or str(class_id), "score": score, "box": box}
            for class_id, score, box in zip(detections.class_ids.tolist(), chances, edges, strict=True)
        ]


def decode_result(value: bytes) -> dict[str, Any]:
    """Decode a detection or skipped message, in either format.

    Args:
        value: The value of the record.

    Returns:
        The fields of the message.

    Raises:
        ValueError: It is not a message of Sluice, or has another major version of the schema.
    """
    try:
        body = json.loads(value, parse_constant=_not_a_number) if value[:1] == b"{" else msgpack.unpackb(value)
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        raise ValueError(f"neither msgpack nor JSON: {str(error) or type(error).__name__}") from None
    version = body.get("schema_version") if isinstance(body, dict) else None
    if type(version) is not int:
        raise ValueError("not a Sluice message: it has no schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version {version}: this reader knows version {SCHEMA_VERSION}")
    fields: dict[str, Any] = body
    return fields


def _clean(text: str) -> str:
    return utf8(text).decode()


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("a number of the result is not finite")
    return number


@lru_cache(maxsize=64)  # the results of a batch have the same time
def _rfc3339(unix_ms: int) -> bytes:
    time = _EPOCH + timedelta(milliseconds=unix_ms)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
