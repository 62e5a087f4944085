"""Fakes of confluent_kafka's clients: what they are told is recorded, what they say is written down before."""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from consumer.kafka.topic_ids import Replaced
from consumer.types import TopicPartition as Ours

_INVALID = -1001  # librdkafka: no offset


class FakeMessage:
    def __init__(
        self,
        partition: Ours,
        offset: int | None,  # the library says None for -1001
        value: bytes | None = b"x",
        key: bytes | None = b"cam-1",
        *,
        timestamp_ms: int | None = None,
        error: KafkaError | None = None,
        leader_epoch: int | None = None,
    ) -> None:
        self._at, self._offset, self._value, self._key, self._error = partition, offset, value, key, error
        self._timestamp_ms = timestamp_ms
        self._leader_epoch = leader_epoch

    def leader_epoch(self) -> int | None:
        return self._leader_epoch

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return self._at.topic

    def partition(self) -> int:
        return self._at.partition

    def offset(self) -> int | None:
        return self._offset

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> bytes | None:
        return self._key

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        if self._timestamp_ms is None:
            return confluent_kafka.TIMESTAMP_NOT_AVAILABLE, -1
        return confluent_kafka.TIMESTAMP_CREATE_TIME, self._timestamp_ms


def failed(code: int, text: str = "said the broker", *, fatal: bool = False) -> KafkaError:
    return KafkaError(code, text, fatal=fatal)


def group_metadata(generation: int, member: str, instance: str | None = None) -> bytes:
    """As librdkafka writes it."""
    tail = b"\x01" if instance is None else b"\x00" + instance.encode() + b"\0"
    return b"CGMDv2:" + struct.pack("=i", generation) + b"sluice\0" + member.encode() + b"\0" + tail


class FakeConsumer:
    """`script` is played by `poll`: messages come out, functions are called and the next entry follows."""

    def __init__(self, settings: dict[str, Any], logger: object = None) -> None:
        self.settings = settings
        self.script: deque[FakeMessage | Callable[[], object] | None] = deque()
        self.calls: list[tuple[str, Any]] = []
        self.group: dict[Ours, int] = {}  # committed
        self.group_metadata: dict[Ours, str] = {}  # ... with this
        self.lookup_failures = 0
        self.seek_failures = 0
        self.metadata = group_metadata(3, "member-1")
        self.refuse: KafkaError | None = None  # what commit and store answer
        self.callbacks: dict[str, Callable[..., None]] = {}
        self.waits: list[float] = []
        self.watermarks = (0, 100)  # cached, of every partition

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        self.calls.append(("subscribe", topics))
        self.callbacks = callbacks

    def poll(self, timeout: float) -> FakeMessage | None:
        self.waits.append(timeout)
        while self.script:
            item = self.script.popleft()
            if item is None or isinstance(item, FakeMessage):
                return item
            item()
        return None

    def rebalance(self, event: str, *partitions: Ours) -> Callable[[], None]:
        """An entry of the script: `event` is assign, revoke or lost."""
        listed = [TopicPartition(p.topic, p.partition) for p in partitions]
        return lambda: self.callbacks[f"on_{event}"](self, listed)

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        if self.lookup_failures:
            self.lookup_failures -= 1
            raise KafkaException(failed(KafkaError._TIMED_OUT))
        return [
            TopicPartition(*each, self.group.get(each, _INVALID), self.group_metadata.get(each, ""))
            for each in (Ours(p.topic, p.partition) for p in partitions)
        ]

    def get_watermark_offsets(
        self, partition: TopicPartition, *, cached: bool = False, timeout: float = 0.0
    ) -> tuple[int, int]:
        assert cached or timeout, "it asks the brokers in the loop, without an end"
        return self.watermarks

    def consumer_group_metadata(self) -> bytes:
        return self.metadata

    def seek(self, partition: TopicPartition) -> None:
        if self.seek_failures:
            self.seek_failures -= 1
            raise KafkaException(failed(KafkaError._STATE, "not fetching yet"))
        self.calls.append(("seek", [(Ours(partition.topic, partition.partition), partition.offset)]))

    def store_offsets(self, *, offsets: list[TopicPartition]) -> None:
        self._answer("store", offsets)

    def commit(self, *, asynchronous: bool, offsets: list[TopicPartition] | None = None) -> None:
        assert asynchronous is (offsets is None), "in the background what is stored, and in the end what it is told"
        self._answer("commit", offsets or [])

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in {"assign", "unassign", "incremental_assign", "incremental_unassign", "pause", "resume", "close"}:
            raise AttributeError(name)

        def record(partitions: list[TopicPartition] | None = None) -> None:
            self.calls.append((name, [(Ours(p.topic, p.partition), p.offset) for p in partitions or []]))

        return record

    def called(self, name: str) -> list[Any]:
        return [argument for call, argument in self.calls if call == name]

    def _answer(self, call: str, offsets: list[TopicPartition]) -> None:
        self.calls.append((call, [(Ours(p.topic, p.partition), p.offset) for p in offsets]))
        if self.refuse is not None:
            raise KafkaException(self.refuse)


