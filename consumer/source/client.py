"""Poll: the sole owner of `confluent_kafka.Consumer`, of the assignment's epochs, and of pause and resume.

All calls and callbacks happen on the thread that called `subscribe`, but for the last two, which may hang: the commit
of a stop, and closing. librdkafka runs rebalance callbacks inside `poll`, on the thread that polls. Each assignment and
each rewind gives a partition a new epoch, which is stamped on each frame, because a consumer that has lost its
partitions does not know it until its next poll.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import confluent_kafka
import structlog
from confluent_kafka import KafkaException

from consumer.caller import Caller
from consumer.config import Config
from consumer.errors import KafkaError, OwnershipError, RefusedError
from consumer.offsets import Committable
from consumer.source import group
from consumer.source.commits import Commits
from consumer.source.errors import verdict
from consumer.source.listener import RebalanceListener
from consumer.source.position import Position
from consumer.source.settings import consumer_settings
from consumer.types import Clock, Frame, Lag, Receipt, TopicPartition
from consumer.wire import parse_frame, read_record

_log = structlog.get_logger(__name__)

# Frames handed out by one `poll`: enough to share the cost of a turn, few enough that decoding starts soon.
BURST = 128

_Code = confluent_kafka.KafkaError


class Source:
    """Frames of the assigned partitions. `subscribe` makes the calling thread the owner; other threads raise."""

    def __init__(
        self,
        config: Config,
        listener: RebalanceListener,
        *,
        clock: Clock,
        wall_clock_ms: Callable[[], int],
        on_committed: Callable[[float | None], None] = lambda _: None,
    ) -> None:
        self._topics = config.input.topics
        self._verdict = partial(verdict, topics=config.input.topics, group=config.kafka.group_id)
        self._listener = listener
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._commits = Commits(config.kafka.commit_interval_ms / 1000, clock, on_committed)
        settings = consumer_settings(config)
        self._incremental = settings.get("group.protocol") == "consumer" or "cooperative" in str(
            settings["partition.assignment.strategy"]
        )
        self._look_up_offsets = settings["auto.offset.reset"] == "error"
        self._positions: dict[TopicPartition, Position] = {}
        self._known: dict[tuple[str, int], TopicPartition] = {}  # one object a partition, not one a frame
        self._last_epoch = 0
        self._paused = False
        self._last = Caller("consumer-close")  # for what blocks at the end: the last commit, and closing
        self._closing = False
        self._gave_up = False  # to look up where new partitions start: this process was told to stop
        self._failure: BaseException | None = None
        self._owner: int | None = None
        try:
            self._client = confluent_kafka.Consumer(
                settings | {"error_cb": self._on_error, "on_commit": self._commits.answered},
                logger=logging.getLogger("librdkafka.consumer"),
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise RefusedError(f"kafka.consumer: {group.text_of(error)}") from error

    def subscribe(self) -> None:
        """Join the group. From now on this thread must `poll` at least every `max.poll.interval.ms`."""
        self._owner = threading.get_ident()
        self._client.subscribe(
            list(self._topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def poll(self, room: int, timeout_s: float, max_bytes: float = math.inf) -> list[Frame]:
        """Up to `room` frames (`BURST` at most); blocks up to `timeout_s` for the first. Serves rebalances.

        The frame that passes `max_bytes` is the last one. With no room nothing is taken, so call it only while paused:
        then it keeps the membership alive.
        Raises KafkaError where no retry helps, and whatever the listener raised.
        """
        self._check_owner()
        self._commits.send_due(self._client)
        frames: list[Frame] = []
        poll, most = self._client.poll, min(room, BURST)
        message = poll(timeout_s)
        while message is not None and self._failure is None:
            if (error := message.error()) is not None:
                # After a stop nobody looked up where to start, and the client found nothing either.
                if not (self._gave_up and error.code() == _Code._AUTO_OFFSET_RESET):  # noqa: SLF001
                    self._verdict(error)
            else:
                frames.append(frame := self._frame(message))
                max_bytes -= frame.size_bytes
                if len(frames) >= most or max_bytes < 0:
                    break
            message = poll(0)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return frames

    def pause(self) -> None:
        """Stop fetching; `poll` goes on. librdkafka drops what it had prefetched and reads it again on resume."""
        self._check_owner()
        if not self._paused:
            self._paused = True
            self._client.pause(self._assignment())

    def resume(self) -> None:
        """Fetch again."""
        self._check_owner()
        if self._paused:
            self._paused = False
            self._client.resume(self._assignment())

    def store(self, offsets: Iterable[Committable]) -> None:
        """Hand these offsets to the next commit: `poll` sends one every `commit_interval_ms`."""
        self._check_owner()
        self._commits.store(self._client, [_topic_partition(item.partition, item.next_offset) for item in offsets])

    def commit(self, offsets: Sequence[Committable]) -> None:
        """Commit these offsets and wait for the answer, for a few seconds at most.

        A group that is rebalancing refuses them, and is asked again meanwhile. Another refusal is logged, and so is
        silence: the frames will be repeated, not lost. Never call it inside a rebalance: it would wait for the poll
        that the rebalance runs in. There `store` is enough, because librdkafka commits what is stored when the
        partitions are unassigned.
        """
        self._check_owner()
        listed = [_topic_partition(item.partition, item.next_offset) for item in offsets]
        self._commits.commit_now(self._client, listed, self._last)

    def membership(self) -> object | None:
        """What a transaction proves with that it may commit our offsets; for this turn alone. None: not a member."""
        self._check_owner()
        metadata = self._client.consumer_group_metadata()
        return metadata if group.is_member(metadata) else None

    def transacted(self, offsets: Iterable[Committable]) -> None:
        """These offsets were committed by a transaction. `rewind` never goes below them.

        A coordinator that has just taken over was seen to answer with older offsets than its predecessor had.
        """
        self._check_owner()
        for item in offsets:
            if (position := self._positions.get(item.partition)) is not None:
                position.floor = max(position.floor, item.next_offset)

    def rewind(self) -> dict[TopicPartition, int] | None:
        """Go back to what the group has committed, and fetch again. For a time when no transaction is open.

        Returns the new epochs; None where it is not possible now: try again, after a poll.
        """
        self._check_owner()
        try:
            found = self._committed(self._assignment(), tries=2) if self._positions else []
            self.resume()  # before the seek: it would go on at the position of the pause
            for item in found:
                self._seek(item)
        except RefusedError:
            raise
        except (KafkaException, KafkaError) as error:
            _log.warning("cannot go back to the committed offsets yet", error=group.text_of(error))
            return None
        _log.info("rewound", offsets={f"{item.topic}[{item.partition}]": item.offset for item in found})
        positions = list(self._positions.items())
        return {partition: self._begin_epoch(partition, position) for partition, position in positions}

    def lag(self) -> list[Lag]:
        """How far each assigned partition is behind, from what the last fetches said. Asks nobody.

        A partition that nothing was read of counts from where its reading begins. One that was not fetched from yet,
        as while its broker is away, is left out: a 0 would be a guess.
        """
        self._check_owner()
        behind = []
        for partition, position in self._positions.items():
            low, high = self._client.get_watermark_offsets(_topic_partition(partition), cached=True)
            at = position.start if position.next_offset is None else position.next_offset
            if at == confluent_kafka.OFFSET_BEGINNING:
                at = low
            if min(at, high) < 0:  # librdkafka does not know them yet
                continue
            records = max(0, high - at)
            behind.append(Lag(partition, records, position.age_s(self._wall_clock_ms()) if records else 0.0))
        return behind

    def close(self, timeout_s: float) -> bool:
        """Leave the group. False where the client did not close in time: it can hang while brokers are away.

        The listener is not told of the revocation that this brings: settle and `commit` before.
        """
        self._check_owner()
        self._closing = True
        try:
            self._last.call(self._client.close, timeout_s)  # behind a last commit that is not answered
        except TimeoutError:
            return False
        except Exception as error:  # noqa: BLE001 - why this process ends has been said, or is that it was told to
            _log.warning("consumer not closed in order", error=group.text_of(error))
        self._last.end()
        return True

    # Frames

    def _frame(self, message: Any) -> Frame:  # Any: the stubs make every part of a message optional
        partition = self._known[message.topic(), message.partition()]
        position = self._positions[partition]
        offset, record = message.offset(), read_record(message)
        if position.next_offset is not None and offset < position.next_offset:
            raise KafkaError(
                f"the offsets of {partition} went back from {position.next_offset} to {offset}: the topic was made "
                "anew or cut. Restart this process to read it from there"
            )
        if position.first_offset is None:
            position.first_offset = offset
        position.next_offset = offset + 1
        position.timestamp_ms = record.timestamp_ms
        return parse_frame(record, Receipt(partition, offset, position.epoch), self._clock())

    def _begin_epoch(self, partition: TopicPartition, before: Position | None = None) -> int:
        self._last_epoch += 1
        position = self._positions[partition] = Position(self._last_epoch)
        if before is not None:
            position.start, position.first_offset, position.floor = before.start, before.first_offset, before.floor
        return self._last_epoch

    def _seek(self, committed: confluent_kafka.TopicPartition) -> None:
        position = self._positions[TopicPartition(committed.topic, committed.partition)]
        committed.offset = max(committed.offset, position.floor)
        if committed.offset < 0:  # nothing was committed yet: back to where this assignment began
            if position.first_offset is None:
                return
            committed.offset = position.first_offset
        self._client.seek(committed)
        position.start = committed.offset
        position.next_offset = None  # it may go back now, even if the seek of another partition fails

    # Callbacks: they run inside poll, on its thread, and never raise

    def _on_assign(self, _client: confluent_kafka.Consumer, assigned: list[confluent_kafka.TopicPartition]) -> None:
        try:
            starts = self._start_offsets(assigned)
            if self._incremental:
                self._client.incremental_assign(starts)
            else:
                self._client.assign(starts)
            epochs = {}
            for item in starts:
                partition = TopicPartition(item.topic, item.partition)
                self._known[partition] = partition
                epochs[partition] = self._begin_epoch(partition)
                self._positions[partition].start = item.offset
            # A pause can survive revoke and re-assign, so both states are set, not only one.
            (self._client.pause if self._paused else self._client.resume)(assigned)
            _log.info("assigned", partitions=[str(partition) for partition in epochs])
            self._listener.assigned(epochs)
        except BaseException as error:  # noqa: BLE001 - raised again by poll
            self._fail(error if not isinstance(error, KafkaException) else KafkaError(group.text_of(error)))

    def _on_revoke(self, _client: confluent_kafka.Consumer, revoked: list[confluent_kafka.TopicPartition]) -> None:
        self._end(revoked, self._listener.revoked, "revoked")

    def _on_lost(self, _client: confluent_kafka.Consumer, lost: list[confluent_kafka.TopicPartition]) -> None:
        self._end(lost, self._listener.lost, "lost")

    def _end(
        self,
        ended: list[confluent_kafka.TopicPartition],
        tell: Callable[[Sequence[TopicPartition]], None],
        event: str,
    ) -> None:
        partitions = [TopicPartition(item.topic, item.partition) for item in ended]
        _log.info(event, partitions=[str(partition) for partition in partitions])
        try:
            if not self._closing:
                tell(partitions)
        except BaseException as error:  # noqa: BLE001 - raised again by poll
            self._fail(error)
        finally:
            for partition in partitions:
                self._positions.pop(partition, None)
            if self._incremental:
                self._client.incremental_unassign(ended)
            else:
                self._client.unassign()

    def _start_offsets(self, assigned: list[confluent_kafka.TopicPartition]) -> list[confluent_kafka.TopicPartition]:
        """A partition without a committed offset starts at its beginning: nothing is skipped on a first start."""
        if not self._look_up_offsets:
            return assigned
        try:
            starts = self._committed(assigned)
        except KafkaError:
            if self._listener.waiting():
                raise
            self._gave_up = True
            return assigned  # nothing is read of them any more
        for item in starts:
            if item.offset < 0:
                item.offset = confluent_kafka.OFFSET_BEGINNING
        return starts

    def _committed(
        self, partitions: Sequence[confluent_kafka.TopicPartition], tries: int = group.LOOKUP_TRIES
    ) -> list[confluent_kafka.TopicPartition]:
        return group.committed(self._client, partitions, self._listener.waiting, self._verdict, tries)

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        try:
            self._verdict(error)
        except KafkaError as failure:
            self._fail(failure)

    def _fail(self, error: BaseException) -> None:
        """What `poll` raises: the first failure; later ones may follow from it."""
        self._failure = self._failure or error

    def _assignment(self) -> list[confluent_kafka.TopicPartition]:
        return [_topic_partition(partition) for partition in self._positions]

    def _check_owner(self) -> None:
        if threading.get_ident() != self._owner:
            raise OwnershipError("Source belongs to the thread that subscribed; call it there")


def _topic_partition(partition: TopicPartition, offset: int | None = None) -> confluent_kafka.TopicPartition:
    if offset is None:
        return confluent_kafka.TopicPartition(partition.topic, partition.partition)
    return confluent_kafka.TopicPartition(partition.topic, partition.partition, offset)
