"""Defines the protocols for steps 4 and 5 of the loop, publish and commit.

The loop calls a `Delivery`. A `Delivery` uses a `SourceLike` (the Kafka consumer) and a `PublisherLike` or a
`TransactionsLike` (the producer). Every method is for the main thread, which owns both clients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.types import Acknowledged, Finished, Frame, Lag, Outcome, Receipt, TopicPartition

# The time limit of a transaction, from begin to commit. It normally takes milliseconds. A rebalance or a shutdown may
# have to wait for it.
TRANSACTION_S: Final = 10.0

Judge = Callable[[Frame, Outcome], None]
"""Called once for each outcome that is sent (`at_least_once`) or committed (`exactly_once`).

The outcome is the one that was written: if a result cannot be written, it is a rejection. An exception from this
function passes through `Delivery.publish` or `Delivery.deliver` and ends the process.
"""


class SourceLike(Protocol):
    """The Kafka consumer, as the loop and a `Delivery` use it: `consumer.kafka.consumer.Source`, or a fake in tests.

    All methods are for the thread that called `subscribe`; a call from another thread raises OwnershipError.
    """

    def subscribe(self) -> None:
        """Join the group. After this, call `poll` regularly, or the group removes this process."""
        ...

    def poll(self, room: int, timeout_s: float, max_bytes: float = ...) -> list[Frame]:
        """Return new frames, and serve rebalances: the `RebalanceListener` is called inside this method.

        Blocks up to `timeout_s` for the first frame, and for as long as the listener takes during a rebalance.

        Args:
            room: The maximum number of frames. Pass 0 only while paused: the call then keeps the membership alive.
            timeout_s: Seconds to wait for the first frame.
            max_bytes: No more frames are taken after the one that exceeds this number of bytes.

        Raises:
            KafkaError: No retry helps.
            Exception: Any exception that the listener raised.
        """
        ...

    def ends(self) -> list[Receipt]:
        """Return the partition ends that polls have reached since the last call, if no frame is directly below them.

        The offset of each receipt is the next one to be read. Pass the frames of the last `poll` to the offset tracker
        first: every frame below these offsets was returned by `poll`. Does not block.
        """
        ...

    def pause(self) -> None:
        """Stop fetching. `poll` still serves rebalances. No effect if already paused."""
        ...

    def resume(self) -> None:
        """Fetch again. No effect if not paused."""
        ...

    def store(self, offsets: Iterable[Committable]) -> None:
        """Store these offsets for the next background commit. Does not block."""
        ...

    def commit(self, offsets: Sequence[Committable]) -> None:
        """Commit these offsets and wait for the answer, for a few seconds at most.

        A refusal or a missing answer is only logged: the frames are repeated, not lost. Never call this inside a
        rebalance, which would block the poll that the commit waits for.
        """
        ...

    def membership(self) -> object | None:
        """Return the group metadata that a transaction must send to commit offsets, or None if not a member.

        The value is valid for the current iteration of the loop only.

        Raises:
            RefusedError: This version cannot read the group metadata of the client library.
        """
        ...

    def commit_positions(self, offsets: Iterable[Committable]) -> list[Any]:
        """Return these offsets in the client library's form, for `TransactionsLike.transact`."""
        ...

    def transacted(self, offsets: Iterable[Committable]) -> None:
        """Record that a transaction has committed these offsets. `rewind` never goes below them."""
        ...

    def rewind(self) -> Mapping[TopicPartition, int] | None:
        """Move all assigned partitions back to their committed offsets, and fetch again. Blocks for seconds.

        Call it only while no transaction is open.

        Returns:
            The new epoch of each partition. None if it is not possible now: call it again after a poll.

        Raises:
            RefusedError: No retry helps.
        """
        ...

    def lag(self) -> list[Lag]:
        """Return how far each assigned partition is behind, as far as it is known. Sends no request."""
        ...

    def close(self, timeout_s: float) -> bool:
        """Leave the group. The listener is not called for the partitions that this revokes.

        Blocks up to `timeout_s`.

        Returns:
            Whether the client closed in time.
        """
        ...


