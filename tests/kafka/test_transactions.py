"""Tests the transactional producer: all or nothing, and no reuse of a producer with a request in flight."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import confluent_kafka
import numpy as np
import pytest

from consumer.concurrency import Stop
from consumer.config import Config
from consumer.errors import KafkaError, RefusedError, TransactionError, UnwritableError
from consumer.kafka import transactions as transactional
from consumer.kafka.producer_settings import transactional_settings
from consumer.kafka.topic_configs import Described
from consumer.kafka.topic_limits import UNKNOWN_BATCH_BYTES, TopicLimits
from consumer.kafka.transactions import FENCED_AGAIN_S, TransactionalPublisher
from consumer.types import Detected, Detections, Finished, ModelInfo, Outcome, Rejected
from fake_kafka import FakeTransactionalProducer, failed
from made_frames import P0, P1, REJECTED, VirtualClock, detected, frame, result
from waiting import wait_until

_Code = confluent_kafka.KafkaError
FENCED = failed(_Code._FENCED, "fenced", fatal=True)
ABORTABLE = confluent_kafka.KafkaError(_Code.ILLEGAL_GENERATION, "old generation", False, False, True)
TOO_LARGE = failed(_Code.MSG_SIZE_TOO_LARGE)
RETRIABLE = confluent_kafka.KafkaError(_Code._TIMED_OUT, "timed out", False, True, False)
CALLS = ["init_transactions", "begin_transaction", "send_offsets_to_transaction", "commit_transaction"]
METADATA = b"of this turn"
WITHIN_S = 10.0


def finished(
    offset: int, partition: Any = P0, outcome: Outcome | None = None, payload: bytes = b"x", source_id: str = "cam-1"
) -> Finished:
    item, outcome = frame(offset, source_id, partition, payload=payload), outcome or detected()
    return Finished(item, outcome, result([item], [outcome]).summary)


def detected_crowd(count: int) -> Detected:
    boxes, scores = np.ones((count, 4), np.float32), np.ones(count, np.float32)
    return Detected(Detections(boxes, scores, np.zeros(count, np.int32)), 64, 48)


def positions(*items: Finished) -> list[confluent_kafka.TopicPartition]:
    """Return positions like those of `Source.commit_positions`."""
    after = {item.frame.receipt.partition: item.frame.receipt.offset + 1 for item in items}
    return [confluent_kafka.TopicPartition(*partition, offset) for partition, offset in after.items()]


class Bench:
    def __init__(
        self,
        clock: VirtualClock,
        stop: Stop | None = None,
        limits: TopicLimits | None = None,
        config: Config | None = None,
    ) -> None:
        self.clock = clock
        self.publisher = TransactionalPublisher(
            config or Config(), ModelInfo("m.pt", "sha256:0"), clock=clock, wall_clock_ms=clock.unix_ms, limits=limits
        )
        self.started = self.publisher.start(stop or Stop(clock))

    def transact(self, *items: Finished) -> list[int]:
        done = self.publisher.transact(items or [finished(7)], positions(*items or [finished(7)]), METADATA, WITHIN_S)
        return [item.frame.receipt.offset for item in done]

    def fails(self, call: str, *errors: confluent_kafka.KafkaError) -> None:
        FakeTransactionalProducer.fails.setdefault(call, []).extend(errors)

    @property
    def producers(self) -> int:
        return len(FakeTransactionalProducer.made)

    @property
    def client(self) -> FakeTransactionalProducer:
        return FakeTransactionalProducer.made[-1]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    clock = VirtualClock()
    for name, value in {"made": [], "fails": {}, "takes": {}, "hangs": {}, "advance": clock.advance}.items():
        monkeypatch.setattr(FakeTransactionalProducer, name, value, raising=False)
    monkeypatch.setattr(confluent_kafka, "Producer", FakeTransactionalProducer)
    return lambda stop=None, limits=None, config=None: Bench(clock, stop, limits, config)


@pytest.fixture
def bench(make: Callable[[], Bench]) -> Bench:
    return make()


class TestATransaction:
    def test_contains_the_outcomes_and_the_offsets_after_them(self, bench: Bench) -> None:
        """Catches the offset of the last frame instead of the next, and an offset commit outside the transaction."""
        assert bench.transact(finished(7), finished(9), finished(3, P1, REJECTED)) == [7, 9, 3]
        assert bench.client.calls == CALLS
        assert bench.client.offsets == {P0: 10, P1: 4}
        assert bench.client.metadata == [METADATA]
        assert [message["topic"] for message in bench.client.produced] == ["detections", "detections", "frames-dead"]

    def test_uses_the_producer_of_the_last_transaction(self, bench: Bench) -> None:
        """Catches a new connection for each batch."""
        for offset in range(3):
            assert bench.transact(finished(offset)) == [offset]
        assert bench.producers == 1

    def test_has_a_producer_with_a_stable_id_and_short_timeouts(self, bench: Bench) -> None:
        settings = bench.client.settings
        assert settings["transactional.id"] == Config().transactional_id
        assert settings["transactional.id"].startswith("sluice-sluice-")
        assert settings["socket.timeout.ms"] < settings["transaction.timeout.ms"] <= 15_000
        named = Config(kafka={"transactional_id": "mine"})  # type: ignore[arg-type]
        assert transactional_settings(named)["transactional.id"] == "mine"

    def test_has_settings_that_librdkafka_accepts(self) -> None:
        """Uses the real librdkafka, without a broker: it checks the timeouts against each other."""
        client = confluent_kafka.Producer(transactional_settings(Config()) | {"log_level": 0})
        assert client.flush(0) == 0


class TestAFailure:
    @pytest.mark.parametrize("call", CALLS[1:])
    @pytest.mark.parametrize("error", [ABORTABLE, FENCED, failed(_Code.UNKNOWN)])
    def test_of_any_call_raises_and_replaces_the_producer(
        self, bench: Bench, call: str, error: confluent_kafka.KafkaError
    ) -> None:
        """Catches an abort with the same producer, whose end request may affect the next transaction.

        Also catches a commit that is treated as rolled back although it may have arrived.
        """
        bench.fails(call, error)
        with pytest.raises(TransactionError) as caught:
            bench.transact()
        assert caught.value.rolled_back is (call != "commit_transaction")
        old = bench.client
        bench.publisher.renew()
        assert bench.transact() == [7]
        assert bench.producers == 2
        assert bench.client is not old
        wait_until(lambda: old.calls[-1] == "purge", 5, "the old producer to be closed")

    def test_of_a_call_that_hangs_raises_in_time_and_closes_after_the_call(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """librdkafka ignores its own timeout. Catches a loop that hangs until the watchdog ends the process.

        Also catches a client that is freed while a thread still uses it.
        """
        monkeypatch.setattr(transactional, "GRACE_S", 0.05)
        call = "send_offsets_to_transaction"
        back = FakeTransactionalProducer.hangs[call] = threading.Event()
        with pytest.raises(TransactionError, match="did not come back") as caught:
            bench.publisher.transact([finished(7)], positions(finished(7)), METADATA, 0.6)
        assert caught.value.rolled_back
        old = bench.client
        bench.publisher.renew()
        assert bench.transact() == [7]
        assert bench.client is not old
        assert old.calls[-1] == call
        back.set()
        wait_until(lambda: old.calls[-1] == "purge", 5, "the old producer to be closed")
        assert old.calls[-2] == f"{call} is back"

    @pytest.mark.parametrize(
        ("code", "expelled"),
        [
            (_Code.UNKNOWN_MEMBER_ID, True),
            (_Code.FENCED_MEMBER_EPOCH, True),
            (_Code.FENCED_INSTANCE_ID, True),
            (_Code.ILLEGAL_GENERATION, False),
            (_Code.STALE_MEMBER_EPOCH, False),
        ],
    )
    def test_reports_whether_the_group_has_removed_this_process(self, bench: Bench, code: int, expelled: bool) -> None:
        """An old generation is renewed without a poll in every rebalance. Catches a drain that ends because of one."""
        bench.fails("send_offsets_to_transaction", confluent_kafka.KafkaError(code, "", False, False, True))
        with pytest.raises(TransactionError) as caught:
            bench.transact()
        assert caught.value.expelled is expelled

    def test_of_a_new_producer_that_never_connects_raises_in_time(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transactional, "GRACE_S", 0.05)
        monkeypatch.setattr(transactional, "_CONNECT_S", 0.1)
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(TransactionError):
            bench.transact()
        back = FakeTransactionalProducer.hangs["init_transactions"] = threading.Event()
        with pytest.raises(TransactionError, match="did not come back"):
            bench.publisher.renew()
        back.set()
        bench.publisher.renew()
        assert bench.transact() == [7]

    @pytest.mark.parametrize(("slow", "begun"), [("init_transactions", False), ("send_offsets_to_transaction", True)])
    def test_for_lack_of_time_is_a_certain_rollback(self, bench: Bench, slow: str, begun: bool) -> None:
        """Catches a commit with a tenth of a second for its answer, and a transaction that begins too late."""
        if not begun:
            bench.fails("commit_transaction", ABORTABLE)
            with pytest.raises(TransactionError):
                bench.transact()
        FakeTransactionalProducer.takes[slow] = WITHIN_S + 0.5
        with pytest.raises(TransactionError, match="no time was left") as caught:
            bench.transact()
        assert caught.value.rolled_back
        assert bench.client.calls[-1] == slow
        FakeTransactionalProducer.takes.clear()
        assert bench.transact() == [7]

    def test_for_lack_of_time_begins_no_transaction(self, bench: Bench) -> None:
        """Catches transactions that begin and abort repeatedly until the end of a drain. The last one stays open."""
        before = list(bench.client.calls)
        with pytest.raises(TransactionError, match="no time was left") as caught:
            bench.publisher.transact([finished(7)], positions(finished(7)), METADATA, 0.4)
        assert caught.value.rolled_back
        assert bench.client.calls == before
        assert bench.transact() == [7]

    def test_by_fencing_while_connecting_shows_another_process(self, bench: Bench) -> None:
        """Catches missing a second process with this ID because connecting exceeded transaction.timeout.ms."""
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(TransactionError):
            bench.transact()
        FakeTransactionalProducer.takes["init_transactions"] = 20.0
        bench.fails("init_transactions", FENCED, FENCED)
        with pytest.raises(TransactionError):
            bench.publisher.renew()
        with pytest.raises(RefusedError, match="another process"):
            bench.publisher.renew()

    def test_replaces_the_producer_in_the_next_transaction(self, bench: Bench) -> None:
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(TransactionError):
            bench.transact()
        assert bench.transact() == [7]
        assert bench.producers == 2

    def test_that_is_retriable_is_retried_and_replaces_the_producer(self, bench: Bench) -> None:
        """Catches an abort after a retriable error, and a late second request that ends a later transaction."""
        bench.fails("commit_transaction", RETRIABLE, RETRIABLE)
        assert bench.transact() == [7]
        assert bench.client.calls.count("commit_transaction") == 3
        assert bench.transact() == [7]
        assert bench.producers == 2

    def test_that_is_retriable_is_retried_until_the_deadline(self, bench: Bench) -> None:
        bench.fails("commit_transaction", *[RETRIABLE] * 10_000)
        before = bench.clock.now
        with pytest.raises(TransactionError):
            bench.transact()
        assert WITHIN_S <= bench.clock.now - before < WITHIN_S + 1

    @pytest.mark.parametrize("call", CALLS[2:])
    def test_is_suspected_if_a_call_took_as_long_as_the_socket_timeout(self, bench: Bench, call: str) -> None:
        """Catches trusting a commit that librdkafka may have sent twice."""
        FakeTransactionalProducer.takes[call] = 5.0
        assert bench.transact() == [7]
        FakeTransactionalProducer.takes.clear()
        assert bench.transact() == [7]
        assert bench.producers == 2

    def test_is_suspected_if_the_client_reported_an_error_meanwhile(self, bench: Bench) -> None:
        def report(message: dict[str, Any]) -> None:
            bench.client.settings["error_cb"](failed(_Code._TRANSPORT))

        bench.client.report = report
        assert bench.transact() == [7]
        assert bench.transact() == [7]
        assert bench.producers == 2

    def test_between_two_transactions_does_not_affect_the_next(self, bench: Bench) -> None:
        """Catches a new producer each time a broker closes an idle connection."""
        bench.client.settings["error_cb"](failed(_Code._TRANSPORT))
        assert bench.transact() == [7]
        assert bench.transact() == [7]
        assert bench.producers == 1

    def test_of_the_renewal_raises_and_the_next_try_replaces_the_producer(self, bench: Bench) -> None:
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(TransactionError):
            bench.transact()
        bench.fails("init_transactions", RETRIABLE)
        with pytest.raises(TransactionError):
            bench.publisher.renew()
        bench.publisher.renew()
        assert bench.transact() == [7]
        assert bench.producers == 3


class TestBeingFenced:
    def test_once_leads_to_a_new_producer(self, bench: Bench) -> None:
        """The cause is an earlier run of this process that had not ended completely."""
        for _ in range(2):
            bench.fails("send_offsets_to_transaction", FENCED)
            with pytest.raises(TransactionError):
                bench.transact()
            bench.clock.advance(FENCED_AGAIN_S)

    def test_twice_in_a_short_time_ends_the_process_with_advice(self, bench: Bench) -> None:
        """Catches two pods with one ID that fence each other endlessly."""
        bench.fails("send_offsets_to_transaction", FENCED, FENCED)
        with pytest.raises(TransactionError):
            bench.transact()
        with pytest.raises(RefusedError, match=r"another process.*'sluice-sluice-.*kafka\.transactional_id") as caught:
            bench.transact()
        assert not caught.value.retriable

    def test_after_exceeding_the_own_timeout_blames_no_other_process(self, bench: Bench) -> None:
        """A pod is suspended twice for longer than its transaction may last. Then another pod uses its ID.

        Catches exit code 4 with misleading advice, and a conflict of two pods that the suspension hides.
        """
        bench.fails("send_offsets_to_transaction", *[FENCED] * 5)
        for takes_s in (15.0, 15.0, 0.1):
            FakeTransactionalProducer.takes["send_offsets_to_transaction"] = takes_s
            with pytest.raises(TransactionError):
                bench.transact()
        with pytest.raises(RefusedError, match=r"another process"):
            bench.transact()

    def test_is_detected_when_the_first_message_is_sent(self, bench: Bench) -> None:
        """librdkafka raises its fatal error from the next call, whichever it is."""
        bench.client.refuse = lambda _: FENCED
        with pytest.raises(TransactionError):
            bench.transact()
        bench.fails("begin_transaction", FENCED)
        with pytest.raises(RefusedError, match=r"another process"):
            bench.transact()


class TestAPermanentError:
    @pytest.mark.parametrize(
        ("call", "code", "words"),
        [
            (
                "send_offsets_to_transaction",
                _Code.GROUP_AUTHORIZATION_FAILED,
                "grant this user READ on the consumer group ",
            ),
            ("commit_transaction", _Code.TOPIC_AUTHORIZATION_FAILED, "grant this user WRITE on the topics "),
        ],
    )
    def test_ends_the_process_with_advice(self, bench: Bench, call: str, code: int, words: str) -> None:
        """Catches two minutes of rewinds because of a missing permission."""
        bench.fails(call, failed(code))
        with pytest.raises(KafkaError, match=words) as caught:
            bench.transact()
        assert not caught.value.retriable

    @pytest.mark.parametrize("call", ["produce", "commit_transaction"])
    def test_has_the_same_exit_code_at_every_step(self, bench: Bench, call: str) -> None:
        """Catches a missing write permission that ends the process with 4 or 5 at random."""
        if call == "produce":
            bench.client.refuse = lambda _: failed(_Code.TOPIC_AUTHORIZATION_FAILED)
        else:
            bench.fails(call, failed(_Code.TOPIC_AUTHORIZATION_FAILED))
        with pytest.raises(UnwritableError, match="grant this user WRITE on "):
            bench.transact()

    def test_is_reported_immediately_if_the_client_refuses_locally(self, bench: Bench) -> None:
        """Catches two minutes of failed transactions, and exit code 4, because the output topic was deleted."""
        bench.client.refuse = lambda _: failed(_Code._UNKNOWN_TOPIC)
        with pytest.raises(UnwritableError, match=r"to detections: .*create it"):
            bench.transact()

    def test_of_a_missing_topic_is_detected_within_a_transaction(self) -> None:
        """Catches repeated timeouts of transactions before the client reports that the topic is missing."""
        ours = transactional_settings(Config())["topic.metadata.propagation.max.ms"]
        assert ours / 1000 < WITHIN_S / 2, "a transaction begins with so much time at least"

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (_Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "grant this user WRITE on the transactional ID "),
            (_Code.UNSUPPORTED_VERSION, "use delivery: at_least_once"),
            (_Code.INVALID_TRANSACTION_TIMEOUT, "lower transaction.timeout.ms"),
        ],
    )
    def test_is_reported_at_the_start(self, make: Callable[[], Bench], code: int, words: str) -> None:
        FakeTransactionalProducer.fails["init_transactions"] = [failed(code)]
        with pytest.raises(RefusedError, match=words):
            make()

    def test_the_start_waits_a_limited_time_for_brokers(self, make: Callable[[], Bench]) -> None:
        FakeTransactionalProducer.takes["init_transactions"] = 8.0
        FakeTransactionalProducer.fails["init_transactions"] = [RETRIABLE]
        assert make().transact() == [7]
        FakeTransactionalProducer.fails["init_transactions"] = [RETRIABLE] * 100
        with pytest.raises(KafkaError, match="cannot begin transactions"):
            make()

    @pytest.mark.parametrize(
        ("code", "text", "words"),
        [
            (_Code._AUTHENTICATION, "SASL authentication error", "check the SASL and TLS settings"),
            (_Code._SSL, "certificate verify failed: broker certificate", r"check ssl\.ca\.location"),
        ],
    )
    def test_from_the_error_callback_alone_is_reported(
        self, make: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch, code: int, text: str, words: str
    ) -> None:
        """Catches a wrong password that appears as unavailable brokers: the call itself only times out."""
        poll = FakeTransactionalProducer.poll

        def says(self: FakeTransactionalProducer, timeout: float = -1) -> int:
            self.settings["error_cb"](failed(code, text))
            return poll(self, timeout)

        monkeypatch.setattr(FakeTransactionalProducer, "poll", says)
        FakeTransactionalProducer.fails["init_transactions"] = [RETRIABLE] * 100
        with pytest.raises(RefusedError, match=words):
            make()

    def test_a_stop_ends_the_start_immediately(self, make: Callable[..., Bench]) -> None:
        """Catches a pod that keeps waiting for unavailable brokers after a stop."""
        stop = Stop(time.monotonic)
        back = FakeTransactionalProducer.hangs["init_transactions"] = threading.Event()
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        assert make(stop).started is False
        assert time.monotonic() - began < 3
        back.set()
        client = FakeTransactionalProducer.made[-1]
        wait_until(lambda: client.calls[-1] == "purge", 5, "the producer to be closed")

    def test_the_embedded_broker_is_refused(self, make: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FakeTransactionalProducer, "cluster", "sluice-embedded-1")
        with pytest.raises(RefusedError, match="use delivery: at_least_once"):
            make()

    def test_a_topic_with_a_tiny_limit_ends_the_process(self, bench: Bench) -> None:
        """Each transaction has batches of half the size of the last. Catches transactions that fail endlessly."""
        for halvings in range(1, 4):
            bench.client.report = lambda _: TOO_LARGE
            bench.fails("commit_transaction", ABORTABLE)
            with pytest.raises(TransactionError) as caught:
                bench.transact()
            assert caught.value.rolled_back
            bench.publisher.renew()
            assert bench.client.settings["batch.size"] == UNKNOWN_BATCH_BYTES >> halvings
        bench.client.report = lambda _: TOO_LARGE
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(UnwritableError, match=r"result of frames/0/7 to detections.*max\.message\.bytes"):
            bench.transact()

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (_Code.INVALID_TIMESTAMP, "set the clocks"),
            (_Code.POLICY_VIOLATION, "a policy of the brokers"),
            (_Code.TOPIC_EXCEPTION, "output.topic"),
        ],
    )
    def test_a_permanent_refusal_is_reported_and_not_retried(self, bench: Bench, code: int, words: str) -> None:
        """Catches a refusal that is retried endlessly, or that ends the process as if a restart helped."""
        bench.client.report = lambda _: failed(code)
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(UnwritableError, match=words):
            bench.transact()


class TestAResultThatIsTooLarge:
    def test_becomes_a_dead_letter_in_the_next_transaction(self, bench: Bench) -> None:
        """Catches one frame that ends the process, or fails a transaction, each time it is read."""
        crowd = detected_crowd(20_000)
        bench.client.report = lambda m: TOO_LARGE if m["topic"] == "detections" else None
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(TransactionError) as caught:
            bench.transact(finished(7, outcome=crowd))
        assert caught.value.rolled_back
        for offset in (7, 8):
            item = finished(offset, outcome=crowd)
            (done,) = bench.publisher.transact([item], positions(item), METADATA, WITHIN_S)
            assert isinstance(done.outcome, Rejected)
            assert done.outcome.reason == "unpublishable"
        assert [m["topic"] for m in bench.client.produced] == ["frames-dead", "frames-dead"]

    def test_is_never_sent_if_the_limit_is_known(self, make: Callable[..., Bench]) -> None:
        limits = TopicLimits(
            ("detections", "frames-dead"),
            describe=lambda: {"detections": Described(100_000), "frames-dead": Described(1_000_000)},
            clock=time.monotonic,
        )
        limits.ask(5.0)
        bench = make(limits=limits)
        assert bench.client.settings["batch.size"] < 100_000
        assert bench.transact(finished(7, outcome=detected_crowd(20_000)), finished(8)) == [7, 8]
        assert [m["topic"] for m in bench.client.produced] == ["frames-dead", "detections"]

    @pytest.mark.parametrize("advertises", [True, False])
    def test_becomes_a_dead_letter_even_with_compression(self, make: Callable[..., Bench], *, advertises: bool) -> None:
        """Catches one crowded frame that fails transactions endlessly: the brokers count compressed bytes.

        Their limit is reported after the refusal, and does not apply to the size before compression.
        """
        says = {"detections": Described(1_000_000), "frames-dead": Described(20_000_000)} if advertises else {}
        limits = TopicLimits(("detections", "frames-dead"), describe=lambda: says, clock=time.monotonic)
        limits.ask(5.0)
        bench = make(limits=limits, config=Config(kafka={"producer": {"compression.type": "lz4"}}))
        crowd = detected_crowd(40_000)
        bench.client.report = lambda m: TOO_LARGE if m["topic"] == "detections" else None
        bench.fails("commit_transaction", ABORTABLE)
        with pytest.raises(TransactionError):
            bench.transact(finished(7, outcome=crowd))
        wait_until(lambda: limits.largest("detections") and not limits._asking, 10, "an answer")
        (done,) = bench.publisher.transact([finished(7, outcome=crowd)], positions(finished(7)), METADATA, WITHIN_S)
        assert isinstance(done.outcome, Rejected)
        assert bench.transact(finished(8, outcome=detected_crowd(20_000))) == [8]
        assert [m["topic"] for m in bench.client.produced] == ["frames-dead", "detections"]


class TestATransactionThatTimesOut:
    def test_is_certainly_rolled_back_because_no_commit_was_sent(self, bench: Bench) -> None:
        """Catches one partition without a leader that causes a new inference of all held frames every 10 s."""
        bench.client.withheld = lambda m: m["key"] == b"cam-2"
        bench.fails("commit_transaction", RETRIABLE)
        FakeTransactionalProducer.takes["commit_transaction"] = WITHIN_S
        with pytest.raises(TransactionError) as caught:
            bench.transact(finished(7), finished(8, source_id="cam-2"))
        assert caught.value.rolled_back

    def test_has_an_unknown_result_if_all_messages_were_written(self, bench: Bench) -> None:
        """Catches the opposite: the commit was sent, and only its answer is missing."""
        bench.fails("commit_transaction", RETRIABLE)
        FakeTransactionalProducer.takes["commit_transaction"] = WITHIN_S
        with pytest.raises(TransactionError) as caught:
            bench.transact(finished(7), finished(8))
        assert not caught.value.rolled_back

    @staticmethod
    def sent(bench: Bench, item: Finished, within_s: float = WITHIN_S) -> int:
        """Return the bytes of the only message of a transaction, on a connection that transfers 2.5 MB in time."""
        late = item.frame.record.size_bytes > 2_500_000
        sizes: list[int] = []
        bench.client.withheld = lambda m: sizes.append(len(m["value"])) or len(m["value"]) > 2_500_000  # type: ignore[func-returns-value]
        bench.fails("commit_transaction", *([RETRIABLE] if late else []))
        FakeTransactionalProducer.takes["commit_transaction"] = within_s if late else 0.1
        with contextlib.suppress(TransactionError):
            bench.publisher.transact([item], positions(item), METADATA, within_s)
        FakeTransactionalProducer.fails.clear()
        bench.publisher.renew()
        return sizes[0]

    def test_is_cut_if_it_is_a_single_dead_letter_that_is_late_twice(self, bench: Bench) -> None:
        """Catches a large dead letter that is retried endlessly on a slow connection, and one cut after a short outage.

        Also catches a count that transactions of other partitions reset, so that the dead letter is never cut.
        """
        letter = finished(7, outcome=REJECTED, payload=bytes(4_000_000))
        assert self.sent(bench, letter) == 4_000_000
        assert self.sent(bench, finished(3, P1)) < 2000
        assert self.sent(bench, letter) == 4_000_000
        assert self.sent(bench, finished(4, P1)) < 2000
        assert 1_300_000 < self.sent(bench, letter) < 1_400_000

    def test_counts_once_per_dead_letter(self, bench: Bench) -> None:
        """Catches a partition whose earlier delay cuts a later dead letter immediately."""
        assert self.sent(bench, finished(7, outcome=REJECTED, payload=bytes(4_000_000))) == 4_000_000
        assert self.sent(bench, finished(7, outcome=REJECTED, payload=bytes(1_000_000))) == 1_000_000
        assert self.sent(bench, finished(8, outcome=REJECTED, payload=bytes(4_000_000))) == 4_000_000
        assert self.sent(bench, finished(8, outcome=REJECTED, payload=bytes(4_000_000))) == 4_000_000

    def test_is_not_cut_if_a_revocation_left_little_time(self, bench: Bench) -> None:
        """Catches dead letters that are cut for minutes because two rebalances had little time."""
        letter = finished(7, outcome=REJECTED, payload=bytes(4_000_000))
        sizes = [self.sent(bench, letter, within_s=2.0) for _ in range(4)]
        assert sizes == [4_000_000] * 4


class TestADeadLetterThatIsTooLarge:
    def test_is_cut_in_the_next_transaction(self, bench: Bench) -> None:
        """Catches a frame that fails all its transactions because the brokers' answer arrives too late to cut it."""
        sizes: list[int] = []
        for _ in range(2):
            bench.client.report = lambda m: sizes.append(len(m["value"])) or failed(_Code.MSG_SIZE_TOO_LARGE)  # type: ignore[func-returns-value]
            bench.fails("commit_transaction", ABORTABLE)
            with pytest.raises(TransactionError):
                bench.transact(finished(7, outcome=REJECTED, payload=bytes(2_000_000)))
            bench.publisher.renew()
        assert bench.transact(finished(7, outcome=REJECTED, payload=bytes(2_000_000))) == [7]
        sizes.append(len(bench.client.produced[-1]["value"]))
        assert sizes == sorted(set(sizes), reverse=True)
        assert len(sizes) == 3

    def test_that_never_fits_ends_the_process(self, bench: Bench) -> None:
        def once() -> None:
            bench.client.report = lambda _: failed(_Code.MSG_SIZE_TOO_LARGE)
            bench.fails("commit_transaction", ABORTABLE)
            bench.transact(finished(7, outcome=REJECTED, payload=bytes(2_000_000)))

        for _ in range(2):
            with pytest.raises(TransactionError):
                once()
            bench.publisher.renew()
        with pytest.raises(UnwritableError, match="dead letter of frames/0/7"):
            once()
