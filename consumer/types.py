"""The values that travel through the pipeline: immutable, slotted, units in their names.

What is made for every frame is a named tuple, which takes a quarter to half of the time of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Monotonic seconds. Injected wherever time matters, so that tests run in virtual time.
Clock = Callable[[], float]

Headers = tuple[tuple[str, bytes | None], ...]


ClosedBy = Literal["size", "bytes", "delay", "idle_engine", "drain"]
CLOSED_BY: tuple[ClosedBy, ...] = ("size", "bytes", "delay", "idle_engine", "drain")


class TopicPartition(NamedTuple):
    """One partition of one topic. A tuple, because it is hashed for every frame."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


# What Python needs for a header beside its letters: a tuple, a str and a bytes object, and their place in the list.
_HEADER_BYTES: Final = 150


class Receipt(NamedTuple):
    """Where a frame came from, and under which assignment.

    `epoch` is new with each assignment of a partition to this process, and after each rewind. A completion whose epoch
    is not the current one belongs to an assignment that has ended and must neither be published nor committed.
    """

    partition: TopicPartition
    offset: int
    epoch: int


class Record(NamedTuple):
    """An input record as the broker gave it; kept whole so that a dead letter loses nothing."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None  # None where the record has none
    headers_lost: bool = False  # it has headers that the client library cannot read; then `headers` is empty

    @property
    def size_bytes(self) -> int:
        """What it keeps in memory as long as it is held: headers and key count, or they could be the attack."""
        size = len(self.value or b"") + len(self.key or b"")
        if self.headers:
            size += sum(_HEADER_BYTES + len(name) + len(value or b"") for name, value in self.headers)
        return size


@dataclass(frozen=True, slots=True)
class Rejected:
    """This frame can never become a detection: it goes to the dead-letter topic.

    `stage` is where it was found out, `reason` one of the `REASONS` (a closed set: it labels a metric),
    `detail` a sentence for a person; it may quote sizes and numbers of the input, never its raw bytes.
    """

    stage: Literal["parse", "decode", "infer", "publish"]
    reason: str
    detail: str


# Why a frame was rejected. A closed set, because it is a metric label; `schemas/README.md` explains each.
REASONS: tuple[str, ...] = (
    "empty",  # tombstone, or a value or image of zero bytes
    "bad_envelope",  # a msgpack envelope that is not a valid one, or a header that stands for one of its fields
    "unreadable_headers",  # a header name is not UTF-8, and the client library reads none of the record's headers
    "bad_source_id",  # missing, too long, not UTF-8 or not printable
    "too_large",  # more encoded bytes than decode.max_bytes
    "unsupported_format",  # the magic bytes are not those of JPEG, PNG or WebP
    "bad_header",  # the image header is damaged or contradicts itself
    "too_many_pixels",  # the header claims more pixels than decode.max_pixels
    "too_many_scans",  # a progressive JPEG with more scans than decode.max_scans
    "damaged",  # the decoder failed on it, or found it truncated (strict)
    "decoder_crashed",  # decode.workers: the decoding process ended over it, twice
    "decoder_timeout",  # decode.isolation: not decoded within decode.timeout_s, twice
    "decoder_memory",  # decode.isolation: needs more than decode.memory_limit_bytes
    "engine",  # the detector failed on this frame alone, and on no other of its batch
    "unpublishable",  # its result is not finite, or larger than the producer's message.max.bytes
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """This frame was not looked at, on purpose. Published, so that it differs from "nothing seen"."""

    reason: Literal["stale"]
    age_ms: float


class Frame(NamedTuple):
    """One input record, parsed. `verdict` is set where its outcome is known before it is looked at.

    Such a frame still takes its place in a batch, so that outcomes of one source keep their order.
    """

    source_id: str
    frame_id: str
    captured_at_ms: int | None  # Unix milliseconds: from the producer, else the record's timestamp
    payload: bytes  # the encoded image; b"" where `verdict` is set
    received_at: float  # seconds on the injected clock, when it left the consumer
    receipt: Receipt
    record: Record
    traceparent: str | None = None
    verdict: Rejected | Skipped | None = None
    copied_bytes: int = 0  # of the payload, if it is a copy: of a part of an envelope

    @property
    def size_bytes(self) -> int:
        """What the frame keeps in memory: its record, and a payload that is a copy. It never changes."""
        return self.record.size_bytes + self.copied_bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that go through the detector together, in admission order."""

    frames: tuple[Frame, ...]
    closed_by: ClosedBy


