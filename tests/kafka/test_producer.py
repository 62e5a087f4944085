"""Tests `Publisher`: each outcome is written, becomes a dead letter, or ends the process. None is lost."""

from __future__ import annotations

import threading
import time
from typing import Any

import confluent_kafka
import numpy as np
import pytest

from consumer.config import Config
from consumer.errors import OwnershipError, PublishError, RefusedError, RejectRateError, UnwritableError
from consumer.kafka.producer import MOST_BUFFERED_BYTES, Publisher
from consumer.kafka.topic_configs import Described
from consumer.kafka.topic_limits import LADDER, TopicLimits
from consumer.messages import Message
from consumer.messages.results import decode_result
from consumer.types import Detected, Detections, Finished, Frame, ModelInfo, Outcome, Rejected, Skipped
from fake_kafka import FakeProducer, failed
from made_frames import P0, P1, REJECTED, VirtualClock, detected, frame, result

_Code = confluent_kafka.KafkaError
TOO_LARGE = failed(_Code.MSG_SIZE_TOO_LARGE)


class Bench:
    def __init__(self, config: Config | None = None, limits: TopicLimits | None = None) -> None:
        self.clock = VirtualClock()
        self.limits = limits or TopicLimits(("detections", "frames-dead"), clock=self.clock)
        self.publisher = Publisher(
            config or Config(),
            ModelInfo("m.pt", "sha256:0"),
            clock=self.clock,
            wall_clock_ms=self.clock.unix_ms,
            limits=self.limits,
        )
        self.client: FakeProducer = self.publisher._client  # type: ignore[assignment]
        self.client.on_poll = self.clock.advance

    def publish(self, outcome: Outcome, item: Frame | None = None) -> Outcome:
        item = item or frame(7)
        written: list[Outcome] = []
        finished = Finished(item, outcome, result([item], [outcome]).summary)
        self.publisher.publish([finished], lambda _, what: written.append(what))
        return written[0]

    def finished(self, *outcomes: Outcome) -> list[Finished]:
        """Return a batch with this number of frames."""
        frames = [frame(number, f"cam-{number % 2}") for number in range(len(outcomes))]
        of = result(frames, outcomes).summary
        return [Finished(item, outcome, of) for item, outcome in zip(frames, outcomes, strict=True)]

    @property
    def topics(self) -> list[str]:
        return [message["topic"] for message in self.client.produced]

    @property
    def dead_letters(self) -> list[dict[str, Any]]:
        return [message for message in self.client.produced if message["topic"] == "frames-dead"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
    return Bench()


def advertised(max_bytes: int) -> TopicLimits:
    """Return limits that the brokers reported at the start."""
    said = {topic: Described(max_bytes) for topic in ("detections", "frames-dead")}
    limits = TopicLimits(tuple(said), describe=lambda: said, clock=time.monotonic)
    limits.ask(10.0)
    return limits


def not_a_number() -> Detected:
    boxes = np.full((1, 4), np.nan, np.float32)
    return Detected(Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int32)), 64, 48)


