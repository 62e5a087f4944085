"""Parses the option `detector.device`, without an import of any backend."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from consumer.errors import ModelError


class Wanted(NamedTuple):
    """The requested device.

    Attributes:
        kind: `auto` uses a GPU if there is one, `cuda` requires one.
        ordinal: The number of the GPU, from 0.
    """

    kind: Literal["auto", "cpu", "cuda"]
    ordinal: int = 0


def parse_device(device: str) -> Wanted:
    """Parse `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: The text has another form.
    """
    if device == "auto":
        return Wanted("auto")
    if device == "cpu":
        return Wanted("cpu")
    if match := re.fullmatch(r"cuda(?::(\d{1,3}))?", device):
        return Wanted("cuda", int(match[1] or 0))
    raise ModelError(f"detector.device is {device!r}: expected auto, cpu, cuda or cuda:N, as in cuda:0")
