"""Polls frames from Kafka. This module owns `confluent_kafka.Consumer`, pause and resume, and the assignment.

All calls and callbacks happen on the thread that called `subscribe`. librdkafka runs rebalance callbacks inside `poll`,
on the same thread. Only the final commit and the close run on another thread, because they may hang.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import confluent_kafka
import structlog
from confluent_kafka import KafkaException

from consumer.concurrency import Caller
from consumer.config import Config
from consumer.delivery.offsets import Committable
from consumer.errors import KafkaError, OffsetsLostError, OwnershipError, RefusedError, TopicReplacedError
from consumer.kafka import group
from consumer.kafka.assignment import Assignment, start_offsets
from consumer.kafka.commits import Commits
from consumer.kafka.consumer_errors import offset_reset, topic_replaced, verdict
from consumer.kafka.consumer_settings import consumer_settings
from consumer.kafka.rebalance_listener import RebalanceListener
from consumer.kafka.topic_ids import ANSWER_S, Replaced, TopicIds, from_metadata, is_another
from consumer.types import Clock, Frame, Lag, Receipt, TopicPartition

_log = structlog.get_logger(__name__)

# Maximum number of frames per `poll`: enough to share the cost of an iteration, few enough that decoding starts soon.
BURST = 128

_Code = confluent_kafka.KafkaError


class Source:
    """The Kafka consumer. It returns the frames of the assigned partitions, and commits their offsets.

    `subscribe` makes the calling thread the owner. A call from another thread raises OwnershipError.

    Args:
        config: All options.
        listener: Called inside `poll` for each rebalance.
        clock: Monotonic seconds.
        wall_clock_ms: Unix milliseconds.
        on_committed: See `Commits`.
        topic_ids: Looks up topic IDs. Default: a new one that asks the brokers.

    Raises:
        RefusedError: librdkafka refuses a setting of the consumer.
    """

    def __init__(
        self,
        config: Config,
        listener: RebalanceListener,
        *,
        clock: Clock,
        wall_clock_ms: Callable[[], int],
        on_committed: Callable[[float | None], None] = lambda _: None,
        topic_ids: TopicIds | None = None,
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
        self._start_tries = group.start_tries(config)
        # Without a committed offset, reading starts at the beginning, so that nothing is skipped. If the user has
        # chosen a reset policy, the client library applies that instead.
        chosen = settings["auto.offset.reset"] != "error"
        self._without_commit = confluent_kafka.OFFSET_INVALID if chosen else confluent_kafka.OFFSET_BEGINNING
        self._assigned = Assignment()
        self._paused = False
        self._last = Caller("consumer-close")  # runs the calls that may block at the end: the last commit, and close
        self._closing = False
        self._gave_up = False  # a stop has ended the lookup of the offsets at which new partitions start
        self._failure: BaseException | None = None
        self._owner: int | None = None
        try:
            self._client = confluent_kafka.Consumer(
                settings | {"error_cb": self._on_error, "on_commit": self._commits.answered},
                logger=logging.getLogger("librdkafka.consumer"),
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise RefusedError(f"kafka.consumer: {group.text_of(error)}") from error
        self._topic_ids = topic_ids or TopicIds(config)

    def subscribe(self) -> None:
        """Join the group. After this, the calling thread must `poll` at least every `max.poll.interval.ms`."""
        self._owner = threading.get_ident()
        self._client.subscribe(
            list(self._topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def poll(self, room: int, timeout_s: float, max_bytes: float = math.inf) -> list[Frame]:
        """Return new frames, and serve rebalances and due commits. Blocks up to `timeout_s` for the first frame.

        Args:
            room: The maximum number of frames; `BURST` is an upper limit too. Pass 0 only while paused: the call then
                keeps the membership alive.
            timeout_s: Seconds to wait for the first frame.
            max_bytes: The frame that exceeds this number of bytes is the last one.

        Raises:
            KafkaError: No retry helps.
            Exception: Any exception that the listener raised.
        """
        self._check_owner()
        self._commits.send_due(self._client)
        frames: list[Frame] = []
        poll, most = self._client.poll, min(room, BURST)
        message = poll(timeout_s)
        while message is not None and self._failure is None:
            if message.error() is not None:
                self._event(message)
            else:
                try:
                    frame = self._assigned.frame(message, self._clock())
                except TopicReplacedError as error:
                    self._fail(error)
                    break
                frames.append(frame)
                max_bytes -= frame.size_bytes
                if len(frames) >= most or max_bytes < 0:
                    break
            message = poll(0)
        if (replaced := self._topic_ids.replaced) is not None:
            self._fail(topic_replaced(replaced))  # the frames of this poll may already be from the new topic
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, TopicReplacedError | OffsetsLostError):
                of_topic = [each for each in self._assigned.partitions if each.topic == failure.topic]
                self._commits.withhold(self._client, of_topic)
            raise failure
        return frames

    def ends(self) -> list[Receipt]:
        """Return the partition ends that polls have reached since the last call, if they follow records without frames.

        They are transaction markers and aborted records. The offset of each receipt is the next one to be read.
        `poll` has returned every frame below it, so process those frames before this call.
        """
        self._check_owner()
        return self._assigned.take_ends()

    def pause(self) -> None:
        """Stop fetching. `poll` still serves rebalances.

        librdkafka drops the records that it has prefetched, and fetches them again on resume.
        """
        self._check_owner()
        if not self._paused:
            self._paused = True
            self._client.pause(self._assigned.partitions)

    def resume(self) -> None:
        """Start fetching again after `pause`."""
        self._check_owner()
        if self._paused:
            self._paused = False
            self._client.resume(self._assigned.partitions)

    def store(self, offsets: Iterable[Committable]) -> None:
        """Store these offsets for the next commit. `poll` sends one every `commit_interval_ms`."""
        self._check_owner()
        self._commits.store(self._client, self.commit_positions(offsets))

    def commit(self, offsets: Sequence[Committable]) -> None:
        """Commit these offsets and wait for the answer, up to `commits.LAST_COMMIT_S`.

        A group that is rebalancing refuses the commit, which is then retried. Any other refusal is logged, as is a
        missing answer: the frames are repeated, not lost.

        Never call this inside a rebalance: it would wait for the poll that the rebalance runs in. `store` is enough
        there, because librdkafka commits stored offsets when the partitions are unassigned.
        """
        self._check_owner()
        self._commits.commit_now(self._client, self.commit_positions(offsets), self._last)

    def membership(self) -> object | None:
        """Return the group metadata, which a transaction sends to prove that it may commit our offsets.

        The value is valid for the current iteration of the loop only.

        Returns:
            The metadata in the client library's form, or None if this process is not a member of the group.

        Raises:
            RefusedError: This version cannot read the group metadata of the client library.
        """
        self._check_owner()
        metadata = self._client.consumer_group_metadata()
        return metadata if group.is_member(metadata) else None

    def commit_positions(self, offsets: Iterable[Committable]) -> list[confluent_kafka.TopicPartition]:
        """Return these offsets in the form of a commit, with topic ID and leader epoch. See `Position.commit_of`."""
        self._check_owner()
        return self._assigned.commit_positions(offsets)

    def transacted(self, offsets: Iterable[Committable]) -> None:
        """Record that a transaction has committed these offsets. `rewind` never goes below them.

        This matters because a coordinator that had just taken over was observed to answer with older offsets than its
        predecessor.
        """
        self._check_owner()
        self._assigned.mark_committed(offsets)

    def rewind(self) -> dict[TopicPartition, int] | None:
        """Move all assigned partitions back to their committed offsets, and fetch again. Blocks for seconds.

        Call it only while no transaction is open.

        Returns:
            The new epoch of each partition. None if it is not possible now: call it again after a poll.

        Raises:
            RefusedError: No retry helps.
        """
        self._check_owner()
        try:
            found = self._committed(self._assigned.partitions, tries=2) if self._assigned else []
            self.resume()  # before the seek: a later resume would continue at the position of the pause
            went = {
                f"{item.topic}[{item.partition}]": self._assigned.rewound(item, self._client.seek) for item in found
            }
        except RefusedError:
            raise
        except (KafkaException, KafkaError) as error:
            _log.warning("cannot go back to the committed offsets yet", error=group.text_of(error))
            return None
        _log.info("rewound", offsets=went)
        return self._assigned.new_epochs()

    def lag(self) -> list[Lag]:
        """Return how far each assigned partition is behind, from the last fetch responses. Sends no request.

        If no record of a partition was read yet, its lag counts from its start offset. A partition without a fetch
        response, for example because its broker is unavailable, is left out: a value of 0 would be a guess.
        """
        self._check_owner()
        return self._assigned.lag(partial(self._client.get_watermark_offsets, cached=True), self._wall_clock_ms())

    def close(self, timeout_s: float) -> bool:
        """Leave the group. Blocks up to `timeout_s`; the client can hang while brokers are unavailable.

        The listener is not called for the partitions that this revokes: finish their frames and `commit` first.

        Returns:
            Whether the client closed in time.
        """
        self._check_owner()
        self._closing = True
        self._topic_ids.close()
        try:
            self._last.call(self._client.close, timeout_s)  # runs after the final commit, which may hang
        except TimeoutError:
            return False
        except Exception as error:  # noqa: BLE001 - the process is ending for another reason, which is already known
            _log.warning("consumer not closed in order", error=group.text_of(error))
        self._last.end()
        return True

    # Events from a poll that are not frames

    def _event(self, message: Any) -> None:
        error, code = message.error(), message.error().code()
        partition = TopicPartition(message.topic() or "", message.partition() or 0)
        if code == _Code._PARTITION_EOF:  # noqa: SLF001 - the library's own name
            self._assigned.reached(partition, message.offset())
        elif code != _Code._AUTO_OFFSET_RESET:  # noqa: SLF001
            self._verdict(error)
        # If a stop ended the lookup of start offsets, this error is expected. The client also returns it for a
        # partition that was revoked meanwhile, whose new owner will see the same error.
        elif not self._gave_up and partition in self._assigned:
            self._fail(self._explain_reset(partition, message.offset(), error.str()))

    def _explain_reset(self, partition: TopicPartition, offset: int | None, text: str) -> KafkaError:
        """Ask the brokers why the offset to read from is not in the log. Blocks for seconds.

        Returns:
            The error that `poll` raises.
        """
        before = self._assigned.topic_id(partition)
        log: tuple[int, int] | None = None
        try:
            now = self._topic_ids.look_up_settled(partition.topic) if before else ""
            if is_another(before, now):
                return topic_replaced(Replaced(partition.topic, before, now))
            log = self._client.get_watermark_offsets(confluent_kafka.TopicPartition(*partition), timeout=ANSWER_S)
        except KafkaException as error:
            _log.warning("cannot ask why the offset is not in the log", error=group.text_of(error))
        return offset_reset(partition, offset, log, text)

    # Callbacks: librdkafka runs them inside poll, on its thread. They never raise.

    def _on_assign(self, _client: confluent_kafka.Consumer, assigned: list[confluent_kafka.TopicPartition]) -> None:
        try:
            starts, ids = self._start_offsets(assigned)
            if self._incremental:
                self._client.incremental_assign(starts)
            else:
                self._client.assign(starts)
            self._check_same_topics(ids)
            epochs = dict(self._assigned.begin(item, ids.get(item.topic, "")) for item in starts)
            self._topic_ids.watch(self._assigned.topic_ids)
            # A pause can survive a revocation and a new assignment, so both states are set explicitly.
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
            self._assigned.end(partitions)
            self._topic_ids.watch(self._assigned.topic_ids)
            if self._incremental:
                self._client.incremental_unassign(ended)
            else:
                self._client.unassign()

    def _start_offsets(
        self, assigned: list[confluent_kafka.TopicPartition]
    ) -> tuple[list[confluent_kafka.TopicPartition], dict[str, str]]:
        """Return the start offsets of these partitions, and the IDs of their topics by name."""
        try:
            committed = self._committed(assigned, self._start_tries)
            # In this order, a topic that is created again in between has another ID than its commits.
            ids = self._look_up_ids({item.topic for item in assigned})
        except KafkaError:
            if self._listener.waiting():
                raise
            self._gave_up = True
            return assigned, {}  # the process is stopping, so nothing is read from them
        # A topic that does not exist now is watched with the ID from its commits. If an ID seems to differ, the answer
        # may come from a broker with outdated metadata, so the ID is looked up until the brokers agree.
        settled = set()
        for item in committed:
            known = from_metadata(item.metadata)
            if item.topic not in ids and known:
                ids[item.topic] = known
            elif item.topic not in settled and is_another(known, ids.get(item.topic, "")):
                self._listener.waiting()  # the lookup takes seconds for each topic
                ids[item.topic] = self._topic_ids.look_up_settled(item.topic) or ids[item.topic]
                settled.add(item.topic)
        return start_offsets(committed, ids, without_commit=self._without_commit), ids

    def _look_up_ids(self, topics: Collection[str]) -> dict[str, str]:
        for _ in range(group.LOOKUP_TRIES):
            try:
                return self._topic_ids.look_up(topics)
            except KafkaException as error:
                failure = error
                if not self._listener.waiting():
                    break
        raise KafkaError(f"cannot look up the topic IDs of {', '.join(topics)}: {group.text_of(failure)}") from failure

    def _check_same_topics(self, ids: Mapping[str, str]) -> None:
        """Fail if a topic has another ID than its partitions that are already assigned: a new topic has replaced it."""
        for topic, before in self._assigned.topic_ids.items():
            if is_another(before, now := ids.get(topic, "")):
                self._fail(topic_replaced(Replaced(topic, before, now)))

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
        """Set the error that `poll` raises. Only the first one counts, because later ones may be its consequences."""
        self._failure = self._failure or error

    def _check_owner(self) -> None:
        if threading.get_ident() != self._owner:
            raise OwnershipError("Source belongs to the thread that subscribed; call it there")
