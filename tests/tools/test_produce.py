"""Frames go out as they are, at an even pace, under the right name, and each is accounted for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from brokers import Broker
from consumer.errors import ConfigError, KafkaError
from consumer.messages import Message, parse_frame
from consumer.tools import clients
from consumer.tools import produce as command
from consumer.tools.frame_sender import Pace, SourceCounts, Summary, message_for, send_frames, send_source
from consumer.tools.images import Encoding, Image, ImageSource, frames_source
from consumer.tools.kafka.reader import open_reader
from consumer.tools.signals import stop_on_signals
from consumer.types import Receipt, Record, TopicPartition

RECEIPT = Receipt(TopicPartition("frames", 0), 5, 1)
PIXELS = np.zeros((48, 64, 3), np.uint8)
JPEG = Encoding().jpeg(PIXELS)


class VirtualTime:
    """A clock that only `wait` and `advance` move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds

    advance = wait


def parsed(message: Message) -> Any:
    return parse_frame(Record(message.key, message.value, tuple(message.headers), message.timestamp_ms), RECEIPT, 0.0)


def fed(source: ImageSource, send: Callable[[Message], bool], **changes: Any) -> SourceCounts:
    """The counts after `send_source`, in virtual time where nothing else is said."""
    clock = VirtualTime()
    options: dict[str, Any] = {
        "pace": Pace(0, clock=clock, wait=clock.wait),
        "frames": None,
        "envelope": False,
        "stopped": lambda: False,
        "wall_clock_ms": lambda: 1000,
    }
    counts = SourceCounts(source.name)
    send_source(source, send, counts, **(options | changes))
    return counts


class TestMessages:
    @pytest.mark.parametrize("envelope", [False, True])
    def test_both_forms_mean_the_same_frame(self, envelope: bool) -> None:
        """Catches a form that loses the name, the number or the time."""
        frame = parsed(message_for("Küche 2", 7, JPEG, captured_at_ms=1234, envelope=envelope))
        assert (frame.source_id, frame.frame_id, frame.captured_at_ms) == ("Küche 2", "7", 1234)
        assert (frame.payload, frame.verdict) == (JPEG.data, None)

    @pytest.mark.parametrize("envelope", [False, True])
    def test_the_key_is_the_source_so_that_its_frames_share_a_partition(self, envelope: bool) -> None:
        assert message_for("cam-1", 7, JPEG, captured_at_ms=0, envelope=envelope).key == b"cam-1"


class TestPace:
    def test_slow_sends_do_not_add_up(self) -> None:
        """Catches `sleep(1 / fps)` after each frame: 3 ms of work a frame make 25 fps into 23."""
        clock = VirtualTime()
        pace = Pace(25, clock=clock, wait=clock.wait)
        for n in range(1000):
            assert pace.keep(n) == 0
            clock.advance(0.003)
        assert clock.now == pytest.approx(100 + 999 / 25 + 0.003)

    def test_after_a_pause_it_catches_up_and_says_how_late_it_was(self) -> None:
        """Catches a generator that hides a stall by starting its schedule anew (coordinated omission)."""
        clock = VirtualTime()
        pace = Pace(10, clock=clock, wait=clock.wait)
        pace.keep(0)
        clock.advance(5.0)
        assert pace.keep(1) == pytest.approx(4.9)
        assert pace.keep(49) == pytest.approx(0.1)
        assert pace.keep(51) == 0
        assert clock.now == pytest.approx(105.1)

    def test_the_schedule_begins_with_the_first_frame(self) -> None:
        """Catches a clock that starts before a slow camera has opened: the first second would be a burst."""
        clock = VirtualTime()
        pace = Pace(10, clock=clock, wait=clock.wait)
        clock.advance(60)
        assert pace.keep(0) == 0

    def test_zero_never_waits(self) -> None:
        clock = VirtualTime()
        pace = Pace(0, clock=clock, wait=clock.wait)
        assert [pace.keep(n) for n in (0, 1, 1000)] == [0, 0, 0]
        assert clock.now == 100