class PublisherLike(Protocol):
    """The producer without transactions, as `AtLeastOnce` uses it: `consumer.kafka.producer.Publisher`."""

    @property
    def outstanding(self) -> int:
        """Number of outcomes that were published and are not acknowledged, including dead letters not yet sent."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """Approximate bytes of the messages that the client library holds."""
        ...

    def publish(self, finished: Sequence[Finished], judge: Judge) -> None:
        """Send these outcomes in order. Blocks only while the local queue of the client library is full.

        Args:
            finished: Outcomes of frames whose epoch is current.
            judge: Called for each outcome as it is sent. Its exception stops the sending.

        Raises:
            PublishError: The local queue stays full, or the producer cannot continue.
        """
        ...

    def poll(self, timeout_s: float = 0.0) -> list[Acknowledged]:
        """Return the outcomes that were acknowledged since the last call. Blocks up to `timeout_s` for the first.

        Raises:
            PublishError: A message did not arrive. The process must end without committing its offset.
        """
        ...

    def forget(self, partitions: Collection[TopicPartition]) -> list[Frame]:
        """Drop the dead letters of these partitions that are not sent yet, and return their frames."""
        ...


class TransactionsLike(Protocol):
    """The transactional producer, as `ExactlyOnce` uses it: `consumer.kafka.transactions.TransactionalPublisher`."""

    def transact(
        self, finished: Sequence[Finished], positions: Sequence[Any], membership: object, within_s: float
    ) -> list[Acknowledged]:
        """Write these outcomes and commit these positions in one transaction. Blocks up to `within_s` plus 1 s.

        Args:
            finished: Outcomes in offset order within each partition. May be empty.
            positions: From `SourceLike.commit_positions`, one per partition.
            membership: From `SourceLike.membership`, in the same iteration of the loop.
            within_s: Seconds for the whole transaction.

        Returns:
            All outcomes of `finished`. They are committed.

        Raises:
            TransactionError: The transaction failed. If `rolled_back` is False, it may have been committed.
            KafkaError: No retry helps, and the process must end.
        """
        ...

    def renew(self) -> None:
        """Replace the producer after a failure. The new one resolves the old transaction. Blocks for seconds.

        Raises:
            TransactionError: The brokers do not answer. Try again.
            KafkaError: No retry helps.
        """
        ...

    def rest(self, timeout_s: float) -> None:
        """Wait for up to `timeout_s`, and serve the events of the client library meanwhile."""
        ...


class Delivery(Protocol):
    """Takes outcomes and watermarks from the loop, writes the outcomes, and commits the watermarks.

    All methods are for the main thread. Any method may raise KafkaError (PublishError included): the process must end.
    """

    @property
    def outstanding(self) -> int:
        """Number of outcomes that were passed to `publish` and not yet returned by `deliver` or `forget`."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """Bytes of messages that the client library holds between two calls, in addition to the frames."""
        ...

    @property
    def broken(self) -> bool:
        """Whether no outcome can be acknowledged until `recover` succeeds. Call `forget` for all partitions first."""
        ...

    @property
    def expelled(self) -> bool:
        """Whether, as of the last `deliver`, the group has removed this process.

        If so, no more outcomes are acknowledged before the next poll of the consumer.
        """
        ...

    def publish(self, finished: Sequence[Finished]) -> None:
        """Accept outcomes of frames whose epoch is current.

        Blocks only if the local queue of the client library is full, which the user's settings can cause.
        """
        ...

    def deliver(self, wait_s: float = 0.0, within_s: float = TRANSACTION_S) -> list[Acknowledged]:
        """Return the outcomes that the brokers have acknowledged since the last call.

        Args:
            wait_s: Seconds to wait if nothing is acknowledged yet.
            within_s: Seconds that a transaction may take. `at_least_once` ignores it.
        """
        ...

    def commit(self, risen: Sequence[Committable]) -> None:
        """Commit these watermarks soon. They rose since the last call.

        They rose because outcomes were acknowledged, or because the end of a partition was reached. Does not block:
        the offsets are stored for a background commit, or committed by a transaction.
        """
        ...

    def hand_over(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Commit the final watermarks of revoked partitions. Called inside a revocation, after the wait for outcomes.

        Blocks up to `within_s`.
        """
        ...

    def finish(self, watermarks: Sequence[Committable], within_s: float) -> None:
        """Commit the final watermarks of all partitions. Called after the last iteration, before the consumer closes.

        Blocks up to `within_s`. `at_least_once` ignores the limit, and waits for one commit.
        """
        ...

    def forget(self, partitions: Iterable[TopicPartition]) -> list[Frame]:
        """Drop the outcomes of these partitions, because their epochs have ended.

        Returns:
            The frames that will not be acknowledged any more. Outcomes that were already sent are still acknowledged.
        """
        ...

    def recover(self) -> None:
        """Try once to start again after a failure. Blocks for seconds.

        On success, `broken` becomes False, and each partition has a new epoch in the offset tracker.
        """
        ...


MakeDelivery = Callable[[SourceLike, OffsetTracker, Judge], Delivery]
"""Builds the `Delivery` of a pipeline from its consumer, its offset tracker and the function that judges outcomes."""
