"""What the program and a decoding process say to each other: fixed layouts, nothing that is unpickled.

The process is the part that may have been taken over by a hostile picture, so an answer is as untrusted as the picture
was: `Reader` believes nothing of it that it has not checked.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Final

from consumer.types import REASONS, Letterbox, LetterboxPolicy, Rejected

READY: Final = b"ready"
MAX_MESSAGE: Final = 2**15  # bytes
MAX_FRAMES: Final = 64  # in one request, and so in one message of answers
_FRAME: Final = struct.Struct("<QQQ")
_ANSWER: Final = struct.Struct("<BIIH")  # kind; width and height, or the reason's place in REASONS and 0; detail bytes
_PICTURE, _REJECTED, _NO_MEMORY = range(3)
_MAX_DETAIL: Final = 300  # bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a decoding process is told of the configuration: no address, no name, no secret.

    timeout_s and memory_bytes are for one frame, 0: no limit. payload_bytes and canvas_bytes: of the shared memories.
    """

    strict: bool
    max_bytes: int
    max_pixels: int
    max_scans: int
    timeout_s: float
    memory_bytes: int
    size: int
    stride: int
    rect: bool
    payload_bytes: int
    canvas_bytes: int

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Settings:
        return cls(**json.loads(text))

    @property
    def policy(self) -> LetterboxPolicy:
        return LetterboxPolicy(self.size, self.stride, self.rect)


def request(numbers: Sequence[int]) -> bytes:
    """Three for each frame: where its payload begins and ends, and where its slot begins."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def read_request(message: bytes) -> Iterator[tuple[int, int, int]]:
    return _FRAME.iter_unpack(message)


def answer(outcome: Letterbox | Rejected | None) -> bytes:
    """None: the frame needed more memory than the process may have. Answers are put together by joining them."""
    if outcome is None:
        return _ANSWER.pack(_NO_MEMORY, 0, 0, 0)
    if isinstance(outcome, Letterbox):
        return _ANSWER.pack(_PICTURE, outcome.width, outcome.height, 0)
    line = "".join(letter if letter.isprintable() else " " for letter in outcome.detail)  # nothing else is read
    detail = line.encode("utf-8", "replace")[:_MAX_DETAIL]
    return _ANSWER.pack(_REJECTED, REASONS.index(outcome.reason), 0, len(detail)) + detail


class Reader:
    """Reads answers. Raises ValueError for what a sound decoder does not say: it must not be used again then."""

    def __init__(self, settings: Settings) -> None:
        self._max_pixels = settings.max_pixels
        self._policy = settings.policy
        # Cameras send one size; the cache is bounded because senders choose what is in it.
        self._fit = lru_cache(maxsize=256)(self._checked)

    def read(self, message: bytes) -> list[Letterbox | Rejected | None]:
        """One outcome after the other; None as in `answer`."""
        outcomes: list[Letterbox | Rejected | None] = []
        if len(message) % _ANSWER.size == 0:
            for kind, first, second, length in _ANSWER.iter_unpack(message):  # pictures alone, as nearly always
                if kind != _PICTURE or length:
                    break
                outcomes.append(self._fit(first, second))
            else:
                return outcomes
        return list(self._read(message))

    def _read(self, message: bytes) -> Iterator[Letterbox | Rejected | None]:
        at = 0
        while at < len(message):
            try:
                kind, first, second, length = _ANSWER.unpack_from(message, at)
            except struct.error:
                raise ValueError(f"an answer of {len(message) - at} bytes") from None
            detail = message[at + _ANSWER.size : at + _ANSWER.size + length]
            at += _ANSWER.size + length
            if kind == _PICTURE and not length:
                yield self._fit(first, second)
            elif kind == _NO_MEMORY and not length:
                yield None
            elif kind == _REJECTED and first < len(REASONS) and len(detail) == length <= _MAX_DETAIL:
                yield Rejected("decode", REASONS[first], _words(detail))
            else:
                raise ValueError(f"an answer of kind {kind}")

    def _checked(self, width: int, height: int) -> Letterbox:
        if width * height > self._max_pixels:
            raise ValueError(f"a picture of {width}x{height} pixels")
        return Letterbox.fit(width, height, self._policy)


def _words(detail: bytes) -> str:
    text = detail.decode("utf-8", "ignore")
    if not text.isprintable():
        raise ValueError("a detail that cannot be printed")
    return text