class TestFeed:
    def test_frames_are_numbered_and_limited_per_source(self) -> None:
        sent: list[Message] = []
        counts = fed(frames_source("a", [JPEG.data] * 9), lambda m: sent.append(m) is None, frames=4)
        assert [parsed(message).frame_id for message in sent] == ["0", "1", "2", "3"]
        assert (counts.sent, counts.bytes) == (4, 4 * len(JPEG.data))

    def test_no_frame_is_read_beyond_the_limit(self) -> None:
        """Catches a live camera that must deliver one frame more before the tool can end."""

        def images() -> Iterator[Image]:
            yield JPEG
            raise AssertionError("read too far")

        assert fed(ImageSource("a", images), lambda _: True, frames=1).sent == 1
        assert fed(ImageSource("a", images), lambda _: True, frames=0).sent == 0

    def test_what_was_not_sent_is_not_counted(self) -> None:
        """Catches a frame that is missing in the summary after Ctrl-C, though nobody ever sent it."""
        assert fed(frames_source("a", [JPEG.data] * 9), lambda _: False).sent == 0
        assert fed(frames_source("a", [JPEG.data] * 9), lambda _: True, stopped=lambda: True).sent == 0

    def test_a_live_source_passes_over_what_is_not_due(self) -> None:
        """Catches waiting between camera frames: the driver's buffer fills, and frames come ever later."""
        clock = VirtualTime()

        def camera() -> Iterator[Image]:
            for n in range(250):
                clock.advance(0.04)  # 25 fps
                yield Image(b"%d" % n, "image/jpeg")

        sent: list[Message] = []
        pace = Pace(5, clock=clock, wait=lambda _: pytest.fail("waited"))
        counts = fed(ImageSource("a", camera, live=True), lambda m: sent.append(m) is None, pace=pace)
        assert counts.sent == pytest.approx(50, abs=1)
        assert [message.value for message in sent[:3]] == [b"0", b"5", b"10"]

    def test_the_capture_time_is_the_moment_of_sending_not_of_decoding_ahead(self) -> None:
        """Catches latencies that contain the wait for the frame's turn."""
        clock = VirtualTime()
        sent: list[Message] = []
        fed(
            frames_source("a", [JPEG.data] * 3),
            lambda m: sent.append(m) is None,
            pace=Pace(10, clock=clock, wait=clock.wait),
            wall_clock_ms=lambda: round(clock.now * 1000),
        )
        assert [parsed(message).captured_at_ms for message in sent] == [100_000, 100_100, 100_200]


class TestSummary:
    def test_it_counts_what_no_broker_has_acknowledged(self) -> None:
        """Catches "sent" being taken for "arrived"."""
        counts_by_source = (
            SourceCounts("a", sent=10, bytes=1000, acknowledged=10),
            SourceCounts("b", sent=5, acknowledged=3),
        )
        summary = Summary(counts_by_source, 2.0)
        assert summary.missing == 2
        assert str(summary) == "sent 15 frames of 2 sources in 2.0 s (7.5/s, 0.0 MB/s); 13 acknowledged, 2 not"

    def test_it_tells_when_the_pace_could_not_be_kept(self) -> None:
        summary = Summary((SourceCounts("a", late_s=0.2), SourceCounts("b", late_s=4.25)), 0.0)
        assert str(summary).endswith("could not keep the rate: b is 4.2 s behind")
        assert str(Summary((), 0.0)).startswith("sent 0 frames of 0 sources")


