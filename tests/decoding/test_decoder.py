"""The decoder gives the pixels of Ultralytics, rejects hostile images with a reason, and writes only into its slot."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import images
from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.types import REASONS, Letterbox, LetterboxPolicy, Rejected

POLICY = LetterboxPolicy()
CANARY = 0xA5
MARGIN = 4096


def decoder(policy: LetterboxPolicy = POLICY, **options: Any) -> Decoder:
    return Decoder(DecodeConfig(**options), policy)


def decode_guarded(tested: Decoder, payload: bytes) -> tuple[Letterbox | Rejected, NDArray[np.uint8]]:
    """Return (outcome, slot). Asserts that nothing was written before or after the slot."""
    memory = np.full(tested.slot_bytes + 2 * MARGIN, CANARY, np.uint8)
    slot = memory[MARGIN:-MARGIN]
    outcome = tested.decode(payload, slot)
    assert (memory[:MARGIN] == CANARY).all(), "written before the slot"
    assert (memory[-MARGIN:] == CANARY).all(), "written behind the slot"
    return outcome, slot


def assert_as_ultralytics(payload: bytes, policy: LetterboxPolicy = POLICY, **options: Any) -> Letterbox:
    from ultralytics.data.augment import LetterBox

    original = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
    expected = LetterBox((policy.size, policy.size), auto=policy.rect, stride=policy.stride)(image=original)[..., ::-1]
    outcome, slot = decode_guarded(decoder(policy, **options), payload)
    assert isinstance(outcome, Letterbox), outcome
    assert (outcome.height, outcome.width) == original.shape[:2]
    assert outcome.canvas_shape == expected.shape[:2]
    canvas = slot[: expected.size].reshape(expected.shape)
    np.testing.assert_array_equal(canvas, expected)
    assert (slot[expected.size :] == CANARY).all(), "written behind the canvas"
    return outcome


# Valid images.

FRIENDLY = {
    "JPEG": images.jpeg,
    "JPEG, no scaling, odd height": lambda: images.jpeg(640, 333),
    "JPEG 4:4:4": lambda: images.jpeg(333, 217, subsampling="444"),
    "JPEG 4:2:2": lambda: images.jpeg(333, 217, subsampling="422"),
    "JPEG, quality 30": lambda: images.jpeg(800, 600, quality=30),
    "JPEG, progressive": images.progressive_jpeg,
    "JPEG, a scan per component": lambda: images.many_scans_baseline_jpeg(3),
    "JPEG, grey": images.grey_jpeg,
    "JPEG, CMYK": images.cmyk_jpeg,
    "PNG, grey": lambda: images.png(channels=1),
    "PNG, grey, 16 bit": lambda: images.png(channels=1, depth=16),
    "PNG": images.png,
    "PNG, 16 bit": lambda: images.png(depth=16),
    "PNG, alpha": lambda: images.png(channels=4),
    "PNG, alpha, 16 bit": lambda: images.png(channels=4, depth=16),
    "PNG, interlaced": images.interlaced_png,
    "PNG, 256 colours": images.palette_png,
    "PNG, 2 colours": lambda: images.palette_png(depth=1),
    "PNG, 16 colours, transparent": lambda: images.palette_png(depth=4, transparent=True),
    "PNG, animated": images.animated_png,
    "PNG, surplus data": lambda: images.png_data_bomb(1000),
    "WebP": lambda: images.webp(333, 217),
    "WebP, lossless": lambda: images.webp(333, 217, quality=101),
    "WebP, alpha": lambda: images.webp(channels=4),
    "WebP, animated": images.animated_webp,
}


@pytest.mark.parametrize("name", FRIENDLY)
@pytest.mark.parametrize(
    "policy", [POLICY, LetterboxPolicy(rect=False), LetterboxPolicy(64)], ids=["rect", "square", "rect 64"]
)
def test_pixels_are_those_of_ultralytics(name: str, policy: LetterboxPolicy) -> None:
    """Catches a wrong colour order, resize, padding or rounding, or a format that another library reads differently."""
    assert_as_ultralytics(FRIENDLY[name](), policy)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    width=st.one_of(st.integers(1, 900), st.sampled_from([64, 320, 640])),
    height=st.one_of(st.integers(1, 900), st.sampled_from([48, 240, 480])),
    quality=st.sampled_from([40, 95]),
    size=st.sampled_from([32, 64, 320, 640]),
    rect=st.booleans(),
    suffix=st.sampled_from([".jpg", ".png", ".webp"]),
)
def test_pixels_are_those_of_ultralytics_for_any_size(
    *, width: int, height: int, quality: int, size: int, rect: bool, suffix: str
) -> None:
    """Catches a resize that OpenCV wrote outside the slot (strided rows, one pixel wide, one pixel high)."""
    payload = {
        ".jpg": lambda: images.jpeg(width, height, 0, quality),
        ".png": lambda: images.png(width, height),
        ".webp": lambda: images.webp(width, height, 0, quality),
    }[suffix]()
    assert_as_ultralytics(payload, LetterboxPolicy(size, rect=rect))


@pytest.mark.parametrize("side", [(1, 1), (1, 3000), (3000, 1), (1, 640), (640, 1), (65_000, 8)])
def test_the_thinnest_images_keep_a_pixel(side: tuple[int, int]) -> None:
    """Catches a scaled side of 0, which OpenCV refuses, and the limits of its resize."""
    assert_as_ultralytics(images.jpeg(*side))
    assert_as_ultralytics(images.jpeg(*side), LetterboxPolicy(64, rect=False))


@pytest.mark.parametrize("orientation", range(10))
def test_images_of_a_rotated_camera_become_upright(orientation: int) -> None:
    """Catches a fast path that ignores Exif. OpenCV and Ultralytics rotate, so boxes would be in the wrong place."""
    for payload in (
        images.exif_rotated_jpeg(orientation),
        images.exif_rotated_jpeg(orientation, 640, 480, big_endian=True),
        images.exif_rotated_png(orientation),
        images.exif_rotated_webp(orientation),
    ):
        box = assert_as_ultralytics(payload, LetterboxPolicy(640, rect=False))
        assert (box.width < box.height) == (orientation in {5, 6, 7, 8})


def test_orientation_is_read_as_opencv_reads_it() -> None:
    """Catches an Exif reader that trusts its offsets, or reads another segment than OpenCV does."""
    exif, plain = images.exif_segment(images.tiff(6)), images.jpeg(64, 48)
    xmp = b"\xff\xe1\x00\x10http://ns.ado\0"
    broken = images.tiff(6)[:4] + b"\xff\xff\xff\x7f" + images.tiff(6)[8:]
    for segments in (
        [xmp, exif],
        [exif, xmp],
        [images.exif_segment(images.tiff(1)), exif],
        [exif.replace(b"Exif\0\0", b"Exis\0\0")],
        [images.exif_segment(broken)],
        [images.exif_segment(images.tiff(6)[:15])],
        [images.exif_segment(b"")],
        [images.exif_segment(b"IM" + images.tiff(6)[2:])],
        [images.exif_segment(images.tiff(6).replace(b"*", b"+"))],
    ):
        assert_as_ultralytics(images.with_segments(plain, *segments))


def test_lenient_mode_decodes_a_truncated_jpeg() -> None:
    """Catches `strict: false` without effect. Some real cameras omit their last rows."""
    whole = cv2.imdecode(np.frombuffer(images.jpeg(), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert isinstance(decode_guarded(decoder(), images.truncated_jpeg())[0], Rejected)
    outcome, slot = decode_guarded(decoder(strict=False), images.truncated_jpeg())
    assert isinstance(outcome, Letterbox)
    rows = 180
    np.testing.assert_array_equal(slot[: rows * 640 * 3], whole[:rows].ravel())


def test_results_do_not_depend_on_threads() -> None:
    """Catches scratch memory that is shared between calls."""
    tested = decoder(LetterboxPolicy(320))
    payloads = [make() for make in (*FRIENDLY.values(), images.truncated_jpeg, images.exif_rotated_jpeg)] * 4

    def decoded(payload: bytes) -> tuple[Letterbox | Rejected, int]:
        slot = np.zeros(tested.slot_bytes, np.uint8)
        outcome = tested.decode(payload, slot)
        return outcome, zlib.crc32(slot) if isinstance(outcome, Letterbox) else 0

    expected = [decoded(payload) for payload in payloads]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decoded, payloads)) == expected


def test_a_slot_of_another_shape_raises_an_error() -> None:
    """Catches a bug of the caller that would send good frames to the dead letters."""
    tested = decoder(LetterboxPolicy(64))
    for slot in (
        np.zeros(tested.slot_bytes - 1, np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros(tested.slot_bytes * 2, np.uint8)[::2],
    ):
        with pytest.raises(ValueError, match="slot: expected contiguous uint8"):
            tested.decode(images.png(), slot)


# Hostile images.


@pytest.mark.parametrize("name", images.hostile())
def test_a_hostile_frame_is_rejected_for_the_right_reason(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches guards in the wrong order, damage that a library repairs silently, and libraries that print."""
    payload, reason = images.hostile()[name]
    outcome, _ = decode_guarded(decoder(), payload)
    assert isinstance(outcome, Rejected)
    assert (outcome.stage, outcome.reason) == ("decode", reason), outcome.detail
    assert outcome.reason in REASONS
    assert len(outcome.detail) < 200
    assert outcome.detail.isprintable(), "raw bytes in the detail"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("limit", ["max_bytes", "max_pixels", "max_scans"])
