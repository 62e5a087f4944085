"""What a file says about itself, read before anything is decoded or allocated for it.

The sender is not trusted, so the bounds must hold for what the decoders will really do, not for what a tidy file
would mean. The JPEG walk follows libjpeg's marker reader (jdmarker.c: bytes between segments are skipped, a second
frame header is an error) and refuses where the two could differ. libwebp and libpng take the very fields read here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Format = Literal["JPEG", "PNG", "WebP"]

# The longest side of a JPEG. A PNG may claim 2^31, which other people's arithmetic need not survive.
_MAX_SIDE = 65_535
# A turn of the walk costs 0.2 us. Photos have 5 to 20 segments, one with a long colour profile 300.
_MAX_SEGMENTS = 4_096

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are DHT, JPG and DAC
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})  # stuffing, TEM, RSTn: no length follows


class Refused(Exception):  # noqa: N818 - not an error of the program: it ends as a `Rejected` in the same call
    """This frame cannot become a canvas. `reason` is one of `types.REASONS`, `detail` a sentence for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Header:
    """`width` and `height` are those stored; an `orientation` of 5 to 8 swaps them when the picture is shown.

    `orientation` (Exif, 1 to 8), `components` and `scans` are of JPEG alone; OpenCV turns PNG and WebP by itself.
    `scans` is never less than what libjpeg would work through, and 1 where it stops after the first.
    """

    format: Format
    width: int
    height: int
    orientation: int = 1
    components: int = 3
    scans: int = 1


def read_header(payload: bytes) -> Header:
    """Raises Refused: by the magic bytes, or for a header that is cut off or makes no sense."""
    reader = next((read for magic, read in _READERS if payload.startswith(magic)), None)
    if reader is None:
        raise Refused("unsupported_format", f"{len(payload)} bytes that begin neither as JPEG nor as PNG nor as WebP")
    try:
        header = reader(payload)
    except (struct.error, IndexError):
        raise Refused("bad_header", f"the file ends within its header, after {len(payload)} bytes") from None
    claim = f"the {header.format} header claims {header.width}x{header.height} pixels"
    if header.width == 0 or header.height == 0:
        raise Refused("bad_header", claim)
    if header.width > _MAX_SIDE or header.height > _MAX_SIDE:
        raise Refused("too_many_pixels", f"{claim}; no side may have more than {_MAX_SIDE}")
    return header


def _read_jpeg(payload: bytes) -> Header:
    frame: tuple[int, int, int, int] | None = None  # marker, height, width, components
    orientation: int | None = None
    at = 2
    for _ in range(_MAX_SEGMENTS):
        at = payload.find(b"\xff", at) + 1
        if at == 0:
            raise IndexError
        marker = payload[at]
        if marker == 0xFF:  # a fill byte: the marker's code is still to come
            continue
        at += 1
        if marker in _BARE:
            continue
        if marker in (_SOI, _EOI):
            raise Refused("bad_header", f"JPEG marker 0x{marker:02X} at byte {at - 2}, before the first scan")
        (length,) = struct.unpack_from(">H", payload, at)
        if length < 2:  # libjpeg would go on behind the length, another reader before it
            raise Refused("bad_header", f"JPEG segment 0x{marker:02X} at byte {at - 2} has a length of {length}")
        if marker in _SOF:
            if frame is not None:
                raise Refused("bad_header", f"a second JPEG frame header at byte {at - 2}")
            frame = marker, *struct.unpack_from(">HHB", payload, at + 3)
        elif marker == _APP1 and orientation is None and payload.startswith(b"Exif\0\0", at + 2):
            orientation = _exif_orientation(payload[at + 8 : at + length])
        elif marker == _SOS:
            return _jpeg_header(payload, at, frame, orientation or 1)
        at += length
    raise Refused("bad_header", f"no JPEG scan within {_MAX_SEGMENTS} segments")


def _jpeg_header(payload: bytes, sos: int, frame: tuple[int, int, int, int] | None, orientation: int) -> Header:
    """`sos` is where the length of the first scan's header stands."""
    if frame is None:
        raise Refused("bad_header", "a JPEG scan without a frame header before it")
    marker, height, width, components = frame
    scans = 1
    # libjpeg reads on after the first scan only in these two cases.
    if marker in _PROGRESSIVE or payload[sos + 2] < components:
        # Every scan begins with these two bytes and coded data cannot contain them, so this is an upper bound,
        # whatever the bytes between are made to look like. It is too high by what later metadata may hold by chance.
        scans = payload.count(b"\xff\xda", sos - 2)
    return Header("JPEG", width, height, orientation, components, scans)


def _exif_orientation(tiff: bytes) -> int:
    """1 to 8; 1, as stored, where it says nothing that makes sense."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        magic, directory = struct.unpack_from(f"{order}HI", tiff, 2)
        if magic != 42:
            return 1
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _read_png(payload: bytes) -> Header:
    length, kind, width, height = struct.unpack_from(">I4sII", payload, 8)
    if kind != b"IHDR" or length != 13:
        raise Refused("bad_header", "the PNG does not begin with an IHDR chunk of 13 bytes")
    return Header("PNG", width, height)


def _read_webp(payload: bytes) -> Header:
    size, form, chunk = struct.unpack_from("<I4s4s", payload, 4)
    if form != b"WEBP":
        raise Refused("unsupported_format", "a RIFF file that is not a WebP")
    if chunk == b"VP8X":
        # The canvas; libwebp fails where a still picture has another size, or a frame of an animation leaves it.
        width = int.from_bytes(payload[24:27], "little") + 1
        height = int.from_bytes(payload[27:30], "little") + 1
    elif chunk == b"VP8 ":
        start_code, width, height = struct.unpack_from("<3sHH", payload, 23)
        if start_code != b"\x9d\x01\x2a":
            raise Refused("bad_header", "the WebP does not begin with a key frame")
        width, height = width & 0x3FFF, height & 0x3FFF  # the two bits above ask for scaling
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", payload, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise Refused("bad_header", "the first chunk of the WebP is none of VP8, VP8L, VP8X")
    if len(payload) < size + 8:
        raise Refused("damaged", f"the WebP is cut off: {len(payload)} bytes of {size + 8}")
    return Header("WebP", width, height)


_READERS: tuple[tuple[bytes, Callable[[bytes], Header]], ...] = (
    (b"\xff\xd8", _read_jpeg),
    (b"\x89PNG\r\n\x1a\n", _read_png),
    (b"RIFF", _read_webp),
)
