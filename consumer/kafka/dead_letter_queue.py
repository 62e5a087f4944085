"""Queues dead letters that are not sent yet, in order.

The code is pure, and one thread owns it.

A dead letter in flight is a copy of a whole record in the client library, in addition to the record that the pipeline
holds. So only a limited number of bytes is in flight at a time. Dead letters have their own topic, so results need not
wait for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from consumer.kafka.dead_letter_fitting import Pending
from consumer.types import Frame, TopicPartition


class LetterLine:
    """A queue of dead letters, in which refused ones go first.

    Args:
        most_bytes: If the messages in the client library have more bytes than this, no new dead letter is sent.
    """

    def __init__(self, most_bytes: float) -> None:
        self._most_bytes = most_bytes
        self._waiting: deque[Pending] = deque()
        self._again: deque[Pending] = deque()  # refused ones, which go first
        self._unreported = 0  # number of dead letters that were sent and have no delivery report yet
        self._lone = False  # whether the last one that was taken out must be the only one in its batch

    def __len__(self) -> int:
        return len(self._waiting) + len(self._again)

    def add(self, pending: Pending) -> None:
        """Append a dead letter to the queue."""
        self._waiting.append(pending)

    def add_again(self, pending: Pending) -> None:
        """Add a refused dead letter, ahead of those that were never sent.

        If its `alone` is set, it is sent only when no other dead letter is in flight.
        """
        self._again.append(pending)

    def next(self, buffered_bytes: int) -> Pending | None:
        """Remove and return the next dead letter that may be sent now. After sending it, call `sent`.

        Args:
            buffered_bytes: Bytes of all messages that the client library holds.

        Returns:
            The dead letter, or None if none may be sent now.
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
        """Record that the client library accepted the dead letter from the last `next`."""
        self._unreported += 1

    def reported(self) -> None:
        """Record that the delivery report of a dead letter arrived."""
        self._unreported -= 1

    def forget(self, partitions: Collection[TopicPartition]) -> list[Frame]:
        """Drop the queued dead letters of these partitions, and return their frames."""
        dropped = []
        for line in (self._again, self._waiting):
            ended = [pending for pending in line if pending.frame.receipt.partition in partitions]
            dropped += [pending.frame for pending in ended]
            if ended:
                kept = [pending for pending in line if pending.frame.receipt.partition not in partitions]
                line.clear()
                line.extend(kept)
        return dropped