def test_an_image_exactly_at_a_limit_is_accepted(limit: str) -> None:
    """Catches an off-by-one error, and a limit that is not the configured one."""
    payload = images.progressive_jpeg(64, 48)
    exact = {"max_bytes": len(payload), "max_pixels": 64 * 48, "max_scans": payload.count(b"\xff\xda")}[limit]
    assert isinstance(decode_guarded(decoder(**{limit: exact}), payload)[0], Letterbox)
    refused, _ = decode_guarded(decoder(**{limit: exact - 1}), payload)
    assert isinstance(refused, Rejected)
    assert refused.reason == {"max_bytes": "too_large", "max_pixels": "too_many_pixels"}.get(limit, "too_many_scans")
    assert str(exact) in refused.detail
    assert limit in refused.detail


def test_png_pixels_of_more_than_four_bytes_count_for_more() -> None:
    """Catches a limit on pixels only. A PNG of 258 kB, with 16 bits and transparency, cost 814 MiB and 2.5 s."""
    deep, wide = images.png(64, 48, channels=4, depth=16), images.png(64, 48, channels=4)
    assert isinstance(decode_guarded(decoder(max_pixels=64 * 48), wide)[0], Letterbox)
    assert isinstance(decode_guarded(decoder(max_pixels=64 * 48 * 2), deep)[0], Letterbox)
    refused, _ = decode_guarded(decoder(max_pixels=64 * 48 * 2 - 1), deep)
    assert isinstance(refused, Rejected)
    assert refused.reason == "too_many_pixels"


