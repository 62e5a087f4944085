"""Defines the values that travel through the pipeline.

All types are immutable. The unit of a field is in its name (`_ms`, `_s`, `_bytes`) or beside it.

Types of which every frame needs an instance are named tuples. To create one takes a quarter to half of the time of a
frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Returns monotonic seconds. Injected wherever time matters, so that tests run in virtual time.
Clock = Callable[[], float]

# (name, value) pairs in the order of the record. Kafka allows repeated names and null values.
Headers = tuple[tuple[str, bytes | None], ...]


# The condition that closed a batch. A closed set, because it is a metric label.
ClosedBy = Literal["size", "bytes", "delay", "idle_engine", "drain"]
CLOSED_BY: tuple[ClosedBy, ...] = ("size", "bytes", "delay", "idle_engine", "drain")


class TopicPartition(NamedTuple):
    """One partition of one topic. A named tuple, because it is hashed for every frame."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


# Memory overhead of one header in Python: a tuple, a str object, a bytes object, and the list entry.
_HEADER_BYTES: Final = 150


class Receipt(NamedTuple):
    """The input position of a frame, and the assignment under which it was read.

    Attributes:
        partition: The partition that the record was read from.
        offset: The offset of the record in that partition.
        epoch: The number of the assignment. Each assignment of a partition to this process, and each rewind, starts a
            new epoch. An outcome with an older epoch must be neither published nor committed: its assignment has ended.
    """

    partition: TopicPartition
    offset: int
    epoch: int


class Record(NamedTuple):
    """An input record, unchanged. The pipeline keeps all of it, so that a dead letter loses nothing."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None  # Unix milliseconds; None if the record has no timestamp
    headers_lost: bool = False  # True if the client library cannot read the headers; `headers` is empty then

    @property
    def size_bytes(self) -> int:
        """The bytes of memory that the record occupies, approximately.

        The key and the headers count too. Otherwise large headers could exhaust the memory unnoticed.
        """
        size = len(self.value or b"") + len(self.key or b"")
        if self.headers:
            size += sum(_HEADER_BYTES + len(name) + len(value or b"") for name, value in self.headers)
        return size


@dataclass(frozen=True, slots=True)
class Rejected:
    """The outcome of a frame that can never become a detection. The frame goes to the dead-letter topic.

    Attributes:
        stage: The pipeline stage that rejected the frame.
        reason: One of `REASONS`. A closed set, because it is a metric label.
        detail: An explanation for a person. It may quote sizes and numbers of the input, never its raw bytes.
    """

    stage: Literal["parse", "decode", "infer", "publish"]
    reason: str
    detail: str


# The reasons for a rejection. A closed set, because the reason is a metric label. `schemas/README.md` explains each.
REASONS: tuple[str, ...] = (
    "empty",  # tombstone, or a value or image of zero bytes
    "bad_envelope",  # the msgpack envelope is invalid, or a header that replaces one of its fields is invalid
    "unreadable_headers",  # a header name is not UTF-8, so the client library cannot read any header of the record
    "bad_source_id",  # missing, too long, not UTF-8 or not printable
    "too_large",  # the image has more encoded bytes than decode.max_bytes
    "unsupported_format",  # the magic bytes are not those of JPEG, PNG or WebP
    "bad_header",  # the image header is damaged or contradicts itself
    "too_many_pixels",  # the header claims more pixels than decode.max_pixels
    "too_many_scans",  # a JPEG with more scans than decode.max_scans
    "damaged",  # the decoder failed on the image, or the image is truncated (decode.strict)
    "decoder_crashed",  # decode.workers: the frame crashed its decoding process, twice
    "decoder_timeout",  # decode.isolation: the frame was not decoded within decode.timeout_s, twice
    "decoder_memory",  # decode.isolation: the frame needs more than decode.memory_limit_bytes
    "engine",  # the detector failed on this frame alone, and on no other frame of its batch
    "unpublishable",  # the result is not finite, or is larger than the producer's message.max.bytes
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The outcome of a frame that was left out on purpose.

    It is published as a message of its own, so that a reader can distinguish it from an empty detection.

    Attributes:
        reason: `stale` if the frame was older than `batching.max_frame_age_ms`.
        age_ms: The age of the frame since its capture, in milliseconds.
    """

    reason: Literal["stale"]
    age_ms: float


