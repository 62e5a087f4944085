"""Dead letters that wait to be sent, in their order. Pure, one owner thread.

A dead letter is a copy of a whole record in the client library, beside the record that the pipeline holds. So only a
part of them is on its way at a time. They have a topic of their own: results need not wait for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from consumer.kafka.dead_letter_fitting import Pending
from consumer.types import Frame, TopicPartition


class LetterLine:
    """`most_bytes`: of all messages in the client library, above which no dead letter is sent."""

    def __init__(self, most_bytes: float) -> None:
        self._most_bytes = most_bytes
        self._waiting: deque[Pending] = deque()
        self._again: deque[Pending] = deque()  # those that were refused go first
        self._unreported = 0  # sent, without a report
        self._lone = False  # ... and the one of those must stay alone

    def __len__(self) -> int:
        return len(self._waiting) + len(self._again)

    def add(self, pending: Pending) -> None:
        """A dead letter, behind all that wait."""
        self._waiting.append(pending)

    def add_again(self, pending: Pending) -> None:
        """A dead letter that was refused, before those that were not sent. One with `alone` has no company."""
        self._again.append(pending)

    def next(self, buffered_bytes: int) -> Pending | None:
        """Take out the next dead letter that may be sent now. `sent` must follow if it was.

        `buffered_bytes`: of all messages that the client library holds.
        """
        if self._unreported and (self._lone or (self._again and self._again[0].alone)):
            return None
        if self._again:
            pending = self._again.popleft()
        elif self._waiting and buffered_bytes <= self._most_bytes:
            pending = self._waiting.popleft()
        else:
            return None
        self._lone = pending.alone
        return pending

    def sent(self) -> None:
        """The client library has the dead letter of the last `next`."""
        self._unreported += 1

    def reported(self) -> None:
        """A dead letter that was sent has its delivery report."""
        self._unreported -= 1

    def forget(self, partitions: Collection[TopicPartition]) -> list[Frame]:
        """Drop what waits of these partitions, and return its frames."""
        dropped = []
        for line in (self._again, self._waiting):
            ended = [pending for pending in line if pending.frame.receipt.partition in partitions]
            dropped += [pending.frame for pending in ended]
            if ended:
                kept = [pending for pending in line if pending.frame.receipt.partition not in partitions]
                line.clear()
                line.extend(kept)
        return dropped
