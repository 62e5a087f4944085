"""Terminal output of `sluice dlq`: status lines on stderr, the width, and pipes that close early."""

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

SHOWN: Final = 100  # default number of rows in a table


def print_status(line: str) -> None:
    """Print a line to stderr, so that it does not mix with the results on stdout."""
    print(line, file=sys.stderr, flush=True)


def terminal_width() -> int:
    """Columns of the terminal. 0 if stdout is a file or a pipe, which gets whole lines."""
    return shutil.get_terminal_size(fallback=(0, 0)).columns


@contextmanager
def tolerate_closed_pipe() -> Iterator[None]:
    """End quietly if the reader of a pipe, such as `head`, closes it early.

    Stdout is redirected to the null device, because Python would report the closed pipe again at exit.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn_unknown_reasons(chosen: Filter, seen: Counter[str]) -> None:
    """Print a hint if the filter names a reason that no dead letter has."""
    if (line := formatting.unknown_reasons(chosen.reasons, seen)) is not None:
        print_status(line)