class Frame(NamedTuple):
    """One input record, parsed.

    If the outcome is known before detection, `verdict` holds it. The frame still takes its place in a batch, so that
    the outcomes of one source keep their order.
    """

    source_id: str
    frame_id: str
    captured_at_ms: int | None  # Unix milliseconds: set by the producer, else the timestamp of the record
    payload: bytes  # the encoded image; b"" if `verdict` is set
    received_at: float  # seconds on the injected clock, when the Kafka consumer returned the record
    receipt: Receipt
    record: Record
    traceparent: str | None = None  # W3C trace context
    verdict: Rejected | Skipped | None = None
    copied_bytes: int = 0  # size of the payload if it was copied out of an envelope, else 0

    @property
    def size_bytes(self) -> int:
        """The bytes of memory that the frame occupies: its record, and the payload if it is a copy. Never changes."""
        return self.record.size_bytes + self.copied_bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that are processed together, in the order of their admission."""

    frames: tuple[Frame, ...]
    closed_by: ClosedBy


@dataclass(frozen=True, slots=True)
class LetterboxPolicy:
    """The canvas layout that a detector requires.

    Attributes:
        size: The maximum length of a side of the canvas, in pixels.
        stride: The stride of the model, in pixels.
        rect: If true, each side is the smallest multiple of `stride` that holds the scaled image, as in Ultralytics'
            `predict` for models with dynamic shapes. If false, every canvas is `size` x `size`.
    """

    size: int = 640
    stride: int = 32
    rect: bool = True

    @property
    def slot_bytes(self) -> int:
        """The size of a slot in bytes. A slot has room for the largest canvas, uint8 (size, size, 3)."""
        return self.size * self.size * 3


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The placement of an image in its canvas: scaled to `scaled_*`, then padded. All values are in pixels."""

    width: int  # of the original image
    height: int
    canvas_width: int
    canvas_height: int
    scaled_width: int
    scaled_height: int
    pad_x: int  # left of the image
    pad_y: int  # above the image

    @classmethod
    def fit(cls, width: int, height: int, policy: LetterboxPolicy) -> Letterbox:
        """Return the letterbox of an image, rounded as Ultralytics' `LetterBox` rounds.

        Source: ultralytics/data/augment.py, `LetterBox.get_params` with `auto=policy.rect`, `center=True`.

        Args:
            width: The width of the original image in pixels.
            height: The height of the original image in pixels.
            policy: The canvas layout that the detector requires.

        Raises:
            ValueError: A side is not positive.
        """
        if width <= 0 or height <= 0:
            raise ValueError(f"image sides must be positive, got {width}x{height}")
        gain = min(policy.size / height, policy.size / width)
        scaled_width, scaled_height = max(round(width * gain), 1), max(round(height * gain), 1)
        slack_x, slack_y = policy.size - scaled_width, policy.size - scaled_height
        if policy.rect:
            slack_x, slack_y = slack_x % policy.stride, slack_y % policy.stride
        return cls(
            width=width,
            height=height,
            canvas_width=scaled_width + slack_x,
            canvas_height=scaled_height + slack_y,
            scaled_width=scaled_width,
            scaled_height=scaled_height,
            # With the 0.1, the odd pixel of the padding goes to the right and to the bottom, as in Ultralytics.
            pad_x=round(slack_x / 2 - 0.1),
            pad_y=round(slack_y / 2 - 0.1),
        )

    @property
    def canvas_shape(self) -> tuple[int, int]:
        """The canvas size as (height, width). Frames with the same shape can share a forward pass."""
        return self.canvas_height, self.canvas_width


