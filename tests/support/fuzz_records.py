"""Malformed records: one for each seed, always the same. Envelopes, raw images with headers, and keys of all kinds."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any, Final

import msgpack

from consumer import messages as wire
from consumer.types import Headers, Record

_IMAGES: Final = (
    b"\xff\xd8\xff\xe0" + b"image" * 20,
    b"\x89PNG\r\n\x1a\n" + bytes(60),
    b"RIFF\x24\0\0\0WEBP" + bytes(30),
)
_TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_NAMES: Final = ("source_id", "source-id", "frame_id", "frame-id", "captured_at_ms", "content_type", "traceparent")
_NAMES_TOO: Final = ("data", "Data", "", "x" * 5000, "source_id\0", "é", "captured-at-ms", "unknown")
# What a text can hold that a log, a terminal, a label or a reader would stumble over.
_TEXTS: Final = (
    "cam-1",
    "",
    " cam",
    "cam ",
    "\x1b[2J",
    "a\nb",
    "a\r\nlevel=critical",
    "\u202eabc",
    "\0",
    "\ufeff",
    "🎥" * 40,
)
_TEXTS_TOO: Final = ("x" * 128, "x" * 129, "x" * 4096, "x" * 4097, "\u2028", "%s%n{0}${jndi:ldap://x}", '"},{"', _TRACE)
_NUMBERS: Final = (0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64 - 1, -(2**63))
_HEADERS: Final = ("source-id", "frame-id", "captured-at-ms", "content-type", "traceparent", "ce_id", "")
_HEADERS_TOO: Final = (
    "__connect.errors.offset",
    "sluice-rejected-at-ms",
    "sluice-truncated",
    "sluice-original-bytes",
    "é\n",
)
_CONTENTS: Final = (
    b"",
    b"cam-9",
    b"\xff\xfe",
    b"1700000000000",
    b"-1",
    b"9" * 40,
    b"application/msgpack",
    b"image/jpeg",
)
_CONTENTS_TOO: Final = (b"APPLICATION/MSGPACK ; x=y", b"true", b"\0", b"a\nb", _TRACE.encode(), b"x" * 10_000)
# Heads that claim much and bring little: maps, arrays, texts, binaries and extensions of up to 4 GiB.
_CLAIMS: Final = tuple(
    head + size
    for head, sizes in (
        (b"\xdf", (b"\xff\xff\xff\xff", b"\0\0\0\x40", b"\0\0\0\x41")),
        (b"\xde", (b"\xff\xff", b"\0\x06")),
        (b"\xdd", (b"\xff\xff\xff\xff", b"\0\x10\0\0")),
        (b"\xdb", (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")),
        (b"\xc6", (b"\xff\xff\xff\xff", b"\0\0\1\0")),
        (b"\xc9", (b"\xff\xff\xff\xff\x01", b"\0\0\0\x04\xff")),
        (b"\xc1", (b"",)),
    )
    for size in sizes
)


def record(seed: int) -> Record:
    """The record of this seed."""
    chance = random.Random(f"record {seed}")
    value = chance.choice(_VALUES)(chance)
    if value is not None and chance.random() < 0.6:
        value = mutated(value, chance)
    key = chance.choice(
        (b"cam-1", b"cam-1", None, b"", _text(chance).encode(), chance.randbytes(chance.randrange(200)))
    )
    timestamp = chance.choice((0, 7, None, -1, 2**53 + 1, 2**63 - 1, -(2**63)))
    return Record(key, value, _headers(chance), timestamp)


def mutated(value: bytes, chance: random.Random) -> bytes:
    """Bytes changed, put in, taken out, repeated or cut off: near the beginning, where msgpack says what follows."""
    changed = bytearray(value)
    for _ in range(chance.choice((1, 1, 2, 3, 12))):
        at = chance.randrange(min(len(changed), 60) + 1 if chance.random() < 0.5 else len(changed) + 1)
        match chance.randrange(7):
            case 0:
                changed[at : at + 1] = bytes((chance.randrange(256),))
            case 1:
                changed[at : at + 1] = chance.choice(_CLAIMS)
            case 2:
                changed[at:at] = chance.randbytes(chance.choice((1, 2, 9)))
            case 3:
                del changed[at : at + chance.choice((1, 2, 9))]
            case 4:
                changed[at:at] = changed[at : at + chance.choice((1, 5, 40))] * chance.choice((1, 3, 100))
            case 5:
                changed[at:at] = chance.choice((b"\x81\xa1x", b"\x91", b"\x80", b"\xc0")) * chance.choice((1, 40, 3000))
            case _:
                del changed[at:]
    return bytes(changed)


def _text(chance: random.Random) -> str:
    return chance.choice(_TEXTS if chance.random() < 0.6 else _TEXTS_TOO)


def _headers(chance: random.Random) -> Headers:
    if chance.random() < 0.4:
        return ()
    made: list[tuple[str, bytes | None]] = []
    for _ in range(chance.choice((1, 1, 2, 5, 60))):
        name = chance.choice(_HEADERS if chance.random() < 0.7 else _HEADERS_TOO)
        contents = _CONTENTS if chance.random() < 0.7 else _CONTENTS_TOO
        made.append((name, chance.choice((*contents, None, _text(chance).encode()))))
    return tuple(made)


def _anything(chance: random.Random, depth: int = 0) -> Any:
    """A value of any msgpack type, some of them nested."""
    return chance.choice(_PLAIN if depth == 3 or chance.random() < 0.7 else _NESTED)(chance, depth)


_Make = Callable[[random.Random, int], Any]
_PLAIN: Final[tuple[_Make, ...]] = (
    lambda chance, _: chance.choice((None, True, False, 1.5, float("nan"), float("inf"))),
    lambda chance, _: chance.choice(_NUMBERS),
    lambda chance, _: _text(chance),
    lambda chance, _: chance.choice((*_IMAGES, b"", chance.randbytes(20))),
    lambda chance, _: msgpack.ExtType(chance.randrange(128), chance.randbytes(chance.randrange(20))),
    lambda chance, _: msgpack.Timestamp(chance.randrange(2**33), chance.randrange(10**9)),
)
_NESTED: Final[tuple[_Make, ...]] = (
    lambda chance, depth: [_anything(chance, depth + 1) for _ in range(chance.randrange(5))],
    lambda chance, depth: {_text(chance): _anything(chance, depth + 1) for _ in range(chance.randrange(5))},
)


def _proper(chance: random.Random) -> bytes:
    """What a producer sends, with every field or with few."""
    return wire.encode_envelope(
        chance.choice(_IMAGES),
        source_id=_text(chance),
        frame_id=chance.choice((None, 7, _text(chance))),
        captured_at_ms=chance.choice((None, 5, *_NUMBERS)),
        content_type=chance.choice((None, "image/jpeg")),
        traceparent=chance.choice((None, _TRACE, _text(chance))),
    )


def _odd(chance: random.Random) -> bytes:
    """A map of known and unknown fields with values of any type, a name perhaps twice, and a count that may lie."""
    fields = [
        (chance.choice(_NAMES if chance.random() < 0.7 else _NAMES_TOO), _anything(chance))
        for _ in range(chance.choice((0, 1, 3, 6, 6, 70)))
    ]
    if chance.random() < 0.6:
        fields.append(("data", chance.choice(_IMAGES)))
    count = len(fields) + chance.choice((0, 0, 0, 0, 1, -1, 10))
    head = (
        struct.pack(">BH", 0xDE, max(count, 0)) if count > 15 or chance.random() < 0.3 else bytes((0x80 | count & 15,))
    )
    return head + b"".join(msgpack.packb(name) + msgpack.packb(value) for name, value in fields)


def _bomb(chance: random.Random) -> bytes:
    """Nested deeper, or claiming more, than anyone needs."""
    depth = chance.choice((10, 900, 1100, 20_000))
    inner = chance.choice((b"\x91", b"\x81\xa1x", b"\x81", b"\xdd\0\0\0\x01", chance.choice(_CLAIMS)))
    return (
        chance.choice((b"", b"\x81\xa1x", b"\x82\xa4data\xc4\x01x\xa1x"))
        + inner * depth
        + chance.choice((b"", b"\xc0"))
    )


def _raw(chance: random.Random) -> bytes:
    return chance.choice(_IMAGES) + chance.randbytes(chance.randrange(100))


_VALUES: Final[tuple[Callable[[random.Random], bytes | None], ...]] = (
    _proper, _proper, _odd, _odd, _odd, _bomb, _raw, _raw,
    lambda chance: chance.randbytes(chance.randrange(300)),
    lambda chance: chance.choice((None, b"", chance.choice(_CLAIMS))),
)  # fmt: skip