class TestSettings:
    def test_any_setting_passes_and_a_value_may_contain_the_sign(self) -> None:
        assert clients.settings_from(["a.b=c", "sasl.password=x=y", "e="]) == {
            "a.b": "c",
            "sasl.password": "x=y",
            "e": "",
        }

    @pytest.mark.parametrize("pair", ["", "x", "=x", "bootstrap.servers=x"])
    def test_what_is_no_setting_is_refused(self, pair: str) -> None:
        with pytest.raises(ConfigError, match="-X"):
            clients.settings_from([pair])

    def test_a_setting_that_the_client_does_not_know_is_a_configuration_error(self) -> None:
        with pytest.raises(ConfigError, match="nonsense"):
            send_frames([], bootstrap_servers="127.0.0.1:1", topic="t", settings={"nonsense": "1"})

    def test_one_name_for_two_sources_is_refused(self) -> None:
        """Catches two cameras whose frames mix under one name, in no order."""
        source = frames_source("a", [])
        with pytest.raises(ConfigError, match="more than once: a"):
            send_frames([source, source], bootstrap_servers="127.0.0.1:1", topic="t")

    def test_brokers_that_do_not_answer_are_named_as_the_trouble(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clients.partitions_of, "__defaults__", (0.5,))
        with pytest.raises(KafkaError, match="bootstrap-servers"):
            send_frames([], bootstrap_servers="127.0.0.1:1", topic="t")

    @pytest.mark.parametrize("text", ["640", "x", "0x5", "640x", "-1x5", "640x480x3", "640X480", "999999x1"])
    def test_a_size_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--size"):
            command._parse_size(text)

    def test_a_size_is_width_then_height(self) -> None:
        assert command._parse_size("640x480") == (640, 480)
        assert command._parse_size(None) is None

    def test_the_first_signal_ends_it_and_the_second_one_kills_it(self) -> None:
        """Catches a tool that cannot be stopped while brokers are away and it waits for their reports."""
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            stop = stop_on_signals()
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)


def records_of(broker: Broker, topic: str, count: int) -> list[Record]:
    stop, found = threading.Event(), []
    timer = threading.Timer(20, stop.set)
    timer.start()
    settings = {name: str(value) for name, value in broker.client_settings.items()}
    with open_reader(broker.bootstrap_servers, settings, stop) as reader:
        for each in reader.follow(topic, from_beginning=True):
            found.append(each.record)
            if len(found) == count:
                break
    timer.cancel()
    return found


class TestOnABroker:
    def test_all_frames_of_several_sources_arrive_in_order(self, broker: Broker, topic: Callable[..., str]) -> None:
        name = topic(partitions=2)
        sources = [frames_source(f"cam-{n}", [JPEG.data] * 30) for n in range(3)]
        summary = send_frames(sources, bootstrap_servers=broker.bootstrap_servers, topic=name, fps=0)
        assert (summary.total("sent"), summary.missing) == (90, 0)
        frames = [parse_frame(record, RECEIPT, 0.0) for record in records_of(broker, name, 90)]
        for n in range(3):
            assert [f.frame_id for f in frames if f.source_id == f"cam-{n}"] == [str(i) for i in range(30)]

    def test_a_frame_that_the_client_refuses_is_counted_as_missing(
        self, broker: Broker, topic: Callable[..., str]
    ) -> None:
        """Catches a frame too large for the broker that ends the thread, or vanishes from the count."""
        source = frames_source("a", [JPEG.data, bytes(5000), JPEG.data])
        summary = send_frames(
            [source],
            bootstrap_servers=broker.bootstrap_servers,
            topic=topic(partitions=1),
            fps=0,
            settings={"message.max.bytes": "4000"},
        )
        assert (summary.total("sent"), summary.total("acknowledged"), summary.missing) == (3, 2, 1)
        assert "large" in summary.counts_by_source[0].error.lower()

    def test_a_source_that_breaks_in_the_middle_ends_the_run_with_its_error(
        self, broker: Broker, topic: Callable[..., str]
    ) -> None:
        """Catches a thread that dies in silence: the summary would call half a video complete."""

        def images() -> Iterator[bytes]:
            yield JPEG.data
            raise OSError("the camera is gone")

        with pytest.raises(ConfigError, match="the camera is gone"):
            send_frames(
                [frames_source("a", images())], bootstrap_servers=broker.bootstrap_servers, topic=topic(), fps=0
            )

    def test_stop_ends_an_endless_source_with_every_frame_reported(
        self, broker: Broker, topic: Callable[..., str]
    ) -> None:
        stop = threading.Event()
        seen: list[int] = []

        def watch(summary: Summary) -> None:
            seen.append(summary.total("acknowledged"))
            if seen[-1]:
                stop.set()

        source = frames_source("a", [JPEG.data]).looped()
        summary = send_frames(
            [source], bootstrap_servers=broker.bootstrap_servers, topic=topic(), fps=200, stop=stop, on_progress=watch
        )
        assert summary.missing == 0
        assert seen[-1] == summary.total("sent") > 0