class FakeTopicIds:
    """As `TopicIds`. `ids` are those of today; `expected` is what the source watches."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.expected: dict[str, str] = {}
        self.replaced: Replaced | None = None
        self.failures = 0
        self.settled: list[str] = []  # topics that were asked for until the answers agree
        self.closed = False

    def look_up(self, topics: Collection[str]) -> dict[str, str]:
        if self.failures:
            self.failures -= 1
            raise KafkaException(failed(KafkaError._TIMED_OUT))
        return {topic: self.ids[topic] for topic in topics if topic in self.ids}

    def look_up_settled(self, topic: str) -> str:
        self.settled.append(topic)
        return self.look_up([topic]).get(topic, "")

    def watch(self, ids: Mapping[str, str]) -> None:
        self.expected = dict(ids)

    def close(self) -> None:
        self.closed = True


class FakeProducer:
    """Keeps what it is given; `report` decides each message's fate when it is polled. None: no report yet."""

    def __init__(self, settings: dict[str, Any], logger: object = None) -> None:
        self.settings = settings
        self.produced: list[dict[str, Any]] = []
        self.queue: deque[dict[str, Any]] = deque()
        self.report: Callable[[dict[str, Any]], KafkaError | None] = lambda _: None
        self.full_for = 0  # calls of produce that find the queue full
        self.refuse: Callable[[str], KafkaError | None] = lambda _: None  # by topic
        self.on_poll: Callable[[float], None] = lambda _: None
        self.died: KafkaError | None = None
        self.purged = False
        self.holds = False  # the brokers answer nothing

    def produce(self, topic: str, value: bytes | None, key: bytes | None, **options: Any) -> None:
        if self.full_for:
            self.full_for -= 1
            raise BufferError("Local: Queue full")
        if (error := self.refuse(topic)) is not None:
            raise KafkaException(error)
        message = {"topic": topic, "value": value, "key": key, **options}
        self.produced.append(message)
        self.queue.append(message)

    def poll(self, timeout: float) -> int:
        self.on_poll(timeout)
        if self.died is not None:  # the real one raises; it does not call error_cb
            raise KafkaException(self.died)
        for _ in range(0 if self.holds else len(self.queue)):
            message = self.queue.popleft()
            message["on_delivery"](self.report(message), None)
        return 0

    def purge(self) -> None:
        self.purged = True
        self.queue.clear()

    def flush(self, timeout: float) -> int:
        return len(self.queue)


class FakeTransactionalProducer(FakeProducer):
    """As FakeProducer, with transactions. `fails`: by method, what its next calls raise; `takes`: seconds of its calls;
    `hangs`: what its next call of a method waits for.

    Messages are delivered in `commit_transaction`, as by the real one. `made` has every producer of a test, in order.
    """

    made: ClassVar[list[FakeTransactionalProducer]] = []
    fails: ClassVar[dict[str, list[KafkaError]]] = {}
    takes: ClassVar[dict[str, float]] = {}
    hangs: ClassVar[dict[str, threading.Event]] = {}
    cluster = "4L6g3nShT-eMCtK--X86sw"
    advance: ClassVar[Callable[[float], None]]

    def __init__(self, settings: dict[str, Any], logger: object = None) -> None:
        super().__init__(settings, logger)
        self.calls: list[str] = []
        self.offsets: dict[Ours, int] = {}
        self.metadata: list[object] = []
        self.withheld: Callable[[dict[str, Any]], bool] = lambda _: False  # not reported by the end of the call
        self.on_poll = FakeTransactionalProducer.advance
        self.made.append(self)

    def cluster_id(self, timeout: float) -> str:
        return self.cluster

    def init_transactions(self, timeout: float) -> None:
        self._call("init_transactions")

    def begin_transaction(self) -> None:
        self._call("begin_transaction")

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], metadata: object, timeout: float) -> None:
        assert 0 < timeout <= 10
        self._call("send_offsets_to_transaction")
        self.offsets |= {Ours(p.topic, p.partition): p.offset for p in offsets}
        self.metadata.append(metadata)

    def commit_transaction(self, timeout: float) -> None:
        assert 0 < timeout <= 10
        late = [message for message in self.queue if self.withheld(message)]
        for message in [message for message in self.queue if message not in late]:
            message["on_delivery"](self.report(message), None)
        self.queue = deque(late)
        self._call("commit_transaction")

    def purge(self) -> None:
        super().purge()
        self.calls.append("purge")

    def close(self) -> None:
        raise AssertionError("it asks the brokers to abort what the next producer resolves")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        FakeTransactionalProducer.advance(self.takes.get(name, 0.001))
        if (until := self.hangs.pop(name, None)) is not None:
            until.wait()
            self.calls.append(f"{name} is back")
        if self.fails.get(name):
            raise KafkaException(self.fails[name].pop(0))
