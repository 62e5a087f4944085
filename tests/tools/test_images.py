"""Frames come from files, folders, videos, cameras and Python; invalid sources are refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from consumer.errors import ConfigError
from consumer.tools.images import DEFAULT_FPS, Encoding, Image, ImageSource, content_type, frames_source, parse_source

PIXELS = np.zeros((48, 64, 3), np.uint8)
JPEG = Encoding().jpeg(PIXELS)


def decoded(image: Image) -> Any:
    return cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)


def test_image_files_are_sent_unchanged_in_order_of_name(tmp_path: Path) -> None:
    """Catches a re-encoding, which would hide images that the consumer cannot decode."""
    files = {"b.PNG": b"\x89PNG\r\n\x1a\nrest", "a.jpg": b"\xff\xd8\xffbroken", "c.webp": b"RIFF1234WEBPrest"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("no image")
    source = parse_source(f"cam-1={tmp_path}", Encoding())
    assert list(source.open()) == [
        Image(files["a.jpg"], "image/jpeg"),
        Image(files["b.PNG"], "image/png"),
        Image(files["c.webp"], "image/webp"),
    ]
    assert (source.name, source.fps, source.live) == ("cam-1", DEFAULT_FPS, False)
    assert list(parse_source(f"one={tmp_path / 'a.jpg'}", Encoding()).open()) == [Image(files["a.jpg"], "image/jpeg")]


def test_a_size_resizes_and_re_encodes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG.data)
    (image,) = parse_source(f"a={tmp_path}", Encoding(size=(32, 16))).open()
    assert decoded(image).shape == (16, 32, 3)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xffbroken")
    with pytest.raises(ConfigError, match="cannot be decoded"):
        list(parse_source(f"a={tmp_path}", Encoding(size=(32, 16))).open())


def test_a_video_keeps_its_rate_and_is_encoded_frame_by_frame(tmp_path: Path) -> None:
    path = tmp_path / "v=1.avi"  # a path may contain the separator
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 48))
    for n in range(5):
        writer.write(np.full((48, 64, 3), n * 50, np.uint8))
    writer.release()
    source = parse_source(f"v={path}", Encoding(quality=80, size=(32, 24)))
    images = list(source.open())
    assert (source.fps, source.live, len(images)) == (12.5, False, 5)
    assert all(image.content_type == content_type(image.data) == "image/jpeg" for image in images)
    brightness = [decoded(image).mean() for image in images]
    assert brightness == sorted(brightness)
    assert decoded(images[0]).shape == (24, 32, 3)


def test_cameras_and_streams_are_live_and_opened_late() -> None:
    for place in ("0", "rtsp://camera.invalid/1"):
        assert parse_source(f"a={place}", Encoding()).live


@pytest.mark.parametrize("text", ["", "cam-1", "cam-1=", "=x.mp4", "\x1b[2J=x", " a=x", "a=/does/not/exist", "a=."])
def test_an_invalid_source_is_refused_before_anything_is_sent(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an empty folder
    with pytest.raises(ConfigError, match="--source") as caught:
        parse_source(text, Encoding())
    assert str(caught.value).isprintable()


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(ConfigError, match="cannot open"):
        parse_source(f"a={tmp_path / 'x.mp4'}", Encoding())


def test_arrays_are_encoded_and_bytes_are_sent_unchanged() -> None:
    images = list(frames_source("a", [PIXELS, b"\x89PNG\r\n\x1a\n", b"?"]).open())
    assert [image.content_type for image in images] == ["image/jpeg", "image/png", "application/octet-stream"]
    assert decoded(images[0]).shape == PIXELS.shape
    assert images[1].data == b"\x89PNG\r\n\x1a\n"


def test_a_loop_reads_once_and_repeats_from_memory() -> None:
    """Catches a load generator that is limited by its own JPEG encoder."""
    opened = []

    def images() -> Iterator[Image]:
        opened.append(1)
        yield from (Image(b"1", "x"), Image(b"2", "x"))

    looped = ImageSource("a", images).looped()
    assert [image.data for image in islice(looped.open(), 7)] == [b"1", b"2"] * 3 + [b"1"]
    assert opened == [1]


def test_a_loop_over_more_than_the_cache_holds_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a whole day of video in memory, and frames that are lost at the limit of the cache."""
    monkeypatch.setattr("consumer.tools.images._LOOP_CACHE_BYTES", 1)
    looped = frames_source("a", [b"1", b"2", b"3"]).looped()
    assert [image.data for image in islice(looped.open(), 7)] == [b"1", b"2", b"3"] * 2 + [b"1"]


def test_a_loop_over_no_frames_ends() -> None:
    """Catches an endless busy loop over a video without frames."""
    assert list(frames_source("a", []).looped().open()) == []
