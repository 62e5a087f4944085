"""The frames that a bench produces: about a megabyte of JPEGs, encoded once, the same in all runs of one bench."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from consumer.errors import ConfigError
from consumer.observability.logging import printable
from consumer.tools.assets import CLIPS

Picture = NDArray[np.uint8]  # (height, width, 3), BGR

WIDTH, HEIGHT = 640, 480  # pixels
MEAN_BYTES: Final = 16_000
COUNT: Final = 64
_TINY: Final = 64  # side in pixels, for runs of very many frames


def cut_frames(videos: Sequence[Path], count: int = COUNT) -> list[bytes]:
    """Cut `count` JPEGs of 640x480 and about 16 kB on average, evenly spread, from videos or the package's clips."""
    videos = videos or CLIPS
    shares = [count // len(videos) + (number < count % len(videos)) for number in range(len(videos))]
    return to_size([p for video, share in zip(videos, shares, strict=True) for p in _cut(video, share)])


def tiny_frames(count: int = COUNT) -> list[bytes]:
    """`count` JPEGs of 64x64 and about 1.5 kB."""
    import cv2

    small: Callable[..., Any] = cv2.resize
    kept = [_jpeg(small(p, (_TINY, _TINY), interpolation=cv2.INTER_AREA), 60) for p in _cut(CLIPS[0], min(count, 8))]
    return [kept[n % len(kept)] for n in range(count)]


def to_size(pictures: Sequence[Picture], mean_bytes: int = MEAN_BYTES) -> list[bytes]:
    """Encode all pictures with the JPEG quality at which their mean size is closest to `mean_bytes`."""
    best: list[bytes] = []
    low, high = 20, 95
    while low <= high:
        quality = (low + high) // 2
        jpegs = [_jpeg(picture, quality) for picture in pictures]
        if not best or abs(mean_size(jpegs) - mean_bytes) < abs(mean_size(best) - mean_bytes):
            best = jpegs
        if mean_size(jpegs) < mean_bytes:
            low = quality + 1
        else:
            high = quality - 1
    return best


def mean_size(frames: Sequence[bytes]) -> float:
    """Mean size of the frames in bytes."""
    return sum(map(len, frames)) / len(frames)


def save(frames: Sequence[bytes], path: Path) -> Path:
    """Write the frames to a file for child processes. Returns its path."""
    path.write_bytes(msgpack.packb(list(frames)))
    return path


def load(path: Path) -> list[bytes]:
    """Read the frames that `save` wrote."""
    frames: list[bytes] = msgpack.unpackb(path.read_bytes())
    return frames


def _cut(video: Path, count: int) -> Iterator[Picture]:
    """`count` frames, evenly spread over the first 400, cropped to 4:3 around the centre and resized."""
    import cv2

    capture = cv2.VideoCapture(str(video))
    length = min(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0, 400)
    if length < 1:
        raise ConfigError(f"--video {printable(str(video))}: cannot be opened as a video")
    wanted = {n * length // count for n in range(count)}
    try:
        for number in range(length):
            if not capture.grab():
                break
            if number in wanted:
                yield _fitted(capture.retrieve()[1], cv2.resize)
    finally:
        capture.release()


def _fitted(picture: Any, resize: Callable[..., Any]) -> Picture:
    height, width = picture.shape[:2]
    wide, high = min(width, height * WIDTH // HEIGHT), min(height, width * HEIGHT // WIDTH)
    left, top = (width - wide) // 2, (height - high) // 2
    fitted: Picture = resize(picture[top : top + high, left : left + wide], (WIDTH, HEIGHT))
    return fitted


def _jpeg(picture: Picture, quality: int) -> bytes:
    import cv2

    data: bytes = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return data