@dataclass(frozen=True, slots=True)
class Detections:
    """The detected objects of one frame, best score first.

    Attributes:
        boxes: float32 (n, 4): x1, y1, x2, y2 in pixels of the original image.
        scores: float32 (n,), from 0 to 1.
        class_ids: int32 (n,). `ModelInfo.label` maps each to a name.

    Raises:
        ValueError: An array has another shape or dtype. The message has the expected and the actual values.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]

    def __post_init__(self) -> None:
        n = len(self.scores)
        for name, array, shape, dtype in (
            ("boxes", self.boxes, (n, 4), np.float32),
            ("scores", self.scores, (n,), np.float32),
            ("class_ids", self.class_ids, (n,), np.int32),
        ):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name}: expected {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def none(cls) -> Detections:
        """Return an empty result: the detector processed the frame and found no object."""
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))


class Detected(NamedTuple):
    """The outcome of a frame that the detector processed.

    Attributes:
        detections: The detected objects; empty if there are none.
        width: The width of the original image in pixels.
        height: The height of the original image in pixels.
    """

    detections: Detections
    width: int
    height: int


# Every input record gets exactly one of these.
Outcome = Detected | Skipped | Rejected


@dataclass(frozen=True, slots=True)
class StageTimings:
    """The time that one batch spent in each stage, in milliseconds.

    Attributes:
        decode_wait_ms: From when the inference thread took the batch until its last frame was decoded.
        infer_ms: The time of the detector, with preprocessing and postprocessing.
        decode_ms: The sum over all decode threads, before and during the wait.
    """

    decode_wait_ms: float
    infer_ms: float
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outcomes of one batch.

    Attributes:
        batch: The frames.
        outcomes: Exactly one outcome per frame, in the order of `batch.frames`.
        timings: The time that the batch spent in each stage.
        taken_at: When the inference thread took the batch, in seconds on the injected clock.

    Raises:
        ValueError: The number of outcomes differs from the number of frames.
    """

    batch: Batch
    outcomes: Sequence[Outcome]
    timings: StageTimings
    taken_at: float

    def __post_init__(self) -> None:
        if len(self.outcomes) != len(self.batch.frames):
            raise ValueError(f"outcomes: expected {len(self.batch.frames)}, got {len(self.outcomes)}")

    @property
    def summary(self) -> BatchSummary:
        """The facts about the batch that its outcomes still need when the batch itself is gone."""
        return BatchSummary(len(self.batch.frames), self.timings, self.taken_at)


class BatchSummary(NamedTuple):
    """The facts about a batch that each of its outcomes reports.

    It refers to no frame. So an outcome that must wait keeps no other frame of its batch in memory.
    """

    size: int  # frames
    timings: StageTimings
    taken_at: float  # seconds on the injected clock, when the inference thread took the batch


class Finished(NamedTuple):
    """A frame with its outcome, ready to be published. `batch` describes the batch that the frame was in."""

    frame: Frame
    outcome: Outcome
    batch: BatchSummary


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that produced a result.

    Attributes:
        name: The name of the model file.
        digest: The SHA-256 of the model file, as `sha256:<hex>`.
        labels: Class names by class ID.
    """

    name: str
    digest: str
    labels: Mapping[int, str] = field(default_factory=dict)

    def label(self, class_id: int) -> str:
        """Return the model's name of a class, or the class ID as text if the model has no name for it."""
        return self.labels.get(class_id, str(class_id))


class Acknowledged(NamedTuple):
    """An outcome that the brokers acknowledged.

    Attributes:
        frame: The frame.
        outcome: Its outcome.
        published_at: When the outcome was handed to the producer, in seconds on the injected clock.
    """

    frame: Frame
    outcome: Outcome
    published_at: float


class DeviceMemory(NamedTuple):
    """Memory of the device that the detector runs on. `used_bytes` counts the memory of all processes."""

    used_bytes: int
    total_bytes: int


class Lag(NamedTuple):
    """The lag of one partition.

    Attributes:
        partition: The partition.
        records: The number of records between the position and the end of the partition.
        seconds: The age of the last frame that was read, if records wait; else 0. None if records wait and none has
            been read yet: their age is unknown.
    """

    partition: TopicPartition
    records: int
    seconds: float | None
