"""The frames that the rig sends. Each good one has a size of its own, so that a result names its frame.

The simulated engine reports one box, the middle half of the picture, so that size and box are known beforehand. The
sizes come back after `len(SIZES)` frames, which is far more than the frames of one batch span.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache

import msgpack
import simplejpeg

import images
from history import Content

# All are nearly 4:3: the engine gets one shape of canvas, as from cameras of one kind, and its batches are not split.
SIZES: tuple[tuple[int, int], ...] = tuple(
    (width, height) for width in range(40, 181) for height in range(width * 7 // 10 + 2, width * 3 // 4 + 1)
)
_BAD_EVERY = 50
_NO_HEADER = b"\xff\xd8\xff\xe0 ends within its header, frame "
_MAPS = {bytes([first]) for first in range(0x80, 0x90)}  # how a small map begins
_NO_PICTURE = b"no picture, frame "


def frame(number: int) -> bytes:
    """The value of the record with this number; one in `_BAD_EVERY` becomes a dead letter."""
    if number % _BAD_EVERY != _BAD_EVERY - 1:
        return _picture(number % len(SIZES))
    bad = number // _BAD_EVERY
    kinds = (_NO_HEADER + b"%d" % bad, _NO_PICTURE + b"%d" % bad, _damaged(bad % len(SIZES)))
    return kinds[bad % len(kinds)]


def expected(value: bytes | None) -> Content:
    """What the outcome of a record with this value has to say."""
    whole = value or b""
    digest = hashlib.sha256(whole).hexdigest()
    if whole[:1] in _MAPS:  # an envelope of msgpack; a good one, as no harm sends others
        return replace(expected(msgpack.unpackb(whole)["data"]), frame=digest)
    if not whole:
        return Content("rejected", "empty", frame=digest)
    if (size := _sizes().get(whole)) is not None or (size := _decoded_size(whole, digest)) is not None:
        return Content("detected", size=size, boxes=(_box(*size),), frame=digest)
    if not whole.startswith(b"\xff\xd8\xff"):
        return Content("rejected", "unsupported_format", frame=digest)
    return Content("rejected", "damaged" if _has_header(whole) else "bad_header", frame=digest)


@cache
def _picture(index: int) -> bytes:
    return images.jpeg(*SIZES[index], seed=index)


@cache
def _damaged(index: int) -> bytes:
    """Cut behind its header."""
    whole = _picture(index)
    return whole[: len(whole) * 9 // 10]


@cache
def _sizes() -> dict[bytes, tuple[int, int]]:
    return {_picture(index): size for index, size in enumerate(SIZES)}


_known: dict[str, tuple[int, int] | None] = {}  # by the digest: the frames themselves may be large


def _decoded_size(value: bytes, digest: str) -> tuple[int, int] | None:
    """Of a JPEG that a harm has made itself; None where it cannot be decoded as a whole."""
    if digest not in _known:
        try:
            height, width, _ = simplejpeg.decode_jpeg(value, "RGB").shape
            _known[digest] = width, height
        except ValueError:
            _known[digest] = None
    return _known[digest]


def _has_header(value: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg_header(value)
    except ValueError:
        return False
    return True


def _box(width: int, height: int) -> tuple[float, ...]:
    return width * 0.25, height * 0.25, width * 0.75, height * 0.75
