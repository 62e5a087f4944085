"""Poll: the sole owner of `confluent_kafka.Consumer`, of the assignment's epochs, and of pause and resume.

All calls and callbacks happen on the thread that called `subscribe`: librdkafka runs rebalance callbacks inside
`poll`, on the thread that polls. A partition's epoch rises with every assignment, revocation and loss, and is stamped
on each frame, because a consumer that has lost its partitions does not know it until its next poll.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import confluent_kafka
import structlog
from confluent_kafka import KafkaException

from consumer.config import Config
from consumer.errors import KafkaError, OwnershipError
from consumer.offsets import Committable
from consumer.source import group
from consumer.types import Clock, Frame, Lag, Receipt, TopicPartition
from consumer.wire import parse_frame, read_record

_log = structlog.get_logger(__name__)

# Frames handed out by one `poll`: enough to share the cost of a turn, few enough that decoding starts soon.
BURST = 32
# A synchronous commit is given up after this, so that neither a rebalance nor a shutdown hangs on it.
_COMMIT_S = 5.0
# A commit that is not answered for longer is taken for lost. Longer than any timeout of the client.
_UNANSWERED_S = 120.0

_Code = confluent_kafka.KafkaError
# No retry of the client mends these: a person must change a right, a setting or a topic.
_FATAL = {
    _Code.TOPIC_AUTHORIZATION_FAILED: "grant this user READ on every input topic: {topics}",
    _Code.GROUP_AUTHORIZATION_FAILED: "grant this user READ on the consumer group {group}",
    _Code.CLUSTER_AUTHORIZATION_FAILED: "the cluster refuses this client",
    _Code._AUTHENTICATION: "check the SASL and TLS settings in kafka.client",  # noqa: SLF001 - the library's own name
    _Code.SASL_AUTHENTICATION_FAILED: "check the SASL settings in kafka.client",
    _Code.UNSUPPORTED_SASL_MECHANISM: "the brokers do not offer this sasl.mechanism",
    _Code.INVALID_GROUP_ID: "kafka.group_id is not valid",
    _Code.FENCED_INSTANCE_ID: "another process runs with the same group.instance.id",
    _Code.UNSUPPORTED_VERSION: "the brokers are too old for this setting",
}


class RebalanceListener(Protocol):
    """Called inside `Source.poll`, on its thread. An exception ends the poll with it, after the rebalance."""

    def assigned(self, epochs: dict[TopicPartition, int]) -> None:
        """These partitions are ours now; frames of them come with these epochs."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """We own these for as long as this call lasts: finish, publish, `commit`. After it, they are someone else's."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Someone else owns these already: publish nothing and commit nothing of them."""


@dataclass(slots=True)
class _Position:
    epoch: int
    first_offset: int | None = None  # of the first frame since the assignment; a rewind keeps it
    next_offset: int | None = None
    timestamp_ms: int | None = None


