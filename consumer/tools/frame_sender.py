"""Sends frames of several sources to a topic, each source at its own rate, and counts every delivery report.

One thread per source reads, encodes, waits for the due time and produces. The caller's thread polls for delivery
reports.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaException

from consumer.errors import ConfigError, KafkaError, SluiceError
from consumer.messages import Message, encode_envelope
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.images import Image, ImageSource
from consumer.types import Clock

DEFAULTS: Final = {
    "enable.idempotence": "true",
    "acks": "all",
    "partitioner": "murmur2_random",  # as Java clients place keys
    "linger.ms": "5",
    "compression.type": "none",  # images are already compressed
    "message.max.bytes": str(64 * 2**20),  # the broker's own limit decides
    "queue.buffering.max.kbytes": str(64 * 1024),
    "delivery.timeout.ms": "30000",
}
_QUEUE_FULL_S: Final = 30.0
_FLUSH_S: Final = 35.0  # more than delivery.timeout.ms, so that every message has its report


@dataclass(slots=True)
class SourceCounts:
    """The frames of one source.

    The thread of the source writes `sent`, `bytes` and `late_s`. The polling thread writes `acknowledged`. Either of
    them writes `error`.

    Attributes:
        late_s: how many seconds after its due time the latest frame was sent.
        error: the latest reason why a frame was not delivered.
    """

    name: str
    sent: int = 0
    bytes: int = 0
    late_s: float = 0.0
    acknowledged: int = 0
    error: str = ""

    def report(self, error: Any, _message: Any) -> None:
        """Count the delivery report of one frame."""
        if error is None:
            self.acknowledged += 1
        else:
            self.error = printable(error.str())


@dataclass(frozen=True, slots=True)
class Summary:
    """What was sent, and in how many seconds."""

    counts_by_source: tuple[SourceCounts, ...]
    seconds: float

    def total(self, name: str) -> int:
        """The sum of one field of `SourceCounts` over all sources."""
        return sum(getattr(counts, name) for counts in self.counts_by_source)

    @property
    def missing(self) -> int:
        """Frames that no broker has acknowledged."""
        return self.total("sent") - self.total("acknowledged")

    def __str__(self) -> str:
        sources = len(self.counts_by_source)
        sent, seconds = self.total("sent"), max(self.seconds, 1e-9)
        line = (
            f"sent {sent} frames of {sources} source{'s' * (sources != 1)} in {self.seconds:.1f} s "
            f"({sent / seconds:.1f}/s, {self.total('bytes') / seconds / 1e6:.1f} MB/s); "
            f"{self.total('acknowledged')} acknowledged, {self.missing} not"
        )
        late = max(self.counts_by_source, key=lambda counts: counts.late_s, default=None)
        if late is not None and late.late_s > 1:
            line += f"; could not keep the rate: {late.name} is {late.late_s:.1f} s behind"
        return line


class Pace:
    """Waits until each frame of a source is due.

    Frame n is due `n / fps` seconds after the first one, so small delays do not add up.

    Args:
        fps: frames per second; 0 is as fast as possible.
        clock: returns seconds.
        wait: sleeps for the given seconds, or less if the sender is stopped.
    """

    def __init__(self, fps: float, *, clock: Clock, wait: Callable[[float], object]) -> None:
        self._interval = 1 / fps if fps else 0.0
        self._clock = clock
        self._wait = wait
        self._start: float | None = None

    def keep(self, n: int) -> float:
        """Wait until frame n is due. Returns how many seconds late it is."""
        ahead = self.ahead(n)
        if ahead > 0:
            self._wait(ahead)
        return max(0.0, -ahead)

    def ahead(self, n: int) -> float:
        """Seconds until frame n is due; negative if it is late."""
        now = self._clock()
        if self._start is None:
            self._start = now
        return self._start + n * self._interval - now if self._interval else 0.0


def message_for(source_id: str, number: int, image: Image, *, captured_at_ms: int, envelope: bool) -> Message:
    """Build the record of one frame, in one of the two input forms: image with headers, or msgpack envelope."""
    key = source_id.encode()
    if envelope:
        value = encode_envelope(
            image.data,
            source_id=source_id,
            frame_id=number,
            captured_at_ms=captured_at_ms,
            content_type=image.content_type,
        )
        return Message(key, value, [("content-type", b"application/msgpack")], captured_at_ms)
    headers: list[tuple[str, bytes | None]] = [
        ("source-id", key),
        ("frame-id", b"%d" % number),
        ("captured-at-ms", b"%d" % captured_at_ms),
        ("content-type", image.content_type.encode()),
    ]
    return Message(key, image.data, headers, captured_at_ms)


def send_source(
    source: ImageSource,
    send: Callable[[Message], bool],
    counts: SourceCounts,
    *,
    pace: Pace,
    frames: int | None,
    envelope: bool,
    stopped: Callable[[], bool],
    wall_clock_ms: Callable[[], int],
) -> None:
    """Send the frames of one source at its rate.

    Ends when the source ends, when `frames` frames are sent, when `send` returns False, or when `stopped` returns True.
    """
    if frames is not None and frames <= 0:
        return
    for image in source.open():
        if source.live and pace.ahead(counts.sent) > 0:
            continue  # a camera does not wait, so skip this frame: the next one that is due is more recent
        counts.late_s = 0.0 if source.live else pace.keep(counts.sent)
        if stopped():
            return
        now = wall_clock_ms()
        if not send(message_for(source.name, counts.sent, image, captured_at_ms=now, envelope=envelope)):
            return
        counts.sent += 1
        counts.bytes += len(image.data)
        if counts.sent == frames:
            return


@dataclass(slots=True)
class _SourceThreads:
    """The threads of the sources, and the first error of any of them."""

    producer: Any
    topic: str
    stop: threading.Event
    error: SluiceError | None = None
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, source: ImageSource, counts: SourceCounts, **options: Any) -> None:
        def run() -> None:
            try:
                send_source(
                    source,
                    lambda message: self._send(message, counts),
                    counts,
                    stopped=self.stop.is_set,
                    wall_clock_ms=lambda: time.time_ns() // 1_000_000,
                    **options,
                )
            except SluiceError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - the caller raises it, so that no thread ends unnoticed
                self._fail(ConfigError(f"--source {source.name}: {clients.text_of(error)}"))

        thread = threading.Thread(target=run, name=f"produce {source.name}", daemon=True)
        self.threads.append(thread)
        thread.start()

    def _fail(self, error: SluiceError) -> None:
        self.error = self.error or error
        self.stop.set()

    def _send(self, message: Message, counts: SourceCounts) -> bool:
        """Produce one frame. Returns False, without sending it, if `stop` is set while the local queue is full."""
        deadline = time.monotonic() + _QUEUE_FULL_S
        while True:
            try:
                self.producer.produce(
                    self.topic,
                    message.value,
                    message.key,
                    headers=message.headers,
                    timestamp=message.timestamp_ms,
                    on_delivery=counts.report,
                )
            except BufferError:  # the polling thread frees the queue
                if time.monotonic() > deadline:
                    raise KafkaError(f"the brokers accepted nothing for {_QUEUE_FULL_S:.0f} s") from None
                if self.stop.wait(0.005):
                    return False
            except KafkaException as error:  # the client refuses a frame that is too large: counted as not acknowledged
                counts.error = clients.text_of(error)
                return True
            else:
                return True

    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self.threads)


def send_frames(
    sources: Sequence[ImageSource],
    *,
    bootstrap_servers: str,
    topic: str,
    fps: float | None = None,
    frames: int | None = None,
    envelope: bool = False,
    settings: Mapping[str, Any] | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[Summary], None] | None = None,
) -> Summary:
    """Send all sources at once, until all have ended or `stop` is set, and every frame has its delivery report.

    Args:
        sources: what to send. Each needs its own name.
        bootstrap_servers: brokers to connect to first, comma-separated.
        topic: the topic to write to.
        fps: frames per second and source; None is the source's own rate, 0 is as fast as possible.
        frames: end each source after so many frames.
        envelope: send msgpack envelopes instead of images with headers.
        settings: librdkafka settings that override `DEFAULTS`.
        stop: ends the sources.
        on_progress: called on the caller's thread a few times per second.

    Raises:
        ConfigError: a source or a setting is wrong.
        KafkaError: the brokers cannot be reached.
    """
    if repeated := {s.name for s in sources if sum(s.name == other.name for other in sources) > 1}:
        raise ConfigError(f"--source: each name must be unique; more than once: {', '.join(sorted(repeated))}")
    stop = stop or threading.Event()
    producer = clients.producer(bootstrap_servers, DEFAULTS | dict(settings or {}))
    clients.partitions_of(producer, topic)
    counts_by_source = tuple(SourceCounts(source.name) for source in sources)
    threads = _SourceThreads(producer, topic, stop)
    started = time.monotonic()
    for source, counts in zip(sources, counts_by_source, strict=True):
        rate = (0.0 if source.live else source.fps) if fps is None else fps
        pace = Pace(rate, clock=time.monotonic, wait=stop.wait)
        threads.start(source, counts, pace=pace, frames=frames, envelope=envelope)
    on_progress = on_progress or (lambda _: None)
    reported_at = started
    while threads.alive() and not stop.is_set():
        producer.poll(0.1)
        if time.monotonic() - reported_at > 0.2:
            reported_at = time.monotonic()
            on_progress(Summary(counts_by_source, reported_at - started))
    sent_in = time.monotonic() - started
    for thread in threads.threads:
        thread.join(2)  # do not wait for a camera that hangs
    producer.flush(_FLUSH_S)
    summary = Summary(counts_by_source, sent_in)
    on_progress(summary)
    if threads.error is not None:
        raise threads.error
    return summary
