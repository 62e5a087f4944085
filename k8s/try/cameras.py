"""Cameras for a try-out: draws three streets into a temporary folder, then becomes `sluice produce --loop`.

What stands on the command line goes to `sluice produce`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

from consumer.tools.images import Encoding
from consumer.tools.scenes import DEMO_SEEDS, Street

FRAMES = 100
Time = Literal["day", "dusk", "night"]
TIMES: Final[tuple[Time, ...]] = ("day", "dusk", "night")


def film(seed: int, time_of_day: Time, folder: Path, frames: int) -> None:
    """`frames` pictures of one street, in the order of their names."""
    folder.mkdir(parents=True)
    street, encoding = Street(seed, time_of_day=time_of_day), Encoding()
    for index in range(frames):
        folder.joinpath(f"{index:04}.jpg").write_bytes(encoding.jpeg(street.frame(index)[0]).data)


def main(arguments: list[str], frames: int = FRAMES) -> None:
    """Draw, then hand this process over to `sluice produce`, which so gets the signals."""
    folder = Path(tempfile.mkdtemp(prefix="cameras-"))
    for seed, time_of_day in zip(DEMO_SEEDS, TIMES, strict=False):
        film(seed, time_of_day, folder / time_of_day, frames)
    sources = [part for name in TIMES for part in ("--source", f"street-{name}={folder / name}")]
    os.execvp("sluice", ["sluice", "produce", *arguments, *sources, "--loop"])  # noqa: S606, S607 - of the image


if __name__ == "__main__":
    main(sys.argv[1:])
