"""Reads the image header, before anything is decoded or allocated for the image.

The sender is not trusted. So the limits must hold for what the decoders really do, not for what a well-formed file
means. The JPEG reader follows the marker reader of libjpeg (jdmarker.c): it skips bytes between segments, and refuses a
second frame header. It also refuses a file that the two readers could interpret differently. libwebp and libpng use the
same fields as the readers here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Format = Literal["JPEG", "PNG", "WebP"]

# The maximum side of a JPEG in pixels. A PNG may claim 2^31, which could overflow the arithmetic of other libraries.
_MAX_SIDE = 65_535
# One segment costs 0.2 us. Photos have 5 to 20 segments; one with a long colour profile has 300.
_MAX_SEGMENTS = 4_096

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are DHT, JPG and DAC
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})  # stuffing, TEM, RSTn: no length field follows


class Refused(Exception):  # noqa: N818 - not an error of the program: the same call turns it into a `Rejected`
    """The frame cannot become a canvas.

    Args:
        reason: One of `types.REASONS`.
        detail: An explanation for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image.

    `orientation`, `components` and `scans` are set for JPEG only. OpenCV rotates PNG and WebP itself.

    Attributes:
        format: The image format.
        width: The stored width in pixels. If `orientation` is 5 to 8, it is the height of the upright image.
        height: The stored height in pixels.
        orientation: The Exif orientation, 1 to 8.
        components: The number of colour components.
        scans: An upper bound of the scans that libjpeg would process. 1 if libjpeg stops after the first scan.
    """

    format: Format
    width: int
    height: int
    orientation: int = 1
    components: int = 3
    scans: int = 1


def read_header(payload: bytes) -> Header:
    """Read the header of a JPEG, PNG or WebP image.

    Args:
        payload: The encoded image.

    Raises:
        Refused: The magic bytes are unknown, or the header is truncated or invalid.
    """
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
        if marker == 0xFF:  # a fill byte: the code of the marker follows
            continue
        at += 1
        if marker in _BARE:
            continue
        if marker in (_SOI, _EOI):
            raise Refused("bad_header", f"JPEG marker 0x{marker:02X} at byte {at - 2}, before the first scan")
        (length,) = struct.unpack_from(">H", payload, at)
        if length < 2:  # libjpeg would continue after the length field, another reader before it
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
    """Build the header from the frame header. `sos` is the position of the length field of the first scan header."""
    if frame is None:
        raise Refused("bad_header", "a JPEG scan without a frame header before it")
    marker, height, width, components = frame
    scans = 1
    # libjpeg continues after the first scan only in these two cases.
    if marker in _PROGRESSIVE or payload[sos + 2] < components:
        # Every scan begins with these two bytes, and coded data cannot contain them. So the count is an upper bound,
        # also for a hostile file. It is too high if later metadata contains the two bytes by chance.
        scans = payload.count(b"\xff\xda", sos - 2)
    return Header("JPEG", width, height, orientation, components, scans)


def _exif_orientation(tiff: bytes) -> int:
    """Return the orientation, 1 to 8; or 1 (as stored) if the Exif data has no valid orientation."""
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
        # The canvas size. libwebp fails if a still image has another size, or if a frame of an animation exceeds it.
        width = int.from_bytes(payload[24:27], "little") + 1
        height = int.from_bytes(payload[27:30], "little") + 1
    elif chunk == b"VP8 ":
        start_code, width, height = struct.unpack_from("<3sHH", payload, 23)
        if start_code != b"\x9d\x01\x2a":
            raise Refused("bad_header", "the WebP does not begin with a key frame")
        width, height = width & 0x3FFF, height & 0x3FFF  # the two upper bits are the scale
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
