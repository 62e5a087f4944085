"""Feeders that a harm can hold and steer, also in transactions. `Harm.feeder` names the class.

The plain feeder is in `recorder.py`; those that send something else than small frames of equal shares in `loads.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import confluent_kafka
import numpy as np
import simplejpeg

import images
from brokers import unique_name
from history import History, InputId, Sent
from recorder import Feeder
from waiting import wait_until

BAD_EVERY = 50
ABORTED = "aborted-"  # how the sources of the frames begin whose transaction is aborted
LARGEST_BYTES = 16_000_000
_BAD = b"no picture, frame "


@dataclass(frozen=True, slots=True)
class Record:
    """What is sent. `timestamp_ms`: Unix milliseconds; 0: the time of sending. `partition`: -1: as the key says."""

    key: str | None
    value: bytes
    timestamp_ms: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    partition: int = -1


def small_picture(number: int) -> bytes:
    """A good frame. Frames near each other have pictures of different sizes."""
    return _picture(40 + number % 97)


def bad_picture(number: int, size: int = 0) -> bytes:
    """A frame of at least `size` bytes that becomes a dead letter."""
    return (_BAD + b"%d " % number).ljust(size, b"-")


@cache
def noise(width: int, height: int, quality: int = 95) -> bytes:
    """A JPEG that compresses badly: 1280x960 at quality 95 has 3 MB."""
    pixels = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "444"))


@cache
def _picture(width: int) -> bytes:
    return images.jpeg(width, width * 3 // 4, width)


class SteeredFeeder(Feeder):
    """Can be held and let go, and sends bursts. Subclasses choose the frames in `record`."""

    prefix = "cam-"

    def __init__(self, history: History, bootstrap: str, topic: str, *, sources: int, rate: float) -> None:
        self._settings: dict[str, Any] = {}
        super().__init__(history, bootstrap, topic, sources=sources, rate=rate)
        self._count = sources
        self._hold, self._holds = threading.Event(), threading.Event()

    def record(self, number: int) -> Record:
        """The frame with this number."""
        bad = number % BAD_EVERY == BAD_EVERY - 1
        return Record(self.source(number), bad_picture(number) if bad else small_picture(number))

    def source(self, number: int) -> str:
        return f"{self.prefix}{number % self._count}"

    def turn(self) -> None:
        if self._hold.is_set():
            self._client.poll(0.02)
            self._holds.set()
            return
        self._holds.clear()
        self._due = max(self._due + self._every_s, time.monotonic() - 0.5)
        # A poll returns with each delivery report: one alone would send the next frame as soon as the last is written.
        while (left := self._due - time.monotonic()) > 0:
            if self._stopped.is_set() or self._hold.is_set():
                return
            self._client.poll(min(left, 0.1))
        self.send()

    def send(self) -> None:
        self.put(self.record(self._number))
        self._number += 1

    def put(self, record: Record) -> None:
        """Send one frame. From the thread of a harm only while the feeder is held."""
        while True:
            try:
                self._client.produce(
                    self._topic,
                    record.value,
                    record.key,
                    record.partition,
                    timestamp=record.timestamp_ms,
                    headers=list(record.headers),
                    on_delivery=self._delivered,
                )
            except BufferError:
                self._client.poll(0.05)
            else:
                return

    def hold(self, timeout_s: float = 20.0) -> None:
        """Send no more, and wait until the brokers have answered for everything."""
        self._holds.clear()
        self._hold.set()
        wait_until(lambda: self._holds.is_set() and len(self._client) == 0, timeout_s, "the feeder to hold still")

    def let_go(self) -> None:
        self._hold.clear()

    def send_at_once(self, frames: int) -> None:
        """Hand so many frames to the client, while held; `hold` waits until the brokers have them."""
        assert self._hold.is_set()
        for _ in range(frames):
            self.send()

    def burst(self, frames: int, timeout_s: float = 30.0) -> None:
        """So many frames at once, while held. Waits until the brokers have them."""
        self.send_at_once(frames)
        self.hold(timeout_s)

    def burst_to(self, frames: Mapping[int, int], timeout_s: float = 30.0) -> None:
        """So many frames at once to each partition, while held. Waits until the brokers have them."""
        assert self._hold.is_set()
        for partition, count in frames.items():
            for _ in range(count):
                self.put(replace(self.record(self._number), partition=partition))
                self._number += 1
        self.hold(timeout_s)

    def begin_again(self, prefix: str) -> None:
        """While held: the topic is another one. Its sources are called otherwise, and nothing was acknowledged yet."""
        assert self._hold.is_set()
        self._history.acknowledged.clear()
        self.prefix = prefix
        self.renew()

    def renew(self) -> None:
        """While held: a client that knows the topic as it is now."""
        self._client = self._new_client()

    def _new_client(self) -> confluent_kafka.Producer:
        return confluent_kafka.Producer(
            {
                "log_level": 0,
                "bootstrap.servers": self._bootstrap,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "message.max.bytes": LARGEST_BYTES + 100_000,
                **self._settings,
            }
        )


class TransactionalFeeder(SteeredFeeder):
    """Writes every frame in transactions, and aborts some: those frames were never sent, and need no outcome."""

    FRAMES = 10
    ABORT_EVERY = 4
    ends_aborted = False  # what `hold` leaves at the end of the partitions: aborted frames, or a commit's marker

    def __init__(self, history: History, bootstrap: str, topic: str, *, sources: int, rate: float) -> None:
        super().__init__(history, bootstrap, topic, sources=sources, rate=rate)
        self._undecided: list[Sent] = []
        self._transactions = 0

    def turn(self) -> None:
        if self._hold.is_set():
            if not self._holds.is_set():
                self._transact(4 * self._count, abort=self.ends_aborted)  # all sources: it ends every partition
                self._holds.set()
            self._stopped.wait(0.02)
            return
        began_s = time.monotonic()
        self._transactions += 1
        self._transact(self.FRAMES, abort=self._transactions % self.ABORT_EVERY == 0)
        self._stopped.wait(max(0.0, began_s + self.FRAMES * self._every_s - time.monotonic()))

    def source(self, number: int) -> str:
        return (ABORTED if self._aborts else "") + super().source(number)

    def _transact(self, frames: int, *, abort: bool) -> None:
        self._aborts = abort
        self._undecided.clear()
        self._client.begin_transaction()
        for _ in range(frames):
            self.send()
        assert self._client.flush(30) == 0, "the brokers did not take the frames of a transaction"
        if abort:
            self._client.abort_transaction(30)
        else:
            self._client.commit_transaction(30)
            self._history.acknowledged += self._undecided

    def _delivered(self, error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
        if error is None and message.offset() >= 0:
            key = (message.key() or b"").decode()
            self._undecided.append(Sent(InputId(message.partition() or 0, message.offset() or 0), key))

    def _new_client(self) -> confluent_kafka.Producer:
        self._aborts = False
        self._settings = {"transactional.id": unique_name("feeder"), "linger.ms": 0}
        client = super()._new_client()
        client.init_transactions(30)
        return client


class EndsAborted(TransactionalFeeder):
    """Its partitions end with frames that were aborted."""

    ends_aborted = True


def only_committed(history: History) -> None:
    """Frames whose transaction was aborted are no input; an outcome of one would be invented."""
    history.inputs = [sent for sent in history.inputs if not sent.source.startswith(ABORTED)]
