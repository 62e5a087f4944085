"""Defines the protocol through which the consumer reports changes of its assignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from consumer.types import TopicPartition


class RebalanceListener(Protocol):
    """Receives the rebalances of a consumer.

    All methods are called inside `Source.poll`, on its thread, and the poll waits for them. If one raises an exception,
    the rebalance is completed first. Then `poll` raises the exception.
    """

    def assigned(self, epochs: dict[TopicPartition, int]) -> None:
        """Accept new partitions. Their frames arrive with these epochs from now on.

        Args:
            epochs: The epoch of each new partition.
        """

    def waiting(self) -> bool:
        """Decide whether a wait for the coordinator or the brokers continues.

        Called at the start of this wait, and before each further step of a few seconds.

        Returns:
            Whether to continue.
        """
        return True

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish these partitions: publish the outcomes and store the offsets. Another consumer owns them afterwards.

        This process still owns the partitions during this call.
        """

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop these partitions. Publish and commit nothing for them: other consumers own them already."""
