"""What `source` tells the loop of its assignment, from inside a poll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from consumer.types import TopicPartition


class RebalanceListener(Protocol):
    """Called inside `Source.poll`, on its thread. An exception ends the poll with it, after the rebalance."""

    def assigned(self, epochs: dict[TopicPartition, int]) -> None:
        """These partitions are ours now; frames of them come with these epochs."""

    def waiting(self) -> bool:
        """A coordinator is waited for, in steps of a few seconds. False: do not wait any more."""
        return True

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """We own these for as long as this call lasts: finish, publish, `commit`. After it, they are someone else's."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Someone else owns these already: publish nothing and commit nothing of them."""
