"""Steps 4 and 5 of the loop, publish and commit: what the loop needs of a delivery, and a delivery of Kafka."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.types import Acknowledged, Finished, Frame, Lag, Outcome, Receipt, TopicPartition

# From begin to commit. It takes milliseconds; a rebalance or a shutdown may have to wait for it.
TRANSACTION_S: Final = 10.0

Judge = Callable[[Frame, Outcome], None]
"""Told of each outcome as it was written: a result that cannot be written has become a rejection."""


class SourceLike(Protocol):
    """What the loop asks of `source.Source`; tests put a fake one here."""

    def subscribe(self) -> None: ...
    def poll(self, room: int, timeout_s: float, max_bytes: float = ...) -> list[Frame]: ...
    def ends(self) -> list[Receipt]: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def store(self, offsets: Iterable[Committable]) -> None: ...
    def commit(self, offsets: Sequence[Committable]) -> None: ...
    def membership(self) -> object | None: ...
    def commit_positions(self, offsets: Iterable[Committable]) -> list[Any]: ...
    def transacted(self, offsets: Iterable[Committable]) -> None: ...
    def rewind(self) -> Mapping[TopicPartition, int] | None: ...
    def lag(self) -> list[Lag]: ...
    def close(self, timeout_s: float) -> bool: ...


class PublisherLike(Protocol):
    """What `AtLeastOnce` asks of `publisher.Publisher`."""

    @property
    def outstanding(self) -> int: ...
    @property
    def buffered_bytes(self) -> int: ...
    def publish(self, finished: Sequence[Finished], judge: Judge) -> None: ...
    def poll(self, timeout_s: float = 0.0) -> list[Acknowledged]: ...
    def forget(self, partitions: Collection[TopicPartition]) -> list[Frame]: ...


class TransactionsLike(Protocol):
    """What `ExactlyOnce` asks of `publisher.TransactionalPublisher`."""

    def transact(
        self, finished: Sequence[Finished], positions: Sequence[Any], membership: object, within_s: float
    ) -> list[Acknowledged]: ...
    def renew(self) -> None: ...
    def rest(self, timeout_s: float) -> None: ...


class Delivery(Protocol):
    """What the loop does with outcomes and watermarks. For the main thread alone.

    Raises KafkaError (and PublishError) where the process must end, from any method.
    """

    @property
    def outstanding(self) -> int:
        """Outcomes taken in that were not handed out as acknowledged."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """Bytes of messages that the client library holds between two calls, beside the frames themselves."""
        ...

    @property
    def broken(self) -> bool:
        """Nothing more is acknowledged until `recover` succeeds. Before that, forget all partitions."""
        ...

    @property
    def expelled(self) -> bool:
        """Since the last `deliver`: the group has put this process out. Until a poll nothing more is acknowledged."""
        ...

    def publish(self, finished: Sequence[Finished]) -> None:
        """Take in outcomes of frames whose epoch is current. Blocks only where the user's local queue is full."""
        ...

    def deliver(self, wait_s: float = 0.0, within_s: float = TRANSACTION_S) -> list[Acknowledged]:
        """What the brokers have by now. Blocks up to `wait_s` where nothing is there, or `within_s` to write it."""
        ...

    def commit(self, risen: Sequence[Committable]) -> None:
        """These watermarks rose by what was acknowledged, or to the end of a partition."""
        ...

    def hand_over(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Inside a revocation, once it is settled: the last word on these partitions. Blocks for `within_s` at most."""
        ...

    def finish(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """After the last turn, before the source is closed: the last word on all partitions.

        Blocks for `within_s`, and `at_least_once` for one commit.
        """
        ...

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Frame]:
        """The epochs of these partitions have ended. Returns the frames that will not be acknowledged any more."""
        ...

    def recover(self) -> None:
        """One try to begin again, in new epochs of the offset tracker. Blocks for seconds. See `broken` for success."""
        ...


MakeDelivery = Callable[[SourceLike, OffsetTracker, Judge], Delivery]