class TestAnOutcome:
    @pytest.mark.parametrize(
        ("outcome", "topic"),
        [(detected(), "detections"), (Skipped("stale", 5.0), "detections"), (REJECTED, "frames-dead")],
    )
    def test_is_outstanding_until_it_is_acknowledged(self, bench: Bench, outcome: Outcome, topic: str) -> None:
        """Catches counting a message as acknowledged when it was only passed to the client."""
        item = frame(7)
        assert bench.publish(outcome, item) == outcome
        assert (bench.topics, bench.publisher.outstanding) == ([topic], 1)
        (done,) = bench.publisher.poll()
        assert (done.frame, done.outcome, done.published_at) == (item, outcome, 1000.0)
        assert bench.publisher.outstanding == 0
        assert bench.publisher.poll() == []

    def test_is_keyed_by_its_source_and_names_its_input(self, bench: Bench) -> None:
        """Catches results of one camera that are spread over partitions and lose their order."""
        bench.publish(detected(), frame(7, "cam-9"))
        (message,) = bench.client.produced
        assert message["key"] == b"cam-9"
        assert decode_result(message["value"])["input"] == {"topic": "frames", "partition": 0, "offset": 7}

    def test_that_was_not_delivered_ends_the_process(self, bench: Bench) -> None:
        """Catches only logging a failed delivery: the next commit would skip the frame."""
        bench.publish(detected())
        bench.client.report = lambda _: failed(_Code._MSG_TIMED_OUT)
        with pytest.raises(PublishError, match=r"cannot write .* to detections: .*a restart repeats it"):
            bench.publisher.poll()
        assert bench.client.purged, "what was published behind it must not arrive before its repetition"

    @pytest.mark.parametrize(
        ("code", "advice"),
        [
            (_Code.TOPIC_AUTHORIZATION_FAILED, "grant this user WRITE on topic detections"),
            (_Code.UNKNOWN_TOPIC_OR_PART, "create it"),
            (_Code.MSG_SIZE_TOO_LARGE, "max.message.bytes"),
        ],
    )
    def test_that_is_refused_ends_the_process_with_advice(self, bench: Bench, code: int, advice: str) -> None:
        bench.publish(detected())
        bench.client.report = lambda _: failed(code)
        with pytest.raises(UnwritableError, match=advice):
            bench.publisher.poll()

    def test_that_the_client_refuses_locally_ends_the_process_with_advice(self, bench: Bench) -> None:
        """After the first refusal, the client refuses locally: the second frame gets another error."""
        bench.client.refuse = lambda _: failed(_Code.TOPIC_AUTHORIZATION_FAILED)
        with pytest.raises(UnwritableError, match="grant this user WRITE on topic detections"):
            bench.publish(detected())

    def test_of_a_producer_that_died_ends_the_process(self, bench: Bench) -> None:
        """Catches waiting for error_cb, which the real client does not call for this error: its poll raises."""
        bench.client.died = failed(_Code._FENCED, "fenced", fatal=True)
        with pytest.raises(PublishError, match="fenced"):
            bench.publisher.poll()

    def test_survives_a_temporary_error(self, bench: Bench) -> None:
        bench.client.settings["error_cb"](failed(_Code._ALL_BROKERS_DOWN))
        assert bench.publisher.poll() == []


