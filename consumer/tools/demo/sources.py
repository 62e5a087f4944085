"""The cameras of the demo: drawn streets, or video files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from consumer.tools.images import Encoding, Image, ImageSource, frames_source, parse_source
from consumer.tools.scenes import DEMO_SEEDS, Street

WIDTH, HEIGHT = 640, 360
TIMES: Final = ("day", "dusk", "night")
# Drawing a frame costs a core some 20 ms, which the consumer would lack, so streets are filmed before the cameras
# start, and a film begins again at its end. 300 frames take 6 s, about as long as the consumer takes to start.
_FILMED: Final = 300
_MOST: Final = 100
_LEAST: Final = 20


def street_cameras(
    count: int, fps: float, frames: int, seeds: Sequence[int] = DEMO_SEEDS, *, on_frame: Callable[[int, int], None]
) -> list[ImageSource]:
    """`count` cameras; beyond the number of streets, two look at one street at different times."""
    streets = min(count, len(seeds))
    rounds = -(-count // streets)
    length = min(frames, max(_LEAST, min(_MOST, _FILMED // streets)))
    films: list[list[bytes]] = []
    for number, seed in enumerate(seeds[:streets]):
        on_frame(number * length, streets * length)
        films.append(film(seed, number, length, fps, on_frame=_offset(on_frame, number * length, streets * length)))
    cameras = []
    for number in range(count):
        round_, street = divmod(number, streets)
        start = round_ * length // rounds
        name = f"street-{TIMES[street % len(TIMES)]}" + (f"-{round_ + 1}" if round_ else "")
        shown = films[street][start:] + films[street][:start]
        cameras.append(frames_source(name, shown, fps=fps).looped())
    return cameras


def _offset(on_frame: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda done: on_frame(before + done, total)


def film(seed: int, number: int, length: int, fps: float, *, on_frame: Callable[[int], None]) -> list[bytes]:
    """`length` frames of one street as JPEG. `number` decides the time of day: day, dusk, night, day, ..."""
    street = Street(seed, width=WIDTH, height=HEIGHT, time_of_day=TIMES[number % len(TIMES)])
    encoding = Encoding()
    frames = []
    for index in range(length):
        frames.append(encoding.jpeg(street.frame(index, fps or 10.0)[0]).data)
        on_frame(index + 1)
    return frames


def video_cameras(videos: Sequence[Path], count: int) -> list[ImageSource]:
    """`count` cameras, which show the videos in turn, each from its beginning and without end."""
    cameras: list[ImageSource] = []
    for number, path in enumerate(itertools.islice(itertools.cycle(videos), count)):
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:64] or "video"
        # Two files may have one name, so every camera after the first of a name is numbered.
        taken = sum(camera.name == stem or camera.name.rpartition("-")[0] == stem for camera in cameras)
        name = f"{stem}-{number + 1}" if taken else stem
        cameras.append(parse_source(f"{name}={path}", Encoding()).looped())
    return cameras


def shared_out(cameras: Sequence[ImageSource], frames: int) -> list[ImageSource]:
    """The cameras, each limited to its share of `frames`; the first ones take what does not divide."""
    share, rest = divmod(frames, len(cameras))
    return [_limited(camera, share + (number < rest)) for number, camera in enumerate(cameras)]


def shares(cameras: Sequence[ImageSource], frames: int) -> dict[str, int]:
    """Name to number of frames, as `shared_out` limits them."""
    share, rest = divmod(frames, len(cameras))
    return {camera.name: share + (number < rest) for number, camera in enumerate(cameras)}


def _limited(camera: ImageSource, frames: int) -> ImageSource:
    def images() -> itertools.islice[Image]:
        return itertools.islice(camera.open(), frames)

    return replace(camera, open=images)
