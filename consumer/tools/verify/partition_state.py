"""The state of each offset of one input partition, one byte each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from consumer.tools.verify.types import OffsetRange

# The bits of an offset: it is a record; its outcome broke the order; the number of its results and of its dead letters
# (0 to 7; 7 means 7 or more).
RECORD, BROKEN, RESULT, LETTER = 1, 2, 4, 32
RESULTS, LETTERS = 7 * RESULT, 7 * LETTER
ANSWERED = RESULTS | LETTERS
UNIT: Final = {"result": (RESULT, RESULTS), "dead_letter": (LETTER, LETTERS)}

# Offsets per chunk of the final count, so that its temporary arrays stay small compared with the state.
_CHUNK: Final = 1 << 20


@dataclass(slots=True)
class PartitionState:
    """What is known about one input partition.

    Attributes:
        number: the index of the partition among all that are checked.
        offsets: the range that is checked.
        state: one byte for each offset of the range.
        deleted_below: retention has deleted the records below this offset.
        judged_from: records below this offset are not checked for missing outcomes.
    """

    number: int
    offsets: OffsetRange
    state: bytearray
    deleted_below: int = 0
    judged_from: int = 0

    def open(self, judged_from: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Find the records without an outcome from `judged_from` up to the committed offset.

        Yields:
            For each chunk of offsets, its first offset and a mask with one element per offset.
        """
        first = max(self.offsets.start, judged_from)
        for offset, states in self.chunks(first, min(self.offsets.end, self.offsets.committed)):
            yield offset, (states & (RECORD | ANSWERED)) == RECORD

    def chunks(self, first: int, end: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the first offset and the states of each chunk between two offsets."""
        start = self.offsets.start
        whole = np.frombuffer(self.state, np.uint8)
        for offset in range(first, end, _CHUNK):
            yield offset, whole[offset - start : min(offset + _CHUNK, end) - start]


def answered_in_one_topic(state: int) -> bool:
    """False for a record with a result and a dead letter. That is a repeat, and has no order between the two topics."""
    return not (state & RESULTS and state & LETTERS)


def count_and_first(masks: Iterator[tuple[int, NDArray[np.bool_]]]) -> tuple[int, int | None]:
    """Count the set elements of all masks. Returns the count and the offset of the first one."""
    count, first = 0, None
    for offset, mask in masks:
        found = int(np.count_nonzero(mask))
        if found and first is None:
            first = offset + int(np.argmax(mask))
        count += found
    return count, first
