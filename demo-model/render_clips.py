"""Render the clips that `sluice demo`, `sluice bench` and the try-out play: one street by day, at dusk and at night.

    python demo-model/render_clips.py

Writes `street-day.mp4`, `street-dusk.mp4` and `street-night.mp4` to `consumer/tools/assets/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import cv2

from scenes import DEMO_SEEDS, Street

WIDTH, HEIGHT = 640, 360  # pixels
FPS: Final = 8.0
FRAMES: Final = 32
ASSETS: Final = Path(__file__).parents[1] / "consumer" / "tools" / "assets"


def demo_streets() -> list[Street]:
    """The streets of the clips, in the order of `consumer.tools.assets.CLIPS`."""
    return [Street(seed, width=WIDTH, height=HEIGHT) for seed in DEMO_SEEDS]


def render(street: Street, path: Path, frames: int) -> None:
    """Write the first `frames` frames of a street as MPEG-4 Part 2, which every build of OpenCV with FFmpeg decodes.

    Raises:
        RuntimeError: OpenCV cannot write the file.
    """
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise RuntimeError(f"OpenCV cannot write {path}")
    for index in range(frames):
        writer.write(street.frame(index, FPS)[0])
    writer.release()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS, metavar="DIR", help="folder of the clips")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames in each clip")
    options = parser.parse_args()
    for street in demo_streets():
        path = options.out / f"street-{street.time_of_day}.mp4"
        render(street, path, options.frames)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
