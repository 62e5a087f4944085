"""What `detector.device` asks for, before any backend is imported."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from consumer.errors import ModelError


class Wanted(NamedTuple):
    """`auto` takes a GPU where there is one; `cuda` insists on one. `ordinal` counts GPUs from 0."""

    kind: Literal["auto", "cpu", "cuda"]
    ordinal: int = 0


def parse_device(device: str) -> Wanted:
    """Read auto, cpu, cuda or cuda:N. Raises ModelError for anything else."""
    if device == "auto":
        return Wanted("auto")
    if device == "cpu":
        return Wanted("cpu")
    if match := re.fullmatch(r"cuda(?::(\d{1,3}))?", device):
        return Wanted("cuda", int(match[1] or 0))
    raise ModelError(f"detector.device is {device!r}: expected auto, cpu, cuda or cuda:N, as in cuda:0")