def consumer_settings(config: Config) -> dict[str, Any]:
    """The librdkafka settings of the consumer: ours, then the user's over them, then those that promises stand on."""
    settings: dict[str, Any] = {
        "client.id": "sluice",
        "partition.assignment.strategy": "cooperative-sticky",
        # Stop, rather than skip what was deleted or start at the end: see `_start_offsets` for the first start.
        "auto.offset.reset": "error",
        # The default of 1000 ms starves a consumer of large messages once its queue was full.
        "fetch.queue.backoff.ms": 10,
        "queued.max.messages.kbytes": 32 * 1024,
        "fetch.wait.max.ms": 100,
    } | {**config.kafka.shared, **config.kafka.consumer}
    if settings.get("group.protocol") == "consumer":
        settings.pop("partition.assignment.strategy")  # KIP-848: the brokers assign, and refuse the setting
    return settings | {
        "bootstrap.servers": config.kafka.bootstrap_servers,
        "group.id": config.kafka.group_id,
        "enable.auto.commit": config.delivery == "at_least_once",  # else its transactions commit
        # 0: not by a timer, see `_commit_stored`; what is stored is still committed when partitions are unassigned.
        "auto.commit.interval.ms": 0,
        "enable.auto.offset.store": False,
    }


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
        self._group = config.kafka.group_id
        self._listener = listener
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._on_committed = on_committed  # seconds since the first offset of the commit was stored; None: refused
        self._stored_at: float | None = None  # when the first offset was stored that is not committed yet
        self._commit_every_s = config.kafka.commit_interval_ms / 1000
        self._uncommitted = False  # something was stored since the last commit was sent, or that one has failed
        self._commit_sent_at = clock()
        self._commit_answered = True
        settings = consumer_settings(config)
        self._incremental = settings.get("group.protocol") == "consumer" or "cooperative" in str(
            settings["partition.assignment.strategy"]
        )
        self._look_up_offsets = settings["auto.offset.reset"] == "error"
        self._positions: dict[TopicPartition, _Position] = {}
        self._known: dict[tuple[str, int], TopicPartition] = {}  # one object a partition, not one a frame
        self._last_epoch = 0
        self._paused = False
        self._closing = False
        self._failure: BaseException | None = None
        self._owner: int | None = None
        try:
            self._client = confluent_kafka.Consumer(
                settings | {"error_cb": self._on_error, "on_commit": self._on_commit},
                logger=logging.getLogger("librdkafka.consumer"),
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise KafkaError(f"kafka.consumer: {group.text_of(error)}") from error

    def subscribe(self) -> None:
        """Join the group. From now on this thread must `poll` at least every `max.poll.interval.ms`."""
        self._owner = threading.get_ident()
        self._client.subscribe(
            list(self._topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def poll(self, room: int, timeout_s: float) -> list[Frame]:
        """Up to `room` frames (`BURST` at most); blocks up to `timeout_s` for the first. Serves rebalances.

        With no room nothing is taken, so call it only while paused: then it keeps the membership alive.
        Raises KafkaError where no retry helps, and whatever the listener raised.
        """
        self._check_owner()
        self._commit_stored()
        frames: list[Frame] = []
        poll = self._client.poll
        message = poll(timeout_s)
        while message is not None:
            if (error := message.error()) is not None:
                self._judge(error)
            else:
                frames.append(self._frame(message))
                if len(frames) >= min(room, BURST):
                    break
            if self._failure is not None:
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
        if stored := [_topic_partition(item.partition, item.next_offset) for item in offsets]:
            try:
                self._client.store_offsets(offsets=stored)
                self._uncommitted = True
                self._stored_at = self._clock() if self._stored_at is None else self._stored_at
            except KafkaException as error:
                # The assignment has gone and the callback that says so has not run yet; its new owner repeats.
                _log.warning("offsets not stored", error=group.text_of(error))

    def commit(self, offsets: Sequence[Committable]) -> None:
        """Commit these offsets and wait for the answer, for a few seconds at most.

        A refusal is logged, and so is silence: the frames will be repeated, not lost. Never call it inside a
        rebalance: it would wait for the poll that the rebalance runs in. There `store` is enough, because librdkafka
        commits what is stored when the partitions are unassigned.
        """
        self._check_owner()
        if not offsets:
            return
        asked = [_topic_partition(item.partition, item.next_offset) for item in offsets]

        def commit() -> None:
            try:
                self._client.commit(offsets=asked, asynchronous=False)
            except KafkaException as error:
                _log.warning("commit refused; these frames will be repeated", error=group.text_of(error))
                self._count_commit(ok=False)
            else:
                self._count_commit(ok=True)

        # On a thread of its own, because without a coordinator the client waits for all of session.timeout.ms.
        committing = threading.Thread(target=commit, name="consumer-commit", daemon=True)
        committing.start()
        committing.join(_COMMIT_S)
        if committing.is_alive():
            _log.warning("commit not answered in time; these frames may be repeated", waited_s=_COMMIT_S)

    def membership(self) -> object | None:
        """What a transaction proves with that it may commit our offsets; for this turn alone. None: not a member."""
        self._check_owner()
        metadata = self._client.consumer_group_metadata()
        return metadata if group.is_member(metadata) else None

    def rewind(self) -> dict[TopicPartition, int] | None:
        """Go back to what the group has committed, and fetch again. For a time when no transaction is open.

        Returns the new epochs; None where it is not possible now: try again, after a poll.
        """
        self._check_owner()
        try:
            found = group.committed(self._client, self._assignment(), tries=1) if self._positions else []
            self.resume()  # before the seek: it would go on at the position of the pause
            for item in found:
                self._seek(item)
        except (KafkaException, KafkaError) as error:
            _log.warning("cannot go back to the committed offsets yet", error=group.text_of(error))
            return None
        _log.info("rewound", offsets={f"{item.topic}[{item.partition}]": item.offset for item in found})
        positions = list(self._positions.items())
        return {partition: self._begin_epoch(partition, position.first_offset) for partition, position in positions}

    def lag(self) -> list[Lag]:
        """How far each assigned partition is behind, from what the last fetches said. Asks nobody."""
        self._check_owner()
        behind = []
        for partition, position in self._positions.items():
            if position.next_offset is None:
                continue
            _, high = self._client.get_watermark_offsets(_topic_partition(partition), cached=True)
            records = max(0, high - position.next_offset)
            age_ms = self._wall_clock_ms() - position.timestamp_ms if position.timestamp_ms is not None else 0
            behind.append(Lag(partition, records, max(0.0, age_ms / 1000) if records else 0.0))
        return behind

    def close(self, timeout_s: float) -> bool:
        """Leave the group. False where the client did not close in time: it can hang while brokers are away.

        The listener is not told of the revocation that this brings: settle and `commit` before.
        """
        self._check_owner()
        self._closing = True
        closing = threading.Thread(target=self._client.close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()

    # Commits

    def _commit_stored(self) -> None:
        """Commit what is stored, in the background: once the interval has passed, and the commit before was answered.

        Never two at a time: librdkafka tries each again by itself while the coordinator is away, in no certain order,
        and an old one that arrives last takes the group back.
        """
        if self._commit_answered and not self._uncommitted:
            return
        waited_s = self._clock() - self._commit_sent_at
        if waited_s < (self._commit_every_s if self._commit_answered else _UNANSWERED_S):
            return
        self._commit_sent_at, self._commit_answered, self._uncommitted = self._clock(), False, False
        try:
            self._client.commit(asynchronous=True)
        except KafkaException as error:
            self._commit_answered = self._uncommitted = True
            _log.warning("commit not sent", error=group.text_of(error))

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

    def _begin_epoch(self, partition: TopicPartition, first_offset: int | None = None) -> int:
        self._last_epoch += 1
        self._positions[partition] = _Position(self._last_epoch, first_offset)
        return self._last_epoch

    def _seek(self, committed: confluent_kafka.TopicPartition) -> None:
        position = self._positions[TopicPartition(committed.topic, committed.partition)]
        if committed.offset < 0:  # nothing was committed yet: back to where this assignment began
            if position.first_offset is None:
                return
            committed.offset = position.first_offset
        self._client.seek(committed)
        position.next_offset = None  # it may go back now, even if the seek of another partition fails

    def _judge(self, error: confluent_kafka.KafkaError) -> None:
        code = error.code()
        if code == _Code._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise KafkaError(
                f"the committed offset is no longer in the topic: {error.str()}. Frames were deleted before they were "
                "read. To go on with what is there, set kafka.consumer auto.offset.reset to earliest (or latest)"
            )
        if code == _Code._FATAL:  # noqa: SLF001 - after this the client is silent for ever
            # Why it died is only in the text.
            causes = (advice for cause, advice in _FATAL.items() if _Code(cause).str() in error.str())
            raise KafkaError(f"the consumer died: {error.str()}; {next(causes, 'restart this process')}")
        if error.fatal() or code in _FATAL:
            raise KafkaError(f"{error.name()}: {error.str()}; {self._advice(code)}")
        _log.warning("kafka", error=error.name(), text=error.str())

    # Callbacks: they run inside poll, on its thread, and never raise

    def _on_assign(self, _client: confluent_kafka.Consumer, assigned: list[confluent_kafka.TopicPartition]) -> None:
        try:
            starts = self._start_offsets(assigned)
            if self._incremental:
                self._client.incremental_assign(starts)
            else:
                self._client.assign(starts)
            epochs = {}
            for item in assigned:
                partition = TopicPartition(item.topic, item.partition)
                self._known[partition] = partition
                epochs[partition] = self._begin_epoch(partition)
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
        starts = group.committed(self._client, assigned)
        for item in starts:
            if item.offset < 0:
                item.offset = confluent_kafka.OFFSET_BEGINNING
        return starts

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        if error.fatal() or error.code() in _FATAL:
            self._fail(KafkaError(f"{error.name()}: {error.str()}; {self._advice(error.code())}"))
        else:
            _log.warning("kafka", error=error.name(), text=error.str())

    def _on_commit(
        self, error: confluent_kafka.KafkaError | None, _partitions: list[confluent_kafka.TopicPartition]
    ) -> None:
        self._commit_answered = True
        if error is None:
            self._count_commit(ok=True)
        elif error.code() != _Code._NO_OFFSET:  # noqa: SLF001
            self._uncommitted = True
            _log.warning("commit failed; the next one makes up for it", error=error.name(), text=error.str())
            self._count_commit(ok=False)

    def _count_commit(self, *, ok: bool) -> None:
        stored_at = self._stored_at
        if not ok:
            self._on_committed(None)
        elif stored_at is not None:
            self._stored_at = None
            self._on_committed(self._clock() - stored_at)

    def _advice(self, code: int) -> str:
        return _FATAL.get(code, "restart this process").format(topics=", ".join(self._topics), group=self._group)

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
