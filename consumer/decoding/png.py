"""Makes a PNG safe for libpng: checks it, removes metadata, and unpacks it within the size that its header claims.

Measured with OpenCV 5.0: a PNG of 64x48 pixels and 780 kB, with 100 compressed text chunks, cost 6 s and 800 MB.
500 kB of packed zeros after the last row cost 1.1 s. In practice neither cost has a limit, and neither is visible in
the header.
"""

from __future__ import annotations

import struct
import zlib

from consumer.decoding.headers import Header, Refused

# The chunks that pixels and orientation depend on. The others are metadata, or later frames of an animation.
_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf"})
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Enough for 16 MiB in chunks of 1 kB. Encoders write chunks of 8 kB and more.
_MAX_CHUNKS = 16_384


def essential(payload: bytes, header: Header, max_pixels: int) -> bytes:
    """Rewrite a PNG as one with only IHDR, PLTE, tRNS, eXIf and one uncompressed IDAT chunk.

    To unpack and store the data here costs 20 % more than libpng alone. (To check first and unpack twice cost 70 %.)
    It verifies checksums, length and filters. So damaged data never reach libpng, which would print to stderr. For an
    animation, the default image is used, which is nearly always the first frame.

    Args:
        payload: The PNG file.
        header: Its header, from `read_header`.
        max_pixels: The maximum number of pixels of 4 bytes each. With 16 bits per channel, fewer pixels are allowed. A
            frame of 33 million pixels with 8 bytes each cost 814 MiB and 2.5 s, from a file of 258 kB.

    Returns:
        A PNG file with the same pixels.

    Raises:
        Refused: The PNG is damaged, invalid or too large.
    """
    passes = _passes(payload, header)
    expected = sum(rows * stride for rows, stride in passes)
    if expected - sum(rows for rows, _ in passes) > 4 * max_pixels:
        raise Refused(
            "too_many_pixels",
            f"the PNG of {header.width}x{header.height} pixels unpacks to {expected} bytes; decode.max_pixels is "
            f"{max_pixels}, of 4 bytes each",
        )
    kept, packed = _chunks(payload)
    unpack = zlib.decompressobj()
    try:
        # One byte more than expected, so that zlib reaches the end of the stream. libpng, too, ignores data after it.
        raw = unpack.decompress(b"".join(packed), expected + 1)
    except zlib.error as error:
        raise Refused("damaged", f"the PNG data cannot be unpacked: {error}") from None
    if len(raw) < expected or (len(raw) == expected and not unpack.eof):
        raise Refused("damaged", f"the PNG data end early: {len(raw)} bytes of {expected} and a checksum")
    at = 0
    for rows, stride in passes:
        if max(raw[at : at + rows * stride : stride]) > 4:
            raise Refused("damaged", "the PNG has a row of an unknown filter")
        at += rows * stride
    stored = zlib.compress(memoryview(raw)[:expected], 0)
    del raw  # it can be as large as the image
    return b"".join((payload[:8], *kept, _chunk(b"IDAT", stored), _chunk(b"IEND", b"")))


def _chunks(payload: bytes) -> tuple[list[memoryview], list[memoryview]]:
    """Return the whole chunks to keep, and the contents of the IDAT chunks. Raises Refused."""
    view = memoryview(payload)
    kept: list[memoryview] = []
    packed: list[memoryview] = []
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(payload):
            raise Refused("damaged", f"the PNG is cut off: it has no end after {len(payload)} bytes")
        length, kind = struct.unpack_from(">I4s", payload, at)
        end = at + 12 + length
        if end > len(payload):
            raise Refused("damaged", f"the PNG is cut off: a chunk needs {end} bytes of {len(payload)}")
        if kind in _KEPT or kind == b"IDAT":
            if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", payload, end - 4)[0]:
                raise Refused("damaged", f"the PNG chunk at byte {at} does not match its checksum")
            if kind == b"IDAT":
                packed.append(view[at + 8 : end - 4])
            else:
                kept.append(view[at:end])
        elif kind == b"IEND":
            return kept, packed
        elif not kind[0] & 0x20:  # a capital letter marks a chunk that a decoder must understand
            raise Refused("bad_header", f"the PNG has an unknown critical chunk at byte {at}")
        at = end
    raise Refused("bad_header", f"the PNG has more than {_MAX_CHUNKS} chunks")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I4s", len(content), kind), content, struct.pack(">I", checksum)))


def _passes(payload: bytes, header: Header) -> list[tuple[int, int]]:
    """Return (number of rows, bytes per row with its filter byte) for each pass; one pass if not interlaced.

    Raises Refused if IHDR is invalid.
    """
    try:
        depth, colour, compression, filtering, interlace = struct.unpack_from(">5B", payload, 24)
    except struct.error:
        raise Refused("bad_header", f"the file ends within its header, after {len(payload)} bytes") from None
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise Refused(
            "bad_header",
            f"IHDR has bit depth {depth}, colour type {colour}, compression {compression}, filter {filtering}, "
            f"interlace {interlace}",
        )
    bits = depth * _CHANNELS[colour]
    passes = []
    for x, y, dx, dy in _ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(header.width - x) // dx), -(-(header.height - y) // dy)
        if columns > 0 and rows > 0:
            passes.append((rows, 1 + (columns * bits + 7) // 8))
    return passes
