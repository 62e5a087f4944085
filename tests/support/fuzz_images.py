"""Malformed images: one for each seed, always the same. What is broken is the structure as often as the bytes.

`image(seed)` takes one or two of the originals (JPEG, PNG and WebP of many kinds) and one to three ways to break them.
"""

from __future__ import annotations

import random

import images
from fuzz_formats import JPEG, PNG, WEBP, Way
from fuzz_originals import flip, kind_of, originals, times


def image(seed: int) -> bytes:
    """The malformed image of this seed. One in a hundred is left whole, so that the harness is seen to see pictures."""
    chance = random.Random(f"image {seed}")
    name = chance.choice(list(originals()))
    payload = originals()[name]
    if seed % 100 == 0:
        return payload
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3))):
        payload = chance.choice(_WAYS[kind_of(payload)])(payload, chance)
    # Without this nearly every PNG would end at a checksum, and nothing behind it would be tried.
    return images.with_right_checksums(payload) if chance.random() < 0.8 else payload


# Ways to break any file


def _overwrite(payload: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(payload) + 1)
    new = chance.choice((b"\0", b"\xff", b"\xff\xd9", b"\x80\0", chance.randbytes(1))) * chance.choice((1, 2, 16, 300))
    return payload[:at] + new + payload[at + len(new) :]


def _insert(payload: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(payload) + 1)
    return payload[:at] + chance.randbytes(chance.choice((1, 2, 4, 100))) + payload[at:]


def _take_out(payload: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(payload) + 1)
    return payload[:at] + payload[at + chance.choice((1, 2, 4, 100, 1000)) :]


def _truncate(payload: bytes, chance: random.Random) -> bytes:
    return payload[: chance.randrange(min(len(payload), 800) if chance.random() < 0.4 else len(payload) or 1)]


def _splice(payload: bytes, chance: random.Random) -> bytes:
    """The head of one file and the tail of another, of any kind."""
    other = chance.choice(list(originals().values()))
    return payload[: chance.randrange(len(payload) + 1)] + other[chance.randrange(len(other)) :]


def _repeat(payload: bytes, chance: random.Random) -> bytes:
    """A stretch of the file once more, or many times."""
    first = chance.randrange(len(payload) or 1)
    part = payload[first : first + chance.choice((4, 12, 100, 2000))]
    return payload[:first] + times(part, chance.choice((2, 3, 40))) + payload[first + len(part) :]


def _lengthen(payload: bytes, chance: random.Random) -> bytes:
    """Something behind the end: thermal data, a film, or the marker of a scan by the thousand."""
    return payload + chance.choice((payload, chance.randbytes(50), bytes(100_000), b"\xff\xda" * 5000))


_ANY: tuple[Way, ...] = (flip, flip, _overwrite, _insert, _take_out, _truncate, _splice, _repeat, _lengthen)
_WAYS = {"": _ANY, "JPEG": _ANY + JPEG, "PNG": _ANY + PNG, "WebP": _ANY + WEBP}
