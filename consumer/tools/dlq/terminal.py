"""The terminal of `sluice dlq`: what is said beside the results, and pipes that close early."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from consumer.tools.dlq import formatting
from consumer.tools.dlq.dead_letters import Filter

SHOWN: Final = 100  # rows of a table, unless asked for otherwise


def print_status(line: str) -> None:
    """On stderr."""
    print(line, file=sys.stderr, flush=True)


def terminal_width() -> int:
    """Of the terminal; 0 where there is none, so that a file or a pipe gets whole lines."""
    return shutil.get_terminal_size(fallback=(0, 0)).columns


@contextmanager
def tolerate_closed_pipe() -> Iterator[None]:
    """`| head` may be done with us at any time; Python would complain once more at exit."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn_unknown_reasons(chosen: Filter, seen: Counter[str]) -> None:
    """Say so where reasons were asked for that no letter has."""
    if (line := formatting.unknown_reasons(chosen.reasons, seen)) is not None:
        print_status(line)
