"""What is known of each offset of one input partition: one byte each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from consumer.tools.verify.types import OffsetRange

# The byte of an offset: it is a record; its outcome broke the order; how many results, how many dead letters (0 to 7,
# where 7 means 7 or more).
RECORD, BROKEN, RESULT, LETTER = 1, 2, 4, 32
RESULTS, LETTERS = 7 * RESULT, 7 * LETTER
ANSWERED = RESULTS | LETTERS
UNIT: Final = {"result": (RESULT, RESULTS), "dead_letter": (LETTER, LETTERS)}

# A chunk of the final count: its temporary arrays stay small beside the state.
_CHUNK: Final = 1 << 20


@dataclass(slots=True)
class PartitionState:
    number: int
    span: OffsetRange
    state: bytearray
    deleted_below: int = 0
    judged_from: int = 0

    def open(self, judged_from: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Records from `judged_from` up to the committed offset without an outcome: (first offset, mask) of chunks."""
        first = max(self.span.start, judged_from)
        for offset, states in self.chunks(first, min(self.span.end, self.span.committed)):
            yield offset, (states & (RECORD | ANSWERED)) == RECORD

    def chunks(self, first: int, end: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        start = self.span.start
        whole = np.frombuffer(self.state, np.uint8)
        for offset in range(first, end, _CHUNK):
            yield offset, whole[offset - start : min(offset + _CHUNK, end) - start]


def answered_in_one_topic(state: int) -> bool:
    """A record with both outcomes is a repeat: in which order a reader of both topics meets them, nobody can say."""
    return not (state & RESULTS and state & LETTERS)


def count_and_first(masks: Iterator[tuple[int, NDArray[np.bool_]]]) -> tuple[int, int | None]:
    count, first = 0, None
    for offset, mask in masks:
        found = int(np.count_nonzero(mask))
        if found and first is None:
            first = offset + int(np.argmax(mask))
        count += found
    return count, first
