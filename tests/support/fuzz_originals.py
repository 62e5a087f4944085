"""Whole images of every kind, for the fuzz tests to break, and what those that break them share."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import cache

import images


@cache
def originals() -> dict[str, bytes]:
    """Whole ones, of the kinds that a decoder has different code for; small, with a few of a camera's size."""
    made: dict[str, Callable[[], bytes]] = {
        "JPEG": lambda: images.jpeg(64, 48),
        "JPEG 4:4:4": lambda: images.jpeg(61, 47, subsampling="444"),
        "JPEG 4:2:2": lambda: images.jpeg(33, 17, subsampling="422"),
        "JPEG of a camera": lambda: images.jpeg(640, 480),
        "JPEG, one pixel": lambda: images.jpeg(1, 1),
        "JPEG, progressive": lambda: images.progressive_jpeg(64, 48),
        "JPEG, progressive, of a camera": lambda: images.progressive_jpeg(320, 240),
        "JPEG, a scan per component": lambda: images.many_scans_baseline_jpeg(3),
        "JPEG with restarts": images.restarting_jpeg,
        "JPEG, grey": lambda: images.grey_jpeg(64, 48),
        "JPEG, CMYK": images.cmyk_jpeg,
        "JPEG, turned": images.exif_rotated_jpeg,
        "JPEG, colour profile": lambda: profiled(images.jpeg(64, 48)),
        "PNG": images.png,
        "PNG, grey": lambda: images.png(channels=1),
        "PNG, 16 bit": lambda: images.png(depth=16),
        "PNG, alpha": lambda: images.png(channels=4),
        "PNG, alpha, 16 bit": lambda: images.png(channels=4, depth=16),
        "PNG, interlaced": images.interlaced_png,
        "PNG, 256 colours": images.palette_png,
        "PNG, 2 colours": lambda: images.palette_png(depth=1),
        "PNG, 16 colours, transparent": lambda: images.palette_png(depth=4, transparent=True),
        "PNG, turned": images.exif_rotated_png,
        "PNG, animated": images.animated_png,
        "PNG of a camera": lambda: images.png(320, 240),
        "WebP": images.webp,
        "WebP, lossless": lambda: images.webp(quality=101),
        "WebP, alpha": lambda: images.webp(channels=4),
        "WebP, lossless, alpha": lambda: images.webp(quality=101, channels=4),
        "WebP, turned": images.exif_rotated_webp,
        "WebP, animated": images.animated_webp,
        "WebP of a camera": lambda: images.webp(640, 480),
    }
    return {name: make() for name, make in made.items()}


def kind_of(payload: bytes) -> str:
    """JPEG, PNG, WebP, or empty for what no longer begins as one of them."""
    if payload.startswith(b"\xff\xd8"):
        return "JPEG"
    return "PNG" if payload.startswith(b"\x89PNG") else "WebP" if payload.startswith(b"RIFF") else ""


def times(part: bytes, count: int) -> bytes:
    """Repeated so often, but for no more than a megabyte: the memory that is watched is the decoder's."""
    return part * min(count, 1 + 2**20 // (len(part) or 1))


def profiled(payload: bytes, parts: int = 3, size: int = 2000) -> bytes:
    """A colour profile in several segments, as photo programs write them."""
    segments = [
        b"\xff\xe2" + struct.pack(">H", size + 16) + b"ICC_PROFILE\0" + bytes((n + 1, parts)) + bytes(size)
        for n in range(parts)
    ]
    return images.with_segments(payload, *segments)


def flip(payload: bytes, chance: random.Random) -> bytes:
    """Bits, in the header more often than not."""
    changed = bytearray(payload or b"\0")
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        at = chance.randrange(min(len(changed), 400) if chance.random() < 0.6 else len(changed))
        changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)
