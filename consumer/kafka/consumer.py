"""Poll: the sole owner of `confluent_kafka.Consumer`, of pause and resume, and of what is assigned.

All calls and callbacks happen on the thread that called `subscribe`, but for the last two, which may hang: the commit
of a stop, and closing. librdkafka runs rebalance callbacks inside `poll`, on the thread that polls.
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
        # A first start skips nothing, unless the user has chosen a reset policy: then the client library applies it.
        chosen = settings["auto.offset.reset"] != "error"
        self._without_commit = confluent_kafka.OFFSET_INVALID if chosen else confluent_kafka.OFFSET_BEGINNING
        self._assigned = Assignment()
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
        self._topic_ids = topic_ids or TopicIds(config)

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
            self._fail(topic_replaced(replaced))  # what was read just now may be of the new topic already
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, TopicReplacedError | OffsetsLostError):
                of_topic = [each for each in self._assigned.partitions if each.topic == failure.topic]
                self._commits.withhold(self._client, of_topic)
            raise failure
        return frames

    def ends(self) -> list[Receipt]:
        """Where polls have reached the end of a partition since the last call, and records before it are no frames.

        The offset of each receipt is the one that is read next. Everything below it was handed out by `poll`, so call
        this after those frames were taken in.
        """
        self._check_owner()
        return self._assigned.take_ends()

    def pause(self) -> None:
        """Stop fetching; `poll` goes on. librdkafka drops what it had prefetched and reads it again on resume."""
        self._check_owner()
        if not self._paused:
            self._paused = True
            self._client.pause(self._assigned.partitions)

    def resume(self) -> None:
        """Fetch again."""
        self._check_owner()
        if self._paused:
            self._paused = False
            self._client.resume(self._assigned.partitions)

    def store(self, offsets: Iterable[Committable]) -> None:
        """Hand these offsets to the next commit: `poll` sends one every `commit_interval_ms`."""
        self._check_owner()
        self._commits.store(self._client, self.commit_positions(offsets))

    def commit(self, offsets: Sequence[Committable]) -> None:
        """Commit these offsets and wait for the answer, for a few seconds at most.

        A group that is rebalancing refuses them, and is asked again meanwhile. Another refusal is logged, and so is
        silence: the frames will be repeated, not lost. Never call it inside a rebalance: it would wait for the poll
        that the rebalance runs in. There `store` is enough, because librdkafka commits what is stored when the
        partitions are unassigned.
        """
        self._check_owner()
        self._commits.commit_now(self._client, self.commit_positions(offsets), self._last)

    def membership(self) -> object | None:
        """What a transaction proves with that it may commit our offsets; for this turn alone. None: not a member."""
        self._check_owner()
        metadata = self._client.consumer_group_metadata()
        return metadata if group.is_member(metadata) else None

    def commit_positions(self, offsets: Iterable[Committable]) -> list[confluent_kafka.TopicPartition]:
        """These offsets as a commit carries them: with topic ID and leader epoch, see `Position.commit_of`."""
        self._check_owner()
        return self._assigned.commit_positions(offsets)

    def transacted(self, offsets: Iterable[Committable]) -> None:
        """These offsets were committed by a transaction. `rewind` never goes below them.

        A coordinator that has just taken over was seen to answer with older offsets than its predecessor had.
        """
        self._check_owner()
        self._assigned.mark_committed(offsets)

    def rewind(self) -> dict[TopicPartition, int] | None:
        """Go back to what the group has committed, and fetch again. For a time when no transaction is open.

        Returns the new epochs; None where it is not possible now: try again, after a poll.
        """
        self._check_owner()
        try:
            found = self._committed(self._assigned.partitions, tries=2) if self._assigned else []
            self.resume()  # before the seek: it would go on at the position of the pause
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
        """How far each assigned partition is behind, from what the last fetches said. Asks nobody.

        A partition that nothing was read of counts from where its reading begins. One that was not fetched from yet,
        as while its broker is away, is left out: a 0 would be a guess.
        """
        self._check_owner()
        return self._assigned.lag(partial(self._client.get_watermark_offsets, cached=True), self._wall_clock_ms())

    def close(self, timeout_s: float) -> bool:
        """Leave the group. False where the client did not close in time: it can hang while brokers are away.

        The listener is not told of the revocation that this brings: settle and `commit` before.
        """
        self._check_owner()
        self._closing = True
        self._topic_ids.close()
        try:
            self._last.call(self._client.close, timeout_s)  # behind a last commit that is not answered
        except TimeoutError:
            return False
        except Exception as error:  # noqa: BLE001 - why this process ends has been said, or is that it was told to
            _log.warning("consumer not closed in order", error=group.text_of(error))
        self._last.end()
        return True

    # What a poll brings that is no frame

    def _event(self, message: Any) -> None:
        error, code = message.error(), message.error().code()
        partition = TopicPartition(message.topic() or "", message.partition() or 0)
        if code == _Code._PARTITION_EOF:  # noqa: SLF001 - the library's own name
            self._assigned.reached(partition, message.offset())
        elif code != _Code._AUTO_OFFSET_RESET:  # noqa: SLF001
            self._verdict(error)
        # After a stop, no start offset was looked up, so this error is expected. The client also hands it out for a
        # partition that was revoked meanwhile: its new owner finds out by itself.
        elif not self._gave_up and partition in self._assigned:
            self._fail(self._explain_reset(partition, message.offset(), error.str()))

    def _explain_reset(self, partition: TopicPartition, offset: int | None, text: str) -> KafkaError:
        """The offset to read from is not in the log. Asks the brokers why; blocks for seconds."""
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

    # Callbacks: they run inside poll, on its thread, and never raise

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
            self._assigned.end(partitions)
            self._topic_ids.watch(self._assigned.topic_ids)
            if self._incremental:
                self._client.incremental_unassign(ended)
            else:
                self._client.unassign()

    def _start_offsets(
        self, assigned: list[confluent_kafka.TopicPartition]
    ) -> tuple[list[confluent_kafka.TopicPartition], dict[str, str]]:
        """Where reading begins, and the topic IDs of these partitions."""
        try:
            committed = self._committed(assigned, self._start_tries)
            # In this order: a topic that is created again in between has another ID than its commits.
            ids = self._look_up_ids({item.topic for item in assigned})
        except KafkaError:
            if self._listener.waiting():
                raise
            self._gave_up = True
            return assigned, {}  # nothing is read of them any more
        # A topic that is not there now is watched for with the ID that its commits name. One that seems to be another
        # topic may be seen so by a broker that is behind.
        settled = set()
        for item in committed:
            known = from_metadata(item.metadata)
            if item.topic not in ids and known:
                ids[item.topic] = known
            elif item.topic not in settled and is_another(known, ids.get(item.topic, "")):
                self._listener.waiting()  # it takes seconds for each topic
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
        """Partitions that are held already must be of the same topics, not of others with the same names."""
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
        """What `poll` raises: the first failure; later ones may follow from it."""
        self._failure = self._failure or error

    def _check_owner(self) -> None:
        if threading.get_ident() != self._owner:
            raise OwnershipError("Source belongs to the thread that subscribed; call it there")
