"""What the program and a decoding process say to each other: fixed layouts, nothing that is unpickled.

The process is the part that may have been taken over by a hostile picture, so an answer is as untrusted as the picture
was: `read_answer` believes nothing of it that it has not checked.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import Final

from consumer.config import DecodeConfig
from consumer.types import REASONS, Letterbox, LetterboxPolicy, Rejected

READY: Final = b"ready"
MAX_ANSWER: Final = 1024  # bytes
_REQUEST: Final = struct.Struct("<Q")  # bytes of the payload, which lies at the head of the shared memory
_ANSWER: Final = struct.Struct("<BII")  # kind; width and height, or the reason's place in REASONS and 0
_PICTURE, _REJECTED, _NO_MEMORY = range(3)
_MAX_DETAIL: Final = 300  # bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a decoding process is told of the configuration: no address, no name, no secret."""

    strict: bool
    max_bytes: int
    max_pixels: int
    max_scans: int
    timeout_s: float
    memory_bytes: int
    size: int
    stride: int
    rect: bool

    @classmethod
    def of(cls, config: DecodeConfig, policy: LetterboxPolicy) -> Settings:
        return cls(
            strict=config.strict,
            max_bytes=config.max_bytes,
            max_pixels=config.max_pixels,
            max_scans=config.max_scans,
            timeout_s=config.timeout_s,
            memory_bytes=config.memory_limit_bytes,
            size=policy.size,
            stride=policy.stride,
            rect=policy.rect,
        )

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Settings:
        return cls(**json.loads(text))

    @property
    def config(self) -> DecodeConfig:
        return DecodeConfig(
            strict=self.strict, max_bytes=self.max_bytes, max_pixels=self.max_pixels, max_scans=self.max_scans
        )

    @property
    def policy(self) -> LetterboxPolicy:
        return LetterboxPolicy(self.size, self.stride, self.rect)


def request(payload_bytes: int) -> bytes:
    return _REQUEST.pack(payload_bytes)


def read_request(message: bytes) -> int:
    length: int = _REQUEST.unpack(message)[0]
    return length


def answer(outcome: Letterbox | Rejected | None) -> bytes:
    """None: the frame needed more memory than the process may have."""
    if outcome is None:
        return _ANSWER.pack(_NO_MEMORY, 0, 0)
    if isinstance(outcome, Letterbox):
        return _ANSWER.pack(_PICTURE, outcome.width, outcome.height)
    line = "".join(letter if letter.isprintable() else " " for letter in outcome.detail)  # nothing else is read
    detail = line.encode("utf-8", "replace")[:_MAX_DETAIL]
    return _ANSWER.pack(_REJECTED, REASONS.index(outcome.reason), 0) + detail


def read_answer(message: bytes, settings: Settings) -> Letterbox | Rejected | None:
    """Raises ValueError for what a sound decoder does not say: then the process must not be used again."""
    try:
        kind, first, second = _ANSWER.unpack_from(message)
    except struct.error:
        raise ValueError(f"an answer of {len(message)} bytes") from None
    if kind == _NO_MEMORY:
        return None
    if kind == _PICTURE:
        if first * second > settings.max_pixels:
            raise ValueError(f"a picture of {first}x{second} pixels")
        return Letterbox.fit(first, second, settings.policy)
    detail = message[_ANSWER.size :].decode("utf-8", "ignore")
    if kind != _REJECTED or first >= len(REASONS) or len(detail) > _MAX_DETAIL or not detail.isprintable():
        raise ValueError(f"an answer of kind {kind}")
    return Rejected("decode", REASONS[first], detail)
