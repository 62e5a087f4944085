"""Ways to break a JPEG, a PNG or a WebP by its own structure: what is moved, forged or contradicts itself."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

import images
from fuzz_originals import flip, kind_of, originals, profiled, times

Way = Callable[[bytes, random.Random], bytes]

_MARKERS = (0x00, 0x01, 0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xCC, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xE0)
_MARKERS += (0xE1, 0xE2, 0xEE, 0xFE, 0xFF)
_SIDES = (0, 1, 2, 7, 8, 16, 63, 65, 255, 256, 1024, 1448, 2048, 16_383, 16_384, 32_767, 65_500, 65_535)
_LONG_SIDES = (*_SIDES, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


# Ways to break a JPEG: segments are cut out, moved, forged


def _segments(payload: bytes) -> list[bytes]:
    """SOI, the segments, and from SOS on the rest in one piece."""
    parts, at = [payload[:2]], 2
    while at + 4 <= len(payload) and payload[at] == 0xFF and payload[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
        parts.append(payload[at:end])
        at = end
    return [*parts, payload[at:]]


def _shuffle_segments(payload: bytes, chance: random.Random) -> bytes:
    parts = _segments(payload)
    match chance.randrange(3):
        case 0:
            del parts[chance.randrange(len(parts))]
        case 1:
            parts.insert(chance.randrange(len(parts) + 1), times(chance.choice(parts), chance.choice((1, 1, 5, 4000))))
        case _:
            first, second = chance.randrange(len(parts)), chance.randrange(len(parts))
            parts[first], parts[second] = parts[second], parts[first]
    return b"".join(parts)


def _mix_segments(payload: bytes, chance: random.Random) -> bytes:
    """Tables, frame header or scan of another JPEG: a picture that contradicts itself."""
    others = [whole for whole in originals().values() if kind_of(whole) == "JPEG"]
    parts, other = _segments(payload), _segments(chance.choice(others))
    parts[chance.randrange(1, len(parts)) if len(parts) > 1 else 0] = chance.choice(other[1:])
    return b"".join(parts)


def _forge_marker(payload: bytes, chance: random.Random) -> bytes:
    """A marker anywhere, the coded data included; with a length that is right, wrong or missing."""
    content = chance.randbytes(chance.choice((0, 1, 6, 15, 300)))
    length = chance.choice((len(content) + 2, 0, 1, 2, 0xFFFF))
    marker = bytes((0xFF, chance.choice(_MARKERS)))
    forged = marker + (struct.pack(">H", length) + content if chance.random() < 0.7 else b"")
    parts = _segments(payload)
    at = len(b"".join(parts[: chance.randrange(1, len(parts) + 1)]))
    if chance.random() < 0.5:
        at = chance.randrange(len(payload) + 1)
    return payload[:at] + forged + payload[at:]


def _lie_in_jpeg(payload: bytes, chance: random.Random) -> bytes:
    """Other sides, precision, components or sampling in the frame header."""
    at = next((found for sof in (b"\xff\xc0", b"\xff\xc2") if (found := payload.find(sof)) >= 0), -1)
    if at < 0 or at + 19 > len(payload):
        return flip(payload, chance)
    header = bytearray(payload[at : at + 19])
    match chance.randrange(5):
        case 0 | 1:
            header[5:9] = struct.pack(">HH", chance.choice(_SIDES), chance.choice(_SIDES))
        case 2:
            header[1] = chance.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB))  # lossless, arithmetic, ...
        case 3:
            header[9] = chance.randrange(8)
        case _:
            header[10 + chance.randrange(9)] = chance.choice((0, 0x11, 0x22, 0x41, 0x44, 0xFF))
    return payload[:at] + bytes(header) + payload[at + 19 :]


def _restart(payload: bytes, chance: random.Random) -> bytes:
    """A restart interval that is not kept, and restart markers where none belong."""
    parts = _segments(payload)
    interval = struct.pack(">HH", 4, chance.choice((0, 1, 2, 7, 65_535)))
    scan = bytearray(parts[-1])
    for _ in range(chance.choice((0, 1, 8, 100))):
        at = chance.randrange(len(scan) + 1)
        scan[at:at] = bytes((0xFF, 0xD0 + chance.randrange(8)))
    return b"".join((*parts[:-1], b"\xff\xdd", interval, scan))


def _more_scans(payload: bytes, chance: random.Random) -> bytes:
    at = payload.rfind(b"\xff\xda")
    return payload if at < 0 else payload[:-2] + times(payload[at:-2], chance.choice((1, 5, 20, 200))) + payload[-2:]


def _exif(payload: bytes, chance: random.Random) -> bytes:
    """Exif whose directory is endless, points to itself or beyond the file, or fills the segment; profiles likewise."""
    order = chance.choice((b"II", b"MM"))
    sign = "<" if order == b"II" else ">"
    entries, offset = chance.choice((0, 1, 2, 5000, 65_535)), chance.choice((0, 7, 8, 65_000, 2**31 - 1, 2**32 - 1))
    entry = struct.pack(f"{sign}HHIHH", chance.choice((0x0112, 0x8769, 0)), 3, chance.choice((1, 2**32 - 1)), 6, 0)
    content = order + struct.pack(f"{sign}HIH", 42, offset, entries) + entry * min(entries, 4000)
    if kind_of(payload) == "PNG":
        return images.with_chunks(payload, images.png_chunk(b"eXIf", content))
    if kind_of(payload) == "WebP":
        return images.webp_extended(64, 48, [payload[12:], images.webp_chunk(b"EXIF", content)], flags=0x08)
    return images.with_segments(payload, images.exif_segment(content[:65_000]))


def _profile(payload: bytes, chance: random.Random) -> bytes:
    return profiled(payload, *chance.choice(((1, 0), (1, 65_000), (2, 1), (255, 500), (255, 4000))))


# Ways to break a PNG


def _chunks(payload: bytes) -> list[bytes]:
    parts, at = [payload[:8]], 8
    while at + 12 <= len(payload):
        end = at + 12 + int.from_bytes(payload[at : at + 4], "big")
        parts.append(payload[at:end])
        at = end
    return parts


def _shuffle_chunks(payload: bytes, chance: random.Random) -> bytes:
    parts = _chunks(payload)
    match chance.randrange(3):
        case 0:
            del parts[chance.randrange(len(parts))]
        case 1:
            parts.insert(chance.randrange(len(parts) + 1), times(chance.choice(parts), chance.choice((1, 1, 5, 2000))))
        case _:
            others = [whole for whole in originals().values() if kind_of(whole) == "PNG"]
            parts[chance.randrange(len(parts))] = chance.choice(_chunks(chance.choice(others)))
    return b"".join(parts)


def _lie_in_png(payload: bytes, chance: random.Random) -> bytes:
    """Another IHDR before the same data: sides, depth, colours, interlacing."""
    if len(payload) < 33:
        return flip(payload, chance)
    header = bytearray(payload[16:29])
    if chance.random() < 0.6:
        header[:8] = struct.pack(">II", chance.choice(_LONG_SIDES), chance.choice(_LONG_SIDES))
    else:
        header[8 + chance.randrange(5)] = chance.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return payload[:8] + images.png_chunk(b"IHDR", bytes(header)) + payload[33:]


def _png_bomb(payload: bytes, chance: random.Random) -> bytes:
    """Compressed metadata or picture data that unpack to far more than they should."""
    packed = zlib.compress(bytes(chance.choice((1000, 1_000_000, 8_000_000))), 9)
    kind, head = chance.choice(((b"zTXt", b"k\0\0"), (b"iCCP", b"p\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"IDAT", b"")))
    chunk = images.png_chunk(kind, head + packed) * chance.choice((1, 1, 10))
    parts = _chunks(payload)
    parts.insert(chance.randrange(1, len(parts) + 1), chunk)
    return b"".join(parts)


def _repack(payload: bytes, chance: random.Random) -> bytes:
    """Rows with other filters, of another number, or other bytes, packed properly."""
    parts = _chunks(payload)
    try:
        rows = bytearray(zlib.decompress(b"".join(p[8:-4] for p in parts if p[4:8] == b"IDAT")))
    except zlib.error:
        return flip(payload, chance)
    for _ in range(chance.choice((1, 8, 50))):
        rows[chance.randrange(len(rows) or 1) : 1] = bytes((chance.randrange(6),)) if rows else b""
    packed = zlib.compress(bytes(rows[: chance.choice((len(rows), len(rows) // 2))]))
    kept = [part for part in parts if part[4:8] != b"IDAT"]
    return b"".join((*kept[:-1], images.png_chunk(b"IDAT", packed), *kept[-1:]))


# Ways to break a WebP


def _webp_chunks(payload: bytes) -> list[bytes]:
    parts, at = [], 12
    while at + 8 <= len(payload):
        end = at + 8 + (size := int.from_bytes(payload[at + 4 : at + 8], "little")) + size % 2
        parts.append(payload[at:end])
        at = end
    return parts


def _shuffle_webp(payload: bytes, chance: random.Random) -> bytes:
    parts = _webp_chunks(payload) or [b""]
    others = [whole for whole in originals().values() if kind_of(whole) == "WebP"]
    match chance.randrange(3):
        case 0:
            del parts[chance.randrange(len(parts))]
        case 1:
            parts.insert(chance.randrange(len(parts) + 1), times(chance.choice(parts), chance.choice((1, 3, 500))))
        case _:
            parts[chance.randrange(len(parts))] = chance.choice(_webp_chunks(chance.choice(others)))
    return images.webp_file(b"".join(parts))


def _lie_in_webp(payload: bytes, chance: random.Random) -> bytes:
    """Another canvas around the picture, with other flags, or frames that leave it."""
    side = chance.choice((1, 16, 64, 65, 1024, 16_384, 2**24)), chance.choice((1, 16, 48, 1024, 16_384, 2**24))
    parts = _webp_chunks(payload)
    if chance.random() < 0.5:
        return images.webp_extended(*side, parts, flags=chance.randrange(256))
    place = [chance.choice((0, 1, 31, 2**23)).to_bytes(3, "little") for _ in range(2)]
    size = [(n - 1).to_bytes(3, "little") for n in side]
    frame = images.webp_chunk(b"ANMF", b"".join((*place, *size, bytes(3), bytes((chance.randrange(4),)), *parts)))
    frames = [images.webp_chunk(b"ANIM", bytes(6)), times(frame, chance.choice((1, 2, 100)))]
    return images.webp_extended(64, 48, frames, flags=0x02)


JPEG: tuple[Way, ...] = (_shuffle_segments, _mix_segments, _forge_marker, _forge_marker, _lie_in_jpeg, _lie_in_jpeg)
JPEG += (_restart, _more_scans, _exif, _profile)
PNG: tuple[Way, ...] = (_shuffle_chunks, _lie_in_png, _lie_in_png, _png_bomb, _repack, _exif)
WEBP: tuple[Way, ...] = (_shuffle_webp, _shuffle_webp, _lie_in_webp, _lie_in_webp, _exif)