def test_scans_are_not_counted_if_libjpeg_reads_only_one() -> None:
    """Catches a count over the whole file. Thermal data or a film after a photo contain the bytes of the marker."""
    assert_as_ultralytics(images.with_segments(images.jpeg(), b"\xff\xfe\x01\x02" + b"\xff\xda" * 128))
    assert_as_ultralytics(images.jpeg() + b"\xff\xda" * 1000)


_COSTS = """
import json, sys, time
import numpy as np
import images
from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.types import LetterboxPolicy

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024

tested = Decoder(DecodeConfig(), LetterboxPolicy())
slot = np.zeros(tested.slot_bytes, np.uint8)
tested.decode(images.jpeg(), slot), tested.decode(images.png(), slot), tested.decode(images.webp(), slot)
cases = {name: payload for name, (payload, _) in images.hostile().items()}
cases["PNG, texts"], cases["PNG, surplus"] = images.png_text_bomb(), images.png_data_bomb()
costs = {}
for name, payload in cases.items():
    best, peak = 1e9, 0
    for _ in range(3):
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        before = status("VmRSS")
        started = time.perf_counter()
        tested.decode(payload, slot)
        best = min(best, time.perf_counter() - started)
        peak = max(peak, status("VmHWM") - before)
    costs[name] = (best * 1000, peak)
print(json.dumps(costs))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to measure peak memory")
def test_a_hostile_frame_costs_neither_time_nor_memory() -> None:
    """Catches a guard that comes after the work. OpenCV needs 6 GiB, or seconds, for some of these images."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(root), str(root / "tests" / "support")))
    run = subprocess.run(
        [sys.executable, "-c", _COSTS],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    costs: dict[str, tuple[float, float]] = json.loads(run.stdout)
    assert set(images.hostile()) < set(costs)
    slow = {name: cost for name, cost in costs.items() if cost[0] > 50}
    large = {name: cost for name, cost in costs.items() if cost[1] > 64}
    assert not slow, f"(ms, MiB) over 50 ms: {slow}"
    assert not large, f"(ms, MiB) over 64 MiB: {large}"


def test_metadata_bombs_in_a_png_do_not_affect_the_image() -> None:
    """Catches a PNG that goes to libpng unchanged. Its texts would be unpacked, 8 MB for every 8 kB."""
    clean, picture = decode_guarded(decoder(), images.png(64, 48))
    for payload in (images.png_text_bomb(3), images.png_data_bomb(10_000_000)):
        outcome, slot = decode_guarded(decoder(), payload)
        assert outcome == clean
        np.testing.assert_array_equal(slot, picture)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_random_damage_gives_an_image_or_a_rejection(strict: bool) -> None:
    """Catches an exception that would end a decode thread, a write outside the slot, and a frame that never ends."""
    chance = random.Random(20)
    originals = {
        "jpeg": images.jpeg(64, 48),
        "progressive": images.progressive_jpeg(64, 48),
        "turned": images.exif_rotated_jpeg(),
        "cmyk": images.cmyk_jpeg(),
        "png": images.png(),
        "palette": images.palette_png(),
        "interlaced": images.interlaced_png(),
        "webp": images.webp(),
        "alpha": images.webp(channels=4),
        "lossless": images.webp(quality=101),
    }
    tested = decoder(LetterboxPolicy(64), strict=strict, max_pixels=2**22)
    outcomes = dict.fromkeys(originals, 0)
    for turn in range(2500):
        name = chance.choice(list(originals))
        payload = mutated(originals[name], chance)
        started = time.thread_time()  # CPU time, because other load on the machine is not a hang
        outcome, _ = decode_guarded(tested, payload)
        assert time.thread_time() - started < 1, (turn, name)
        if isinstance(outcome, Letterbox):
            outcomes[name] += 1
        else:
            assert outcome.reason in REASONS
            assert outcome.detail.isprintable()
    assert all(outcomes.values()), f"some damage is harmless: {outcomes}"


def mutated(payload: bytes, chance: random.Random) -> bytes:
    """Return the image with bytes changed, inserted, removed or truncated; in the header more often than elsewhere."""
    if chance.random() < 0.1:
        return payload[: chance.randrange(len(payload))]
    changed = bytearray(payload)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(min(len(changed), 200) if chance.random() < 0.6 else len(changed))
        match chance.randrange(4):
            case 0:
                changed[at:at] = chance.randbytes(4)
            case 1:
                del changed[at : at + 3]
            case _:
                changed[at] = chance.choice((0x00, 0xFF, 0xDA, chance.randrange(256)))
    whole = bytes(changed)
    # Otherwise nearly all images would fail at a checksum, and the code after it would not be tested.
    return images.with_right_checksums(whole) if chance.random() < 0.8 else whole
