"""Images for tests: good ones, odd ones, and hostile ones. Deterministic, small, and made here byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"


def scene(width: int, height: int, seed: int = 0, channels: int = 3) -> Image:
    """Soft shapes with some noise: compresses as a photo does, and no two rows or columns are alike."""
    random = np.random.default_rng((seed, width, height))
    coarse = random.integers(0, 256, (height // 24 + 2, width // 24 + 2, channels), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    noise = random.integers(-6, 7, smooth.shape, dtype=np.int16)
    picture: Image = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return picture


# Good ones.


def jpeg(width: int = 640, height: int = 480, seed: int = 0, quality: int = 85, subsampling: str = "420") -> bytes:
    return bytes(simplejpeg.encode_jpeg(scene(width, height, seed), quality, "RGB", subsampling))


def progressive_jpeg(width: int = 640, height: int = 480, seed: int = 0) -> bytes:
    return _encode(".jpg", scene(width, height, seed), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def grey_jpeg(width: int = 640, height: int = 480, seed: int = 0) -> bytes:
    return bytes(simplejpeg.encode_jpeg(scene(width, height, seed, 1), 85, "GRAY", "Gray"))


def cmyk_jpeg(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return bytes(simplejpeg.encode_jpeg(scene(width, height, seed, 4), 95, "CMYK", "444"))


def png(width: int = 64, height: int = 48, seed: int = 0, channels: int = 3, depth: int = 8) -> bytes:
    """`channels` 1 to 4 without 2; `depth` 8 or 16 bits."""
    pixels = scene(width, height, seed, channels)
    return _encode(".png", pixels if depth == 8 else pixels.astype(np.uint16) * 257 + 3)


def palette_png(width: int = 64, height: int = 48, *, depth: int = 8, transparent: bool = False) -> bytes:
    colours = 2**depth
    random = np.random.default_rng(depth)
    indices = random.integers(0, colours, (height, width), dtype=np.uint8)
    bits = np.unpackbits(indices[..., None], axis=-1)[..., 8 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    chunks = [png_chunk(b"PLTE", random.bytes(3 * colours))]
    if transparent:
        chunks.append(png_chunk(b"tRNS", random.bytes(colours)))
    return png_of(width, height, zlib.compress(rows), depth=depth, colour=3, before=chunks)


def interlaced_png(width: int = 61, height: int = 47, seed: int = 0) -> bytes:
    """Adam7, which OpenCV does not write."""
    pixels = scene(width, height, seed)
    adam7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [pixels[y::dy, x::dx] for x, y, dx, dy in adam7]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    return png_of(width, height, zlib.compress(rows), interlace=1)


def webp(width: int = 64, height: int = 48, seed: int = 0, quality: int = 80, channels: int = 3) -> bytes:
    """`quality` above 100 is lossless; 4 `channels` have transparency."""
    return _encode(".webp", scene(width, height, seed, channels), cv2.IMWRITE_WEBP_QUALITY, quality)


def exif_rotated_jpeg(orientation: int = 6, width: int = 64, height: int = 48, *, big_endian: bool = False) -> bytes:
    return with_segments(jpeg(width, height), exif_segment(tiff(orientation, big_endian=big_endian)))


def exif_rotated_png(orientation: int = 6, width: int = 64, height: int = 48) -> bytes:
    return with_chunks(png(width, height), png_chunk(b"eXIf", tiff(orientation)))


def exif_rotated_webp(orientation: int = 6, width: int = 64, height: int = 48) -> bytes:
    return webp_extended(width, height, [webp(width, height)[12:], webp_chunk(b"EXIF", tiff(orientation))], flags=0x08)


def restarting_jpeg(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    """With a restart marker behind every second block row, as hardware encoders write them."""
    return _encode(".jpg", scene(width, height, seed), cv2.IMWRITE_JPEG_RST_INTERVAL, 2)


def animated_png() -> bytes:
    """Two frames; the default image is the first."""
    first, second = png(64, 48, 1), png(64, 48, 2)
    control = struct.pack(">IIIIHHBB", 64, 48, 0, 0, 1, 10, 0, 0)
    (size,) = struct.unpack_from(">I", second, 33)
    return b"".join(
        (
            first[:33],
            png_chunk(b"acTL", struct.pack(">II", 2, 0)),
            png_chunk(b"fcTL", struct.pack(">I", 0) + control),
            first[33:-12],
            png_chunk(b"fcTL", struct.pack(">I", 1) + control),
            png_chunk(b"fdAT", struct.pack(">I", 2) + second[41 : 41 + size]),
            first[-12:],
        )
    )


def animated_webp() -> bytes:
    control = bytes(6) + _u24(63) + _u24(47) + _u24(100) + b"\0"
    frames = [webp_chunk(b"ANMF", control + webp(64, 48, seed)[12:]) for seed in (1, 2)]
    return webp_extended(64, 48, [webp_chunk(b"ANIM", bytes(6)), *frames], flags=0x02)


# Hostile ones.


def truncated_jpeg() -> bytes:
    whole = jpeg()
    return whole[: len(whole) // 2]


def huge_claim_jpeg() -> bytes:
    """700 bytes that claim 32767x32767; OpenCV under its defaults spends 6 GiB on them."""
    return _claim(jpeg(16, 16), 32767, 32767)


def many_scans_jpeg(scans: int = 2000, side: int = 2000) -> bytes:
    """50 kB that repeat one refinement scan: 5 s in OpenCV."""
    whole = _encode(".jpg", np.full((side, side, 3), 128, np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    body = whole[:-2]
    last = body[body.rfind(b"\xff\xda") :]
    return body + last * (scans - body.count(b"\xff\xda")) + whole[-2:]


def many_scans_baseline_jpeg(scans: int = 2000) -> bytes:
    """A sequential JPEG, one component a scan, the last one over and over: the same attack without "progressive"."""
    colour, grey = jpeg(64, 64, subsampling="444"), grey_jpeg(64, 64)
    start, data = grey.find(b"\xff\xda"), grey[grey.find(b"\xff\xda") + 10 : -2]
    scan = [b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, component, 0, 0, 63, 0) + data for component in (1, 2, 3)]
    assert start > 0
    return colour[: colour.find(b"\xff\xda")] + scan[0] + scan[1] + scan[2] * (scans - 2) + b"\xff\xd9"


def many_segments_jpeg() -> bytes:
    """8 MB of empty comments before the picture: 2 million turns for a reader that has no bound."""
    return with_segments(jpeg(16, 16), b"\xff\xfe\x00\x02" * 2_000_000)


def second_frame_jpeg() -> bytes:
    """A small frame header for the guard, a huge one behind it for a decoder that takes the last."""
    whole = jpeg(16, 16)
    at = whole.find(b"\xff\xc0")
    huge = _claim(whole, 32767, 32767)[at : at + 19]
    return whole[: at + 19] + huge + whole[at + 19 :]


def thumbnail_jpeg() -> bytes:
    """Huge, with a small JPEG in its Exif segment for a guard that searches for the first frame header."""
    return with_segments(huge_claim_jpeg(), exif_segment(tiff(1) + jpeg(16, 16)))


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """100 kB that unpack to 112 MB of black, one bit a pixel."""
    rows = bytes(height * (1 + (width + 7) // 8))
    return png_of(width, height, zlib.compress(rows, 9), depth=1, colour=0)


def png_text_bomb(chunks: int = 100) -> bytes:
    """`png(64, 48)` with texts that unpack to 8 MB each: 6 s and 800 MB in OpenCV."""
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_900_000).replace(b"\0", b"a"), 9))
    return with_chunks(png(64, 48), text * chunks)


def png_data_bomb(surplus: int = 100_000_000) -> bytes:
    """`png(64, 48)` with zeros packed behind its last row: a second for every 450 MB in OpenCV."""
    rows = b"".join(b"\0" + row.tobytes() for row in scene(64, 48)[..., ::-1])
    return png_of(64, 48, zlib.compress(rows + bytes(surplus), 9))


def many_chunks_png() -> bytes:
    return with_chunks(png(64, 48), png_chunk(b"teXt", b"") * 500_000)


def wide_png(width: int = 33_000_000) -> bytes:
    return png_of(width, 1, zlib.compress(bytes(1 + width // 8), 9), depth=1, colour=0)


def webp_bomb() -> bytes:
    """A lossless WebP header of 16384x16384 and nothing else."""
    bits = (16383 | 16383 << 14).to_bytes(4, "little")
    return webp_file(webp_chunk(b"VP8L", b"\x2f" + bits + bytes(64)))


def webp_canvas_bomb() -> bytes:
    """An animation of one small frame on a canvas of 16 million by 16 pixels."""
    frame = webp_chunk(b"ANMF", bytes(6) + _u24(63) + _u24(47) + _u24(100) + b"\0" + webp(64, 48)[12:])
    return webp_extended(2**24, 16, [webp_chunk(b"ANIM", bytes(6)), frame], flags=0x02)


def webp_frame_bomb() -> bytes:
    """A canvas of 64x48 for the guard, with a huge picture in it for a decoder that goes by the picture."""
    return webp_extended(64, 48, [webp_bomb()[12:]], flags=0)


def _cut(whole: bytes, share: float = 0.5) -> bytes:
    return whole[: int(len(whole) * share)]


def _flipped(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]


@cache
def hostile() -> dict[str, tuple[bytes, str]]:
    """name: (bytes, the reason for which a decoder with the default configuration rejects them)."""
    return {
        "empty": (b"", "empty"),
        "too large": (jpeg(16, 16) + bytes(16 * 2**20), "too_large"),
        "text": (b"not an image" * 100, "unsupported_format"),
        "one byte": (b"\xff", "unsupported_format"),
        "GIF": (b"GIF89a" + bytes(100), "unsupported_format"),
        "TIFF": (b"II*\0" + bytes(100), "unsupported_format"),
        "RIFF that is not WebP": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(100), "unsupported_format"),
        "JPEG, magic only": (b"\xff\xd8\xff", "bad_header"),
        "JPEG, cut in its header": (jpeg()[:150], "bad_header"),
        "JPEG, cut": (truncated_jpeg(), "damaged"),
        "JPEG, last byte missing": (jpeg()[:-1], "damaged"),
        "JPEG, zeroed in the middle": (jpeg()[:9000] + bytes(2000) + jpeg()[11000:], "damaged"),
        "JPEG, 0 pixels high": (_claim(jpeg(16, 16), 16, 0), "bad_header"),
        "JPEG, huge claim": (huge_claim_jpeg(), "too_many_pixels"),
        "JPEG, huge claim behind a thumbnail": (thumbnail_jpeg(), "too_many_pixels"),
        "JPEG, two frame headers": (second_frame_jpeg(), "bad_header"),
        "JPEG, 2,000 scans": (many_scans_jpeg(), "too_many_scans"),
        "JPEG, 2,000 sequential scans": (many_scans_baseline_jpeg(), "too_many_scans"),
        "JPEG, 2 million segments": (many_segments_jpeg(), "bad_header"),
        "JPEG, fill bytes only": (b"\xff\xd8" + b"\xff" * 8_000_000, "bad_header"),
        "JPEG, segment of length 0": (with_segments(jpeg(16, 16), b"\xff\xe0\0\0"), "bad_header"),
        "PNG, magic only": (_PNG, "bad_header"),
        "PNG, no IHDR": (_PNG + png_chunk(b"IDAT", zlib.compress(bytes(100))), "bad_header"),
        "PNG, bit depth 3": (png_of(8, 8, zlib.compress(bytes(100)), depth=3, colour=0), "bad_header"),
        "PNG, cut": (_cut(png()), "damaged"),
        "PNG, no end": (png()[:-12], "damaged"),
        "PNG, bit flipped": (_flipped(png(), 2000), "damaged"),
        "PNG, rows missing": (png_of(64, 48, zlib.compress(bytes(193 * 40))), "damaged"),
        "PNG, huge claim": (png_of(100_000, 100_000, b""), "too_many_pixels"),
        "PNG, bomb": (png_bomb(), "too_many_pixels"),
        "PNG, 8 bytes a pixel": (png_of(7680, 4320, b"", depth=16, colour=6), "too_many_pixels"),
        "PNG, 33 million by 1": (wide_png(), "too_many_pixels"),
        "PNG, 500,000 chunks": (many_chunks_png(), "bad_header"),
        "WebP, magic only": (b"RIFF\x24\0\0\0WEBP", "bad_header"),
        "WebP, cut": (_cut(webp()), "damaged"),
        "WebP, cut with a matching length": (webp_file(webp()[12:-400]), "damaged"),
        "WebP, bomb": (webp_bomb(), "too_many_pixels"),
        "WebP, canvas bomb": (webp_canvas_bomb(), "too_many_pixels"),
        "WebP, frame larger than its canvas": (webp_frame_bomb(), "damaged"),
    }


# Building blocks.


def with_segments(whole: bytes, *segments: bytes) -> bytes:
    """The JPEG with segments put in behind its first marker."""
    return whole[:2] + b"".join(segments) + whole[2:]


def exif_segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content


def tiff(orientation: int, *, big_endian: bool = False) -> bytes:
    order, mark = (">", b"MM") if big_endian else ("<", b"II")
    return mark + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(whole: bytes, *chunks: bytes) -> bytes:
    """The PNG with chunks put in behind its IHDR."""
    return whole[:33] + b"".join(chunks) + whole[33:]


def png_of(
    width: int,
    height: int,
    packed: bytes,
    *,
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    before: Sequence[bytes] = (),
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = (png_chunk(b"IHDR", header), *before, png_chunk(b"IDAT", packed), png_chunk(b"IEND", b""))
    return _PNG + b"".join(chunks)


def with_right_checksums(whole: bytes) -> bytes:
    """The PNG with a matching CRC in every chunk, as far as chunks can be told; any other file as it is."""
    fixed, at = bytearray(whole), 8
    while whole.startswith(_PNG) and at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4], "big")
        if end + 4 > len(whole):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def webp_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def webp_file(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def webp_extended(width: int, height: int, chunks: Sequence[bytes], *, flags: int) -> bytes:
    canvas = bytes([flags, 0, 0, 0]) + _u24(width - 1) + _u24(height - 1)
    return webp_file(webp_chunk(b"VP8X", canvas) + b"".join(chunks))


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _claim(whole: bytes, width: int, height: int) -> bytes:
    """The JPEG with other sides in its frame header."""
    at = whole.find(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def _encode(suffix: str, pixels: Image | NDArray[np.uint16], *options: int) -> bytes:
    ok, encoded = cv2.imencode(suffix, pixels, options)
    assert ok
    return bytes(encoded.tobytes())
