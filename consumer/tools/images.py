"""Sources of frames: videos, image files, folders, cameras, streams and Python iterables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumer.errors import ConfigError
from consumer.messages import is_source_id
from consumer.observability.logging import printable

DEFAULT_FPS: Final = 25.0  # for folders, and for videos without a known rate
_LOOP_CACHE_BYTES: Final = 256 * 2**20
_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")


class Image(NamedTuple):
    """An encoded frame."""

    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A named stream of encoded frames.

    Attributes:
        name: The source ID.
        open: Returns the frames from the beginning. The call or its iterator raises ConfigError on failure.
        fps: The rate of the source in frames/s.
        live: Whether the source sets the pace. Frames that are not read in time are skipped.
    """

    name: str
    open: Callable[[], Iterable[Image]]
    fps: float = DEFAULT_FPS
    live: bool = False

    def looped(self) -> ImageSource:
        """The same source in an endless loop. Up to 256 MiB of encoded frames are cached for the later rounds."""
        return replace(self, open=lambda: _repeated(self.open, keep=not self.live))


@dataclass(frozen=True, slots=True)
class Encoding:
    """How to encode frames as JPEG. `size` is width and height in pixels; None keeps the size."""

    quality: int = 90
    size: tuple[int, int] | None = None

    def jpeg(self, pixels: NDArray[np.uint8]) -> Image:
        """Encode BGR pixels of shape (height, width, 3).

        Raises:
            ConfigError: OpenCV cannot encode them.
        """
        import cv2

        scaled = cv2.resize(pixels, self.size, interpolation=cv2.INTER_AREA) if self.size else pixels
        encoded, data = cv2.imencode(".jpg", scaled, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        if not encoded:
            raise ConfigError(f"cannot encode a frame of shape {pixels.shape} as JPEG")
        return Image(data.tobytes(), "image/jpeg")


def frames_source(
    name: str,
    frames: Iterable[NDArray[np.uint8] | bytes],
    *,
    fps: float = DEFAULT_FPS,
    encoding: Encoding | None = None,
) -> ImageSource:
    """A source of frames from Python.

    Args:
        name: The source ID.
        frames: BGR arrays of shape (height, width, 3), which are encoded; or encoded images, which are sent unchanged.
        fps: The rate in frames/s.
        encoding: How to encode arrays. Default: JPEG of quality 90.
    """
    jpeg = (encoding or Encoding()).jpeg

    def images() -> Iterator[Image]:
        for frame in frames:
            yield Image(frame, content_type(frame)) if isinstance(frame, bytes) else jpeg(frame)

    return ImageSource(name, images, fps)


def parse_source(text: str, encoding: Encoding) -> ImageSource:
    """Parse `NAME=PLACE`.

    Args:
        text: PLACE is a file, a folder, a URL such as rtsp://..., or the number of a camera.
        encoding: How to encode videos, cameras and streams, and image files that are resized.

    Raises:
        ConfigError: The text has another form, or there is nothing to read.
    """
    name, separator, place = text.partition("=")
    if not separator or not place:
        raise ConfigError(f"--source {printable(text)}: expected NAME=FILE, for example cam-1=street.mp4")
    if not is_source_id(name):
        raise ConfigError(f"--source {printable(text)}: a name has 1 to 128 printable characters")
    if "://" in place or place.isdecimal():
        return ImageSource(name, lambda: _captured(place, encoding), live=True)
    path = Path(place)
    if path.is_dir():
        return _files_source(name, sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES), path, encoding)
    if not path.is_file():
        raise ConfigError(f"--source {name}: there is no file or folder {printable(place)}")
    with path.open("rb") as file:
        is_image = content_type(file.read(16)) != "application/octet-stream"
    if is_image:
        return _files_source(name, [path], path, encoding)
    return ImageSource(name, lambda: _captured(place, encoding), fps=_own_fps(place))


def content_type(data: bytes) -> str:
    """The media type of an encoded image by its signature; application/octet-stream if unknown."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


def _files_source(name: str, paths: list[Path], where: Path, encoding: Encoding) -> ImageSource:
    if not paths:
        raise ConfigError(f"--source {name}: no .jpg, .jpeg, .png or .webp in {printable(str(where))}")

    def images() -> Iterator[Image]:
        for path in paths:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise ConfigError(f"--source {name}: cannot read {printable(str(path))}: {error.strerror}") from None
            yield _resized(data, path, encoding) if encoding.size else Image(data, content_type(data))

    return ImageSource(name, images)


def _resized(data: bytes, path: Path, encoding: Encoding) -> Image:
    import cv2

    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ConfigError(f"{printable(str(path))} cannot be decoded, so it cannot be resized; leave out --size")
    return encoding.jpeg(pixels)


def _capture(place: str) -> Any:
    import cv2

    capture = cv2.VideoCapture(int(place) if place.isdecimal() else place)
    if not capture.isOpened():
        raise ConfigError(f"cannot open {printable(place)} as a video, a stream or a camera")
    return capture


def _own_fps(place: str) -> float:
    import cv2

    capture = _capture(place)
    try:
        fps = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    return fps if 0 < fps <= 1000 else DEFAULT_FPS


def _captured(place: str, encoding: Encoding) -> Iterator[Image]:
    capture = _capture(place)
    try:
        while True:
            success, pixels = capture.read()
            if not success:
                return
            yield encoding.jpeg(pixels)
    finally:
        capture.release()


def _repeated(open_: Callable[[], Iterable[Image]], *, keep: bool) -> Iterator[Image]:
    """Repeat the frames without end. Ends after a round without frames: the next one would have none."""
    kept: list[Image] | None = [] if keep else None
    size = 0
    while True:
        count = 0
        for image in open_():
            count += 1
            if kept is not None:
                kept.append(image)
                size += len(image.data)
                if size > _LOOP_CACHE_BYTES:
                    kept = None
            yield image
        if not count:
            return
        while kept:
            yield from kept
