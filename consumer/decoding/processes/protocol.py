"""Defines the messages between the parent and a decoding process: fixed layouts, without pickle.

A hostile image may have taken the process over, so its answers are as untrusted as the image. `Reader` checks all of
them.
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
MAX_FRAMES: Final = 64  # in one request, and therefore in one message of answers
_FRAME: Final = struct.Struct("<QQQ")
_ANSWER: Final = struct.Struct("<BIIH")  # kind; width and height, or index in REASONS and 0; length of the detail
_PICTURE, _REJECTED, _NO_MEMORY = range(3)
_MAX_DETAIL: Final = 300  # bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of the configuration that a decoding process gets: no address, no name, no secret.

    Attributes:
        strict: See `decode.strict`.
        max_bytes: See `decode.max_bytes`.
        max_pixels: See `decode.max_pixels`.
        max_scans: See `decode.max_scans`.
        timeout_s: The maximum time for one frame in seconds; 0: no limit.
        memory_bytes: The maximum additional memory for one frame; 0: no limit.
        size: See `LetterboxPolicy.size`.
        stride: See `LetterboxPolicy.stride`.
        rect: See `LetterboxPolicy.rect`.
        payload_bytes: The size of the shared memory for payloads.
        canvas_bytes: The size of the shared memory for canvases.
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
    """Encode a request: for each frame the start and end of its payload and the start of its slot, in bytes."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def read_request(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Decode a request into (start, end, slot) for each frame."""
    return _FRAME.iter_unpack(message)


def answer(outcome: Letterbox | Rejected | None) -> bytes:
    """Encode one answer. None: the process ran out of memory. A message is the concatenation of several answers."""
    if outcome is None:
        return _ANSWER.pack(_NO_MEMORY, 0, 0, 0)
    if isinstance(outcome, Letterbox):
        return _ANSWER.pack(_PICTURE, outcome.width, outcome.height, 0)
    line = "".join(letter if letter.isprintable() else " " for letter in outcome.detail)  # the reader refuses others
    detail = line.encode("utf-8", "replace")[:_MAX_DETAIL]
    return _ANSWER.pack(_REJECTED, REASONS.index(outcome.reason), 0, len(detail)) + detail


class Reader:
    """Decodes and checks answers."""

    def __init__(self, settings: Settings) -> None:
        self._max_pixels = settings.max_pixels
        self._policy = settings.policy
        # A camera sends one image size. The cache is bounded, because senders choose the sizes.
        self._fit = lru_cache(maxsize=256)(self._checked)

    def read(self, message: bytes) -> list[Letterbox | Rejected | None]:
        """Decode a message into its outcomes; None as in `answer`.

        Raises:
            ValueError: A correct decoder never sends this message. The process must not be used again.
        """
        outcomes: list[Letterbox | Rejected | None] = []
        if len(message) % _ANSWER.size == 0:
            for kind, first, second, length in _ANSWER.iter_unpack(message):  # nearly always only images
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
