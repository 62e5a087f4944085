"""The cameras of the demo: the clips of streets that come with the package, or video files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from consumer.tools.assets import CLIPS
from consumer.tools.images import Encoding, Image, ImageSource, frames_source, parse_source


def street_cameras(count: int) -> list[ImageSource]:
    """`count` cameras that play the clips; several of one clip start at different frames."""
    films = [[image.data for image in parse_source(f"clip={clip}", Encoding()).open()] for clip in CLIPS[:count]]
    rounds = -(-count // len(films))
    cameras = []
    for number in range(count):
        round_, street = divmod(number, len(films))
        film = films[street]
        start = round_ * len(film) // rounds
        name = CLIPS[street].stem + (f"-{round_ + 1}" if round_ else "")
        cameras.append(frames_source(name, film[start:] + film[:start]).looped())
    return cameras


def video_cameras(videos: Sequence[Path], count: int) -> list[ImageSource]:
    """`count` cameras that play the videos in turn, each in a loop from its beginning."""
    cameras: list[ImageSource] = []
    for number, path in enumerate(itertools.islice(itertools.cycle(videos), count)):
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:64] or "video"
        # Two files may have the same name, so cameras after the first of a name are numbered.
        taken = sum(camera.name == stem or camera.name.rpartition("-")[0] == stem for camera in cameras)
        name = f"{stem}-{number + 1}" if taken else stem
        cameras.append(parse_source(f"{name}={path}", Encoding()).looped())
    return cameras


def limited(cameras: Sequence[ImageSource], frames: int) -> list[ImageSource]:
    """Limit each camera to its share of `frames`."""
    return [_limited(camera, share) for camera, share in zip(cameras, shares(cameras, frames).values(), strict=True)]


def shares(cameras: Sequence[ImageSource], frames: int) -> dict[str, int]:
    """Camera name to number of frames. The first cameras get one more if `frames` cannot be divided evenly."""
    share, remainder = divmod(frames, len(cameras))
    return {camera.name: share + (number < remainder) for number, camera in enumerate(cameras)}


def _limited(camera: ImageSource, frames: int) -> ImageSource:
    def images() -> itertools.islice[Image]:
        return itertools.islice(camera.open(), frames)

    return replace(camera, open=images)