class TestABatch:
    def test_is_encoded_before_its_first_result_is_sent(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches outcomes that are sent one by one, each in its own request, while the next one is encoded."""
        encode, sent_by_then = bench.publisher._results.encoder.encode, []

        def watched(*args: Any, **options: Any) -> Message:
            sent_by_then.append(len(bench.client.produced))
            return encode(*args, **options)

        monkeypatch.setattr(bench.publisher._results.encoder, "encode", watched)
        bench.publisher.publish(bench.finished(detected(), not_a_number(), Skipped("stale", 5.0), REJECTED, detected()))
        assert sent_by_then == [0, 0, 0, 0]
        assert bench.topics == ["detections", "frames-dead", "detections", "frames-dead", "detections"]
        keys = [message["key"] for message in bench.client.produced]
        assert keys == [b"cam-0", b"cam-1", b"cam-0", b"cam-1", b"cam-0"]

    def test_is_judged_while_it_is_sent_and_an_error_of_the_judge_stops_it(self, bench: Bench) -> None:
        """Catches a breaker that stops the process only after a whole batch of dead letters."""

        def judge(item: Frame, outcome: Outcome) -> None:
            if isinstance(outcome, Rejected) and item.receipt.offset == 2:
                raise RejectRateError("enough")

        with pytest.raises(RejectRateError):
            bench.publisher.publish(bench.finished(*[REJECTED] * 5), judge)
        assert len(bench.topics) == 3


class TestUnpublishable:
    def test_a_result_with_nan_becomes_a_dead_letter(self, bench: Bench) -> None:
        """Catches an empty detection instead of a broken one, and a rejection that the breaker does not count."""
        went = bench.publish(not_a_number())
        assert isinstance(went, Rejected)
        assert (went.stage, went.reason) == ("publish", "unpublishable")
        assert bench.topics == ["frames-dead"]
        (done,) = bench.publisher.poll()
        assert done.outcome == went

    def test_a_result_too_large_for_the_producer_becomes_a_dead_letter(self, bench: Bench) -> None:
        bench.client.refuse = lambda topic: TOO_LARGE if topic == "detections" else None
        went = bench.publish(detected())
        assert isinstance(went, Rejected)
        assert bench.topics == ["frames-dead"]

    def test_any_other_refusal_ends_the_process(self, bench: Bench) -> None:
        """Catches dead letters for intact frames."""
        bench.client.refuse = lambda topic: failed(_Code._FATAL) if topic == "detections" else None
        with pytest.raises(PublishError):
            bench.publish(detected())
        assert bench.topics == []
        bench.client.refuse = lambda _: failed(_Code._FATAL)
        with pytest.raises(PublishError):
            bench.publish(REJECTED)

    def test_a_result_too_large_for_the_topic_becomes_a_dead_letter(self, bench: Bench) -> None:
        """Catches one crowded frame that ends the process after each restart, and results refused one by one."""
        boxes, scores = np.ones((40_000, 4), np.float32), np.ones(40_000, np.float32)
        crowd = Detected(Detections(boxes, scores, np.zeros(40_000, np.int32)), 64, 48)
        bench.client.report = lambda m: TOO_LARGE if m["topic"] == "detections" else None
        assert isinstance(bench.publish(crowd), Detected)
        assert bench.publisher.poll() == []
        (done,) = bench.publisher.poll()
        assert isinstance(done.outcome, Rejected)
        assert (done.outcome.reason, "max.message.bytes" in done.outcome.detail) == ("unpublishable", True)
        assert isinstance(bench.publish(crowd), Rejected), "the judge receives the rejection"
        assert bench.topics == ["detections", "frames-dead", "frames-dead"]
        assert not bench.client.purged

    @pytest.mark.parametrize(
        ("code", "setting"),
        [(_Code.MSG_SIZE_TOO_LARGE, "max.message.bytes"), (_Code.RECORD_LIST_TOO_LARGE, "segment.bytes")],
    )
    def test_a_small_result_refused_with_its_batch_allows_a_useful_restart(
        self, monkeypatch: pytest.MonkeyPatch, code: int, setting: str
    ) -> None:
        """The brokers report the new limit to the next process. Catches an exit that excludes a restart."""
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        bench = Bench(limits=advertised(1_000_000))
        bench.publish(detected())
        bench.client.report = lambda _: failed(code)
        with pytest.raises(PublishError, match=rf"detections: .*{setting} of the topic was lowered") as caught:
            bench.publisher.poll()
        assert caught.value.retriable
        assert bench.client.purged
        bench = Bench(Config(kafka={"producer": {"batch.size": 900_000}}), advertised(1_000_000))  # type: ignore[arg-type]
        bench.publish(detected())
        bench.client.report = lambda _: failed(code)
        with pytest.raises(UnwritableError, match=r"lower batch\.size"):
            bench.publisher.poll()

    def test_a_small_result_refused_with_its_batch_ends_the_process(self, bench: Bench) -> None:
        """Later results of its source may already be written. Catches a dead letter for an intact frame."""
        bench.publish(detected())
        bench.client.report = lambda _: TOO_LARGE
        with pytest.raises(UnwritableError, match=r"lower batch\.size"):
            bench.publisher.poll()

    @pytest.mark.parametrize(("known", "gapless"), [(True, True), (False, None)])
    def test_a_refusal_stops_the_producer_only_if_the_limits_are_known(
        self, monkeypatch: pytest.MonkeyPatch, *, known: bool, gapless: bool | None
    ) -> None:
        """Catches batches that overtake a refused one, and an exit for each large message if limits are unknown."""
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        bench = Bench(limits=advertised(1_000_000) if known else None)
        assert bench.client.settings.get("enable.gapless.guarantee") is gapless

    @pytest.mark.parametrize("first", ["poll", "produce"])
    def test_a_producer_that_a_refusal_stopped_names_the_limit(
        self, monkeypatch: pytest.MonkeyPatch, first: str
    ) -> None:
        """Catches "Local: Fatal error" as the message: the report with the cause arrives after this error."""
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        bench = Bench(limits=advertised(1_000_000))
        bench.publish(detected())
        bench.client.report = lambda _: TOO_LARGE
        fatal = failed(_Code._FATAL, fatal=True)
        polled = bench.client.poll

        def poll(timeout: float) -> int:
            monkeypatch.setattr(bench.client, "poll", polled)
            raise confluent_kafka.KafkaException(fatal)

        monkeypatch.setattr(bench.client, "poll", poll)
        if first == "produce":
            bench.client.refuse = lambda _: fatal
        with pytest.raises(PublishError, match=r"a result to detections: .*a restart learns") as caught:
            bench.publish(detected()) if first == "produce" else bench.publisher.poll()
        assert caught.value.retriable

    def test_a_producer_that_a_permanent_refusal_stopped_gives_advice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches repeated restarts for a problem that only a person can solve."""
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        bench = Bench(limits=advertised(1_000_000))
        bench.publish(REJECTED)
        bench.client.report = lambda _: failed(_Code.POLICY_VIOLATION)
        with pytest.raises(UnwritableError, match="a policy of the brokers"):
            bench.publisher.poll()

    @pytest.mark.parametrize("compressed", [True, False])
    def test_a_refused_compressed_result_becomes_a_dead_letter(
        self, monkeypatch: pytest.MonkeyPatch, *, compressed: bool
    ) -> None:
        """Catches a process that ends after each restart: the brokers report no limit for uncompressed sizes."""
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        producer = {"compression.type": "lz4"} if compressed else {}
        bench = Bench(Config(kafka={"producer": producer}), advertised(5_000_000))  # type: ignore[arg-type]
        boxes, scores = np.ones((40_000, 4), np.float32), np.ones(40_000, np.float32)
        bench.publish(Detected(Detections(boxes, scores, np.zeros(40_000, np.int32)), 64, 48))
        bench.client.report = lambda m: TOO_LARGE if m["topic"] == "detections" else None
        if compressed:
            assert [len(bench.publisher.poll()) for _ in range(2)] == [0, 1]
            assert bench.topics == ["detections", "frames-dead"]
        else:
            with pytest.raises(PublishError, match="a restart learns"):
                bench.publisher.poll()


class TestBufferedBytes:
    def test_are_those_of_messages_without_a_delivery_report(self, bench: Bench) -> None:
        """Catches copies in the client library that count against no limit."""
        assert bench.publisher.buffered_bytes == 0
        bench.publish(REJECTED, frame(7, payload=bytes(500_000)))
        assert 500_000 < bench.publisher.buffered_bytes < 503_000
        bench.publish(detected(), frame(8))
        assert bench.publisher.buffered_bytes > sum(len(m["value"]) for m in bench.client.produced)
        bench.publisher.poll()
        assert bench.publisher.buffered_bytes == 0

    def test_have_a_limit_above_which_dead_letters_wait_in_order(self, bench: Bench) -> None:
        """Catches a second copy of all records in the pipeline, and a dead letter that overtakes queued ones.

        The sixth is a result that cannot be written.
        """
        size, count = 10_000_000, 6
        frames = [frame(n, payload=bytes(size)) for n in range(count)]
        outcomes: list[Outcome] = [*[REJECTED] * (count - 1), not_a_number()]
        of = result(frames, outcomes).summary
        judged: list[int] = []
        bench.publisher.publish(
            [Finished(item, outcome, of) for item, outcome in zip(frames, outcomes, strict=True)],
            lambda item, _: judged.append(item.receipt.offset),
        )
        assert judged == list(range(count)), "the breaker counts them as they come"
        bench.publish(detected(), frame(9))
        assert bench.topics == ["frames-dead"] * 4 + ["detections"]
        assert bench.publisher.buffered_bytes < MOST_BUFFERED_BYTES + size + 10_000
        assert bench.publisher.outstanding == count + 1
        done = [each.frame.receipt.offset for _ in range(2) for each in bench.publisher.poll()]
        assert done == [0, 1, 2, 3, 9, 4, 5]
        assert (bench.publisher.outstanding, bench.publisher.buffered_bytes) == (0, 0)

    def test_of_a_forgotten_partition_are_released(self, bench: Bench) -> None:
        """Catches bytes that are never released, and dead letters that two owners of a partition write."""
        bench.client.holds = True
        for n in range(6):
            bench.publish(REJECTED, frame(n, partition=(P0, P1)[n % 2], payload=bytes(12_000_000)))
        assert [item.receipt.offset for item in bench.publisher.forget({P1})] == [3, 5]
        bench.client.holds = False
        done = [each.frame.receipt.offset for _ in range(3) for each in bench.publisher.poll()]
        assert done == [0, 1, 2, 4]
        assert bench.publisher.outstanding == 0

    def test_count_a_resent_dead_letter_once(self, bench: Bench) -> None:
        bench.client.report = lambda m: TOO_LARGE if len(m["value"]) > 1_000_000 else None
        bench.publish(REJECTED, frame(7, payload=bytes(2_000_000)))
        bench.publisher.poll()
        assert 800_000 < bench.publisher.buffered_bytes < 1_000_000
        bench.publisher.poll()
        assert bench.publisher.buffered_bytes == 0


class TestDeadLetters:
    @staticmethod
    def large() -> Frame:
        return frame(7, payload=bytes(2_000_000))

    def test_contain_the_whole_record(self, bench: Bench) -> None:
        bench.publish(REJECTED, self.large())
        assert bench.dead_letters[0]["value"] == bytes(2_000_000)

    def test_that_the_brokers_refuse_for_their_size_are_cut_until_they_fit(self, bench: Bench) -> None:
        """Catches a frame that blocks its partition: too large for a dead letter, and without a result."""
        bench.client.report = lambda message: TOO_LARGE if len(message["value"]) > 100_000 else None
        bench.publish(REJECTED, self.large())
        acknowledged = [done for _ in range(4) for done in bench.publisher.poll()]
        assert len(acknowledged) == 1
        sizes = [len(message["value"]) for message in bench.dead_letters]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == 3
        assert bench.publisher.outstanding == 0

    def test_that_the_producer_itself_refuses_are_cut(self, bench: Bench) -> None:
        refusals = iter([TOO_LARGE, TOO_LARGE])
        bench.client.refuse = lambda _: next(refusals, None)
        bench.publish(REJECTED, self.large())
        assert len(bench.publisher.poll()) == 1

    def test_refused_with_their_batch_are_sent_again_one_by_one(self, bench: Bench) -> None:
        """Catches an exit, or dead letters cut to 60 kB, because a batch was refused as a whole."""
        refused = iter([TOO_LARGE] * 3)
        bench.client.report = lambda _: next(refused, None)
        for n in range(3):
            bench.publish(REJECTED, frame(n, payload=bytes(30_000)))
        assert bench.publisher.poll() == []
        bench.publish(REJECTED, frame(3))
        done = []
        for _ in range(4):
            assert len(bench.client.queue) == 1, "one alone in its batch, or the one behind them"
            done += [each.frame.receipt.offset for each in bench.publisher.poll()]
        assert done == [0, 1, 2, 3]
        assert bench.limits.largest("frames-dead") == LADDER[0]

    def test_refused_alone_lower_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only the 600 kB dead letter is too large, not the small one in its batch. Catches one that is never cut."""
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        bench = Bench(Config(kafka={"producer": {"batch.size": 900_000}}))  # type: ignore[arg-type]
        bench.publish(REJECTED, frame(0, payload=bytes(30_000)))
        bench.publish(REJECTED, frame(1, payload=bytes(600_000)))
        fresh = iter([TOO_LARGE] * 2)
        bench.client.report = lambda m: next(fresh, TOO_LARGE if len(m["value"]) > 100_000 else None)
        done = [each.frame.receipt.offset for _ in range(5) for each in bench.publisher.poll()]
        assert done == [0, 1]
        assert [len(m["value"]) for m in bench.dead_letters][2:4] == [30_000, 600_000]
        assert 58_000 < len(bench.dead_letters[-1]["value"]) < 60_000

    def test_that_never_fit_end_the_process(self, bench: Bench) -> None:
        """Catches an endless loop, and a dead letter that is dropped without an error."""
        bench.client.report = lambda _: TOO_LARGE
        bench.publish(REJECTED, self.large())
        assert bench.publisher.poll() == bench.publisher.poll() == []
        with pytest.raises(
            PublishError, match=r"cannot write the dead letter of .* to frames-dead: .*max.message.bytes"
        ):
            bench.publisher.poll()

    def test_refused_without_a_key_are_sent_again_with_one(self, bench: Bench) -> None:
        """The brokers refuse the whole batch of such a record. Catches a compacted topic that ends the process."""
        keyless = frame(7)._replace(record=frame(7).record._replace(key=None))
        refused = iter([failed(_Code.INVALID_RECORD)] * 3)
        bench.client.report = lambda _: next(refused, None)
        for item in (keyless, frame(8), keyless._replace(receipt=frame(9).receipt)):
            bench.publish(REJECTED, item)
        done = [each for _ in range(2) for each in bench.publisher.poll()]
        assert [each.frame.receipt.offset for each in done] == [7, 8, 9]
        assert [m["key"] for m in bench.dead_letters[3:]] == [b"frames/0/7", b"cam-1", b"frames/0/9"]

    def test_that_are_invalid_even_with_a_key_end_the_process(self, bench: Bench) -> None:
        """Catches an endless loop."""
        bench.client.report = lambda _: failed(_Code.INVALID_RECORD)
        bench.publish(REJECTED)
        assert bench.publisher.poll() == []
        with pytest.raises(UnwritableError, match=r"cleanup\.policy"):
            bench.publisher.poll()

    @pytest.mark.parametrize("compacted", [True, False])
    def test_of_a_topic_that_became_compacted_require_a_restart(
        self, monkeypatch: pytest.MonkeyPatch, *, compacted: bool
    ) -> None:
        """At its start, the next process reads that the topic requires keys. Catches an exit that excludes a restart.

        Also catches repeated restarts for a record that is invalid for another reason.
        """
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        said = {topic: Described(1_000_000) for topic in ("detections", "frames-dead")}
        limits = TopicLimits(tuple(said), describe=lambda: dict(said), clock=time.monotonic)
        limits.ask(10.0)
        bench = Bench(limits=limits)
        bench.publish(REJECTED, frame(7)._replace(record=frame(7).record._replace(key=None)))
        said["frames-dead"] = Described(1_000_000, compacted)
        bench.client.report = lambda _: failed(_Code.INVALID_RECORD)
        with pytest.raises(PublishError, match="became compacted" if compacted else "validation of schemas") as caught:
            bench.publisher.poll()
        assert caught.value.retriable is compacted
        assert bench.client.purged

    @pytest.mark.parametrize("code", [_Code.INVALID_TIMESTAMP, _Code.POLICY_VIOLATION, _Code.TOPIC_EXCEPTION])
    def test_that_are_refused_permanently_end_the_process(self, bench: Bench, code: int) -> None:
        """Catches repeated restarts because of exit code 5 with `restart_helps`."""
        bench.client.report = lambda _: failed(code)
        bench.publish(REJECTED)
        with pytest.raises(UnwritableError):
            bench.publisher.poll()

    def test_that_are_refused_for_another_reason_end_the_process(self, bench: Bench) -> None:
        bench.client.report = lambda _: failed(_Code.TOPIC_AUTHORIZATION_FAILED)
        bench.publish(REJECTED)
        with pytest.raises(PublishError, match="frames-dead"):
            bench.publisher.poll()


class TestAFullQueue:
    def test_delays_sending_and_keeps_reports_that_arrive_meanwhile(self, bench: Bench) -> None:
        """Catches losing the acknowledgements that arrive while the queue empties."""
        bench.publish(detected(), frame(1))
        bench.client.full_for = 5
        bench.publish(detected(), frame(2))
        assert bench.publisher.outstanding == 2
        assert [done.frame.receipt.offset for done in bench.publisher.poll()] == [1, 2]
        assert bench.publisher.outstanding == 0

    def test_ends_the_process_after_its_deadline(self, bench: Bench) -> None:
        """Catches a loop that hangs in produce."""
        bench.client.full_for = 10**9
        before = bench.clock.now
        with pytest.raises(PublishError, match="queue has been full for 30 s"):
            bench.publish(detected())
        assert 30 <= bench.clock.now - before < 31
        assert bench.publisher.outstanding == 0


class TestOwnership:
    def test_another_thread_is_refused(self, bench: Bench) -> None:
        raised: list[BaseException] = []

        def use() -> None:
            for call in (lambda: bench.publish(detected()), bench.publisher.poll, lambda: bench.publisher.close(1)):
                try:
                    call()
                except OwnershipError as error:
                    raised.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join(10)
        assert len(raised) == 3

    def test_closing_drops_unacknowledged_messages(self, bench: Bench) -> None:
        """Catches a shutdown that waits for unavailable brokers."""
        bench.publish(detected())
        assert bench.publisher.close(1) is True
        assert bench.client.purged


class TestAnUnacknowledgedOutcome:
    """With librdkafka's timeout, later results of a source could overtake earlier ones. `Publisher` has its own."""

    def bench(self, monkeypatch: pytest.MonkeyPatch, **producer: Any) -> Bench:
        monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
        return Bench(Config(kafka={"producer": producer}))  # type: ignore[arg-type]

    def test_ends_the_process_after_the_timeout_and_drops_later_outcomes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches results that arrive although an earlier one of their source is missing."""
        bench = self.bench(monkeypatch, **{"delivery.timeout.ms": 8000})
        assert bench.client.settings["message.timeout.ms"] == 0
        assert "delivery.timeout.ms" not in bench.client.settings
        bench.publish(detected(), frame(7))
        bench.client.holds = True
        bench.clock.advance(6)
        bench.publish(detected(), frame(8))
        assert bench.publisher.poll() == []
        bench.clock.advance(2.5)
        with pytest.raises(
            PublishError, match=r"frames/0/7 in detections within delivery\.timeout\.ms \(8 s\)"
        ) as caught:
            bench.publisher.poll()
        assert caught.value.retriable
        assert bench.client.purged

    def test_has_a_timeout_from_the_moment_it_was_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a timeout that starts with the first message, or that an acknowledgement does not stop."""
        bench = self.bench(monkeypatch, **{"message.timeout.ms": "8000"})
        for number in range(5):
            bench.publish(detected(), frame(number))
            bench.clock.advance(6)
            assert len(bench.publisher.poll()) == 1
        bench.clock.advance(100)
        assert bench.publisher.poll() == []

    def test_has_no_timeout_if_the_user_turns_it_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = self.bench(monkeypatch, **{"delivery.timeout.ms": 0})
        bench.publish(detected(), frame(7))
        bench.client.holds = True
        bench.clock.advance(1e6)
        assert bench.publisher.poll() == []

    def test_has_a_timeout_that_must_be_a_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RefusedError, match=r"delivery\.timeout\.ms is 'soon'"):
            self.bench(monkeypatch, **{"delivery.timeout.ms": "soon"})