@dataclass(frozen=True, slots=True)
class LetterboxPolicy:
    """How a detector wants its canvases: at most `size` pixels on each side.

    With `rect`, the canvas is cut to the smallest multiple of `stride` that holds the scaled image, as Ultralytics'
    `predict` does for models with dynamic shapes; otherwise it is always `size` x `size`.
    """

    size: int = 640
    stride: int = 32
    rect: bool = True

    @property
    def slot_bytes(self) -> int:
        """Bytes of the largest canvas, which is what a slot has room for."""
        return self.size * self.size * 3


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image lies in its canvas, all in pixels: scaled to `scaled_*`, then padded on both sides."""

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
        """The letterbox of an image of `width` x `height` pixels, rounded as Ultralytics' `LetterBox` rounds.

        Source: ultralytics/data/augment.py, `LetterBox.get_params` with `auto=policy.rect`, `center=True`.
        Raises ValueError where a side is not positive.
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
            # The 0.1 makes an odd slack fall to the right and below, as Ultralytics does.
            pad_x=round(slack_x / 2 - 0.1),
            pad_y=round(slack_y / 2 - 0.1),
        )

    @property
    def canvas_shape(self) -> tuple[int, int]:
        """(height, width) of the canvas: frames of one shape can share a forward pass."""
        return self.canvas_height, self.canvas_width


@dataclass(frozen=True, slots=True)
class Detections:
    """What was seen in one frame, best score first.

    boxes: float32 (n, 4), x1 y1 x2 y2 in pixels of the original image.
    scores: float32 (n,), 0 to 1.  class_ids: int32 (n,).
    Raises ValueError, with expected and actual, where shapes or dtypes are others.
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
        """The frame was looked at and nothing was seen."""
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))


class Detected(NamedTuple):
    """The frame was looked at. `width` and `height` are those of the original image, in pixels."""

    detections: Detections
    width: int
    height: int


Outcome = Detected | Skipped | Rejected


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Where a batch spent its time, in milliseconds.

    `decode_wait` is what the engine still waited for the last decode once it had taken the batch; `infer` is the
    engine's own time, pre- and post-processing included; `decode` is what the decode threads spent on the batch, all
    together, before and during that wait.
    """

    decode_wait_ms: float
    infer_ms: float
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Exactly one outcome per frame of `batch`, in its order. `taken_at`: seconds, when the engine took the batch."""

    batch: Batch
    outcomes: Sequence[Outcome]
    timings: StageTimings
    taken_at: float

    def __post_init__(self) -> None:
        if len(self.outcomes) != len(self.batch.frames):
            raise ValueError(f"outcomes: expected {len(self.batch.frames)}, got {len(self.outcomes)}")

    @property
    def summary(self) -> BatchSummary:
        """What is still needed of the batch once its outcomes are on their way."""
        return BatchSummary(len(self.batch.frames), self.timings, self.taken_at)


class BatchSummary(NamedTuple):
    """What an outcome says of its batch. It refers to no frame, so a held outcome keeps no other frame in memory."""

    size: int  # frames
    timings: StageTimings
    taken_at: float  # seconds on the injected clock, when the engine took the batch


class Finished(NamedTuple):
    """A frame that is through the engine, and its outcome, which is to be written. `batch`: the one it was in."""

    frame: Frame
    outcome: Outcome
    batch: BatchSummary


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that looked: `name` is the file's, `digest` its SHA-256 as `sha256:<hex>`."""

    name: str
    digest: str
    labels: Mapping[int, str] = field(default_factory=dict)

    def label(self, class_id: int) -> str:
        """The model's own name of a class; its number as text where the model has none for it."""
        return self.labels.get(class_id, str(class_id))


class Acknowledged(NamedTuple):
    """The brokers have the outcome of `frame`. `published_at`: seconds on the injected clock."""

    frame: Frame
    outcome: Outcome
    published_at: float


class DeviceMemory(NamedTuple):
    """Memory of the device that the detector runs on, by whomever it is used."""

    used_bytes: int
    total_bytes: int


class Lag(NamedTuple):
    """How far one partition is behind. `seconds` is the age of its last frame while records wait, else 0.

    None: records wait, and none has been read yet, so that nobody knows how old they are.
    """

    partition: TopicPartition
    records: int
    seconds: float | None
