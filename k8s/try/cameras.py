"""Cameras for a try-out: replaces itself with `sluice produce --loop` on the clips of streets of the package.

The arguments are passed on to `sluice produce`.
"""

from __future__ import annotations

import os
import sys

from consumer.tools.assets import CLIPS


def main(arguments: list[str]) -> None:
    """Replace this process with `sluice produce`, so that signals reach it directly."""
    sources = [part for clip in CLIPS for part in ("--source", f"{clip.stem}={clip}")]
    os.execvp("sluice", ["sluice", "produce", *arguments, *sources, "--loop"])  # noqa: S606, S607 - of the image


if __name__ == "__main__":
    main(sys.argv[1:])
