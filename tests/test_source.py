"""The consumer's owner: epochs, bursts, rebalances inside poll, first starts, and errors that a person must mend."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import confluent_kafka
import pytest
from confluent_kafka import OFFSET_BEGINNING
from structlog.testing import capture_logs

from consumer.config import Config
from consumer.errors import KafkaError, OwnershipError, RefusedError
from consumer.offsets import Committable
from consumer.source import BURST, Source
from consumer.types import Frame, Lag, Rejected, TopicPartition
from fake_kafka import FakeConsumer, FakeMessage, failed, group_metadata
from made_frames import P0, P1, VirtualClock, offsets
from waiting import wait_until

_Code = confluent_kafka.KafkaError


class Listener:
    """Records what it is told; `raises` comes out of the next call."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.raises: list[BaseException] = []
        self.patience = 1000  # how often it goes on waiting

    def waiting(self) -> bool:
        self.patience -= 1
        return self.patience >= 0

    def assigned(self, epochs: dict[TopicPartition, int]) -> None:
        self._tell("assigned", dict(epochs))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._tell("revoked", list(partitions))

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._tell("lost", list(partitions))

    def _tell(self, event: str, what: Any) -> None:
        self.told.append((event, what))
        if self.raises:
            raise self.raises.pop(0)


class Bench:
    def __init__(self, **kafka: Any) -> None:
        self.listener = Listener()
        self.clock = VirtualClock()
        self.commits: list[float | None] = []
        self.source = Source(
            Config(kafka=kafka),
            self.listener,
            clock=self.clock,
            wall_clock_ms=self.clock.unix_ms,  # type: ignore[arg-type]
            on_committed=self.commits.append,
        )
        self.client: FakeConsumer = self.source._client  # type: ignore[assignment]
        self.source.subscribe()

    def play(self, *script: Any, room: int = 100) -> list[Frame]:
        self.client.script.extend(script)
        return self.source.poll(room, 0.2)

    def assign(self, *partitions: TopicPartition) -> None:
        assert self.play(self.client.rebalance("assign", *partitions)) == []

    def answer_commit(self, error: confluent_kafka.KafkaError | None = None) -> None:
        self.client.settings["on_commit"](error, [])


@pytest.fixture(autouse=True)
def _no_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_kafka, "Consumer", FakeConsumer)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.assign(P0, P1)
    return bench


def messages(count: int, partition: TopicPartition = P0, first: int = 0) -> list[FakeMessage]:
    return [FakeMessage(partition, offset) for offset in range(first, first + count)]


class TestBursts:
    def test_a_poll_gives_what_there_is_and_waits_only_for_the_first(self, bench: Bench) -> None:
        bench.client.waits.clear()
        assert offsets(bench.play(*messages(3))) == [0, 1, 2]
        assert bench.client.waits == [0.2, 0, 0, 0]

    @pytest.mark.parametrize(("room", "taken"), [(1, 1), (5, 5), (1000, BURST)])
    def test_takes_no_more_than_there_is_room_for(self, bench: Bench, room: int, taken: int) -> None:
        assert len(bench.play(*messages(2 * BURST), room=room)) == taken

    def test_ends_with_the_frame_that_passes_the_bytes(self, bench: Bench) -> None:
        """Catches a burst of large frames that passes limits.max_in_flight_bytes by more than one of them."""
        bench.client.script.extend(FakeMessage(P0, offset, bytes(1000), b"cam-9") for offset in range(10))
        assert offsets(bench.source.poll(100, 0.2, 2900)) == [0, 1, 2]
        assert offsets(bench.source.poll(100, 0.2, 1)) == [3]
        assert offsets(bench.source.poll(100, 0.2)) == [4, 5, 6, 7, 8, 9]

    def test_frames_carry_the_record_and_where_it_came_from(self, bench: Bench) -> None:
        (got,) = bench.play(FakeMessage(P1, 7, b"\xff\xd8\xff", b"cam-9", timestamp_ms=1234))
        assert (got.source_id, got.captured_at_ms, got.received_at) == ("cam-9", 1234, bench.clock.now)
        assert (got.receipt.partition, got.receipt.offset) == (P1, 7)
        assert got.record.value == b"\xff\xd8\xff"

    def test_a_record_whose_headers_the_client_cannot_read_is_a_frame_with_its_verdict(self, bench: Bench) -> None:
        """Catches the poison pill: the client raises SystemError for a header name that is not UTF-8, once a record."""

        class Unreadable(FakeMessage):
            asked = 0

            def headers(self) -> None:
                self.asked += 1
                raise SystemError("returned a result with an exception set")

        bad = Unreadable(P0, 1)
        before, got, after = bench.play(FakeMessage(P0, 0), bad, FakeMessage(P0, 2))
        assert (before.verdict, after.verdict) == (None, None)
        assert isinstance(got.verdict, Rejected)
        assert got.verdict.reason == "unreadable_headers"
        assert bad.asked == 1, "asked again, the client hands out a list with a hole"


class TestEpochs:
    def test_rise_with_every_assignment_of_every_partition(self, bench: Bench) -> None:
        """Catches an epoch per process or per rebalance: a partition that came back would look as if it had stayed."""
        bench.play(bench.client.rebalance("revoke", P0), bench.client.rebalance("assign", P0))
        bench.play(bench.client.rebalance("lost", P0), bench.client.rebalance("assign", P0))
        assigned = [what[P0] for event, what in bench.listener.told if event == "assigned" and P0 in what]
        assert assigned == sorted(set(assigned))
        assert len(assigned) == 3
        first, second = bench.listener.told[0][1].values()
        assert first != second

    def test_a_revocation_in_the_middle_of_a_burst_parts_the_frames_by_epoch(self, bench: Bench) -> None:
        """Catches stamping frames with the epoch at the end of the poll, which passes stale ones off as new."""
        before, after = bench.play(
            FakeMessage(P0, 5),
            bench.client.rebalance("revoke", P0),
            bench.client.rebalance("assign", P0),
            FakeMessage(P0, 5),
        )
        assert before.receipt.epoch == bench.listener.told[0][1][P0]
        assert after.receipt.epoch == bench.listener.told[2][1][P0]
        assert before.receipt.epoch < after.receipt.epoch

    def test_frames_of_partitions_that_stay_go_on_through_a_rebalance(self, bench: Bench) -> None:
        epoch = bench.listener.told[0][1][P1]
        got = bench.play(FakeMessage(P1, 0), bench.client.rebalance("revoke", P0), FakeMessage(P1, 1))
        assert [f.receipt.epoch for f in got] == [epoch, epoch]


class TestRebalance:
    def test_lost_is_told_as_lost(self, bench: Bench) -> None:
        """Catches registering on_revoke alone: the listener would commit for a partition of someone else."""
        bench.play(bench.client.rebalance("lost", P0))
        assert bench.listener.told[-1] == ("lost", [P0])

    def test_the_partition_is_ours_for_as_long_as_the_listener_settles(self, bench: Bench) -> None:
        """Catches giving it up first, so that the commit inside is refused."""
        bench.listener.revoked = lambda partitions: bench.source.commit([Committable(P0, 3)])  # type: ignore[method-assign]
        bench.play(bench.client.rebalance("revoke", P0))
        names = [name for name, _ in bench.client.calls]
        assert names.index("commit") < names.index("incremental_unassign")

    @pytest.mark.parametrize("event", ["assign", "revoke", "lost"])
    def test_what_the_listener_raises_comes_out_of_the_poll_after_the_rebalance(self, bench: Bench, event: str) -> None:
        """Catches an exception that the client library swallows, and a rebalance that is left half done."""
        bench.listener.raises = [RuntimeError("no")]
        with pytest.raises(RuntimeError, match="no"):
            bench.play(FakeMessage(P1, 0), bench.client.rebalance(event, P0), FakeMessage(P1, 1), FakeMessage(P1, 2))
        assert len(bench.client.script) == 1, "the burst ends with the failure"
        done = "incremental_assign" if event == "assign" else "incremental_unassign"
        assert bench.client.called(done)

    def test_the_first_of_two_failures_is_the_one_that_is_raised(self, bench: Bench) -> None:
        """Catches reporting a consequence in place of its cause."""
        bench.listener.raises = [RuntimeError("cause"), RuntimeError("consequence")]
        with pytest.raises(RuntimeError, match="cause"):
            bench.play(bench.client.rebalance("revoke", P0), bench.client.rebalance("revoke", P1))

    def test_an_eager_strategy_assigns_and_unassigns_as_a_whole(self) -> None:
        bench = Bench(consumer={"partition.assignment.strategy": "range"})
        bench.assign(P0)
        bench.play(bench.client.rebalance("revoke", P0))
        assert bench.client.called("assign")
        assert bench.client.called("unassign")
        assert not bench.client.called("incremental_assign")

    def test_closing_is_not_told_as_a_revocation(self, bench: Bench) -> None:
        """Catches settling a second time, on the thread that closes."""
        told = len(bench.listener.told)
        assert bench.source.close(5)
        bench.client.rebalance("revoke", P0, P1)()
        assert len(bench.listener.told) == told

    def test_close_gives_up_in_time(self, bench: Bench) -> None:
        hung = threading.Event()
        bench.client.close = lambda: hung.wait(30)
        assert bench.source.close(0.05) is False
        hung.set()

    @pytest.mark.parametrize(
        "error", [confluent_kafka.KafkaException(failed(_Code._FAIL)), SystemError("no error set")]
    )
    def test_close_hides_no_other_failure_behind_its_own(self, bench: Bench, error: Exception) -> None:
        """Catches an exit code and its advice that are replaced by what the client library says of its closing."""
        bench.client.close = mock.Mock(side_effect=error)
        with capture_logs() as lines:
            assert bench.source.close(5)
        assert [line["event"] for line in lines] == ["consumer not closed in order"]


class TestStartingPoint:
    def test_is_the_committed_offset_and_else_the_beginning(self) -> None:
        """Catches a first start at the end of the topic: what was there before would never be looked at."""
        bench = Bench()
        bench.client.group = {P1: 42}
        bench.assign(P0, P1)
        assert bench.client.called("incremental_assign") == [[(P0, OFFSET_BEGINNING), (P1, 42)]]

    def test_is_left_to_the_client_where_the_user_set_the_reset(self) -> None:
        bench = Bench(consumer={"auto.offset.reset": "latest"})
        bench.assign(P0)
        assert bench.client.called("incremental_assign") == [[(P0, -1001)]]

    def test_a_coordinator_that_is_away_for_a_moment_is_asked_again(self) -> None:
        bench = Bench()
        bench.client.lookup_failures = 2
        bench.assign(P0)
        assert bench.client.called("incremental_assign")

    def test_is_never_guessed(self) -> None:
        """Catches starting at the beginning, or the end, because the coordinator did not answer."""
        bench = Bench()
        bench.client.lookup_failures = 99
        with pytest.raises(KafkaError, match="cannot read the committed offsets"):
            bench.play(bench.client.rebalance("assign", P0))
        assert not bench.client.called("incremental_assign")

    def test_is_looked_up_once_although_a_stop_has_come(self, bench: Bench) -> None:
        """Catches a clean stop that ends with code 4: of a partition without commits the client does not know where."""
        bench.listener.patience = 0
        p2 = TopicPartition("frames", 2)
        bench.assign(p2)
        assert bench.client.called("incremental_assign")[-1] == [(p2, OFFSET_BEGINNING)]

    def test_is_not_waited_for_after_a_stop(self) -> None:
        """Catches a stop that outlives its pod's grace period in a rebalance, while the coordinator is away."""
        bench = Bench()
        bench.client.lookup_failures = 99
        bench.listener.patience = 1
        nothing = FakeMessage(P0, 0, error=failed(_Code._AUTO_OFFSET_RESET))
        assert bench.play(bench.client.rebalance("assign", P0), nothing) == []
        assert bench.client.lookup_failures == 98
        assert bench.client.called("incremental_assign") == [[(P0, -1001)]]


class TestPause:
    def test_holds_for_partitions_that_come_later(self, bench: Bench) -> None:
        """Catches a new partition that is fetched in full while there is no room."""
        bench.source.pause()
        bench.source.pause()
        assert bench.client.called("pause") == [[(P0, -1001), (P1, -1001)]]
        p2 = TopicPartition("frames", 2)
        bench.assign(p2)
        assert bench.client.called("pause")[-1][0][0] == p2
        bench.source.resume()
        assert [p for p, _ in bench.client.called("resume")[-1]] == [P0, P1, p2]

    def test_does_not_survive_in_a_partition_that_comes_back(self, bench: Bench) -> None:
        """Catches librdkafka's memory of a pause: the partition would stand still for ever."""
        bench.source.pause()
        bench.play(bench.client.rebalance("revoke", P0))
        bench.source.resume()
        bench.assign(P0)
        assert [p for p, _ in bench.client.called("resume")[-1]] == [P0]


class TestCommit:
    def test_a_refusal_is_no_error_since_the_frames_are_repeated(self, bench: Bench) -> None:
        bench.client.refuse = failed(_Code.UNKNOWN_MEMBER_ID)
        bench.source.store([Committable(P0, 3)])
        bench.source.commit([Committable(P0, 3)])
        assert bench.client.called("commit") == [[(P0, 3)]]

    @pytest.mark.parametrize("code", [_Code.REBALANCE_IN_PROGRESS, _Code.ILLEGAL_GENERATION, _Code.STALE_MEMBER_EPOCH])
    def test_that_a_rebalance_refuses_is_tried_until_it_is_taken(self, bench: Bench, code: int) -> None:
        """Catches a rollout whose pods repeat frames, because each is stopped while the group still rebalances."""
        refused = iter([failed(code), failed(code), None])
        commit = bench.client.commit

        def answer(**given: Any) -> None:
            bench.client.refuse = next(refused)
            commit(**given)

        bench.client.commit = answer  # type: ignore[method-assign]
        bench.source.commit([Committable(P0, 3)])
        assert bench.client.called("commit") == [[(P0, 3)]] * 3

    def test_that_a_rebalance_goes_on_refusing_is_given_up(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("consumer.source.commits.LAST_COMMIT_S", 1.0)
        bench.client.refuse = failed(_Code.REBALANCE_IN_PROGRESS)
        with capture_logs() as lines:
            bench.source.commit([Committable(P0, 3)])
        assert [line["event"] for line in lines] == ["commit refused; these frames will be repeated"]
        assert len(bench.client.called("commit")) > 2
        assert bench.commits == [None], "one refusal, however often it was asked"

    def test_behind_which_the_client_is_closed(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a client that is closed while its last commit is still in it, and used after that."""
        back, order = threading.Event(), []
        monkeypatch.setattr("consumer.source.commits.LAST_COMMIT_S", 0.05)
        monkeypatch.setattr(bench.client, "commit", lambda **_: (back.wait(30), order.append("commit")))
        monkeypatch.setattr(bench.client, "close", lambda: order.append("close"))
        bench.source.commit([Committable(P0, 3)])
        assert bench.source.close(0.05) is False
        assert order == []
        back.set()
        wait_until(lambda: order == ["commit", "close"], 5, "the client to be closed")

    def test_of_a_process_that_is_no_member_is_not_sent(self, bench: Bench) -> None:
        """Catches a commit that an empty group takes from anyone, behind those of a successor that has left."""
        bench.client.metadata = group_metadata(-1, "")
        bench.source.commit([Committable(P0, 3)])
        assert bench.client.called("commit") == []

    def test_that_nobody_answers_is_given_up(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a drain that outlives its pod: without a coordinator librdkafka waits for the session timeout."""
        hung = threading.Event()
        monkeypatch.setattr("consumer.source.commits.LAST_COMMIT_S", 0.05)
        monkeypatch.setattr(bench.client, "commit", lambda **_: hung.wait(30))
        before = time.monotonic()
        bench.source.commit([Committable(P0, 3)])
        assert time.monotonic() - before < 10
        hung.set()

    def test_is_timed_from_the_first_offset_that_it_covers(self, bench: Bench) -> None:
        """Catches a time since the last store, which is always short, and one that counts while nothing is stored."""
        report = bench.client.settings["on_commit"]
        bench.source.store([Committable(P0, 3)])
        bench.clock.advance(0.25)
        bench.source.store([Committable(P0, 4)])
        bench.clock.advance(0.25)
        report(failed(_Code.REQUEST_TIMED_OUT), [])
        report(None, [])
        report(None, [])  # what librdkafka commits without a new offset of ours says nothing
        bench.clock.advance(100)
        report(failed(_Code._NO_OFFSET), [])
        bench.source.store([Committable(P0, 5)])
        bench.clock.advance(1)
        bench.source.commit([Committable(P0, 5)])
        assert bench.commits == [None, 0.5, 1.0]

    def test_goes_out_in_the_background_once_an_interval(self) -> None:
        bench = Bench(commit_interval_ms=500)
        bench.source.store([Committable(P0, 3)])
        bench.play()
        assert not bench.client.called("commit")
        bench.clock.advance(0.5)
        bench.play()
        bench.answer_commit()
        bench.play()
        bench.clock.advance(9)
        bench.play()
        assert len(bench.client.called("commit")) == 1, "the second one would commit nothing new"

    def test_is_never_sent_while_another_one_is_unanswered(self) -> None:
        """Catches commits that overtake each other: librdkafka tries them again in no certain order.

        On Apache Kafka, after its coordinator had been away, offset 630 of a partition was committed after 1476.
        """
        bench = Bench(commit_interval_ms=500)
        for offset in range(3, 9):
            bench.source.store([Committable(P0, offset)])
            bench.clock.advance(0.5)
            bench.play()
        assert len(bench.client.called("commit")) == 1
        bench.answer_commit()  # what was stored while it was under way is for the next one
        bench.play()
        assert len(bench.client.called("commit")) == 2

    def test_that_failed_is_sent_again_though_nothing_new_is_stored(self) -> None:
        """Catches a quiet topic whose last frames are repeated by the next owner."""
        bench = Bench(commit_interval_ms=500)
        bench.source.store([Committable(P0, 3)])
        for _ in range(3):
            bench.clock.advance(0.5)
            bench.play()
            bench.answer_commit(failed(_Code.REQUEST_TIMED_OUT))
        assert len(bench.client.called("commit")) == 3

    def test_whose_answer_never_comes_does_not_stop_the_commits_for_good(self) -> None:
        bench = Bench(commit_interval_ms=500)
        bench.source.store([Committable(P0, 3)])
        for _ in range(2):
            bench.clock.advance(121)
            bench.play()
        assert len(bench.client.called("commit")) == 2

    def test_nothing_is_not_sent(self, bench: Bench) -> None:
        """Catches commit(offsets=[]), which commits the current positions."""
        bench.source.store([])
        bench.source.commit([])
        assert not bench.client.called("commit")
        assert not bench.client.called("store")


class TestLag:
    def test_counts_from_the_last_frame_read(self, bench: Bench) -> None:
        bench.play(FakeMessage(P0, 89, timestamp_ms=bench.clock.unix_ms() - 2500), FakeMessage(P1, 99, timestamp_ms=0))
        assert bench.source.lag() == [Lag(P0, 10, 2.5), Lag(P1, 0, 0.0)]
        bench.play(bench.client.rebalance("revoke", P0))
        assert bench.source.lag() == [Lag(P1, 0, 0.0)]

    def test_counts_a_partition_of_which_nothing_was_read_from_where_it_begins(self) -> None:
        """Catches a backlog that no metric shows, because its first frame does not come."""
        bench = Bench()
        bench.client.group[P0] = 70
        bench.client.watermarks = (20, 100)
        bench.assign(P0, P1)
        assert bench.source.lag() == [Lag(P0, 30, None), Lag(P1, 80, None)]
        bench.client.group[P0] = 100
        assert bench.source.rewind()
        assert bench.source.lag() == [Lag(P0, 0, 0.0), Lag(P1, 80, None)]

    def test_is_unknown_where_the_client_chooses_the_beginning(self) -> None:
        """Catches a whole topic as lag although `auto.offset.reset: latest` skips it."""
        bench = Bench(consumer={"auto.offset.reset": "latest"})
        bench.assign(P0)
        assert bench.source.lag() == []

    def test_of_a_partition_that_was_never_fetched_from_is_unknown(self, bench: Bench) -> None:
        """Catches a 0 while its broker is away."""
        bench.client.watermarks = (confluent_kafka.OFFSET_INVALID, confluent_kafka.OFFSET_INVALID)
        assert bench.source.lag() == []


class TestTrouble:
    @pytest.mark.parametrize(
        ("code", "advice"),
        [
            (_Code.TOPIC_AUTHORIZATION_FAILED, "READ on every input topic: frames"),
            (_Code.GROUP_AUTHORIZATION_FAILED, "READ on the consumer group sluice"),
            (_Code.FENCED_INSTANCE_ID, "same group.instance.id"),
            (_Code._AUTHENTICATION, "SASL and TLS"),
        ],
    )
    @pytest.mark.parametrize("as_message", [True, False])
    def test_that_no_retry_mends_ends_with_advice(self, bench: Bench, code: int, advice: str, as_message: bool) -> None:
        """Catches a consumer that logs "not authorised" for ever and looks healthy."""
        trouble: Any = FakeMessage(P0, 0, error=failed(code))
        if not as_message:

            def trouble() -> None:
                bench.client.settings["error_cb"](failed(code))

        with pytest.raises(RefusedError, match=advice):
            bench.play(FakeMessage(P0, 0), trouble)

    def test_that_passes_is_logged_and_the_burst_goes_on(self, bench: Bench) -> None:
        passing = failed(_Code._ALL_BROKERS_DOWN)
        got = bench.play(
            FakeMessage(P0, 0),
            FakeMessage(P0, 0, error=failed(_Code._TRANSPORT)),
            lambda: bench.client.settings["error_cb"](passing),
            FakeMessage(P0, 1),
        )
        assert offsets(got) == [0, 1]

    def test_of_tls_ends_where_the_certificate_is_not_trusted_and_passes_where_a_handshake_was_cut(
        self, bench: Bench
    ) -> None:
        """Catches a pod that tries for ever with the wrong authority, and one that ends when a broker restarts."""
        says = bench.client.settings["error_cb"]
        cut = confluent_kafka.KafkaError(_Code._SSL, "SSL handshake failed: Disconnected")
        assert offsets(bench.play(lambda: says(cut), FakeMessage(P0, 0))) == [0]
        strange = confluent_kafka.KafkaError(_Code._SSL, "SSL handshake failed: certificate verify failed: broker")
        with pytest.raises(RefusedError, match=r"check ssl\.ca\.location"):
            bench.play(lambda: says(strange))

    def test_that_is_fatal_to_the_client_ends(self, bench: Bench) -> None:
        with pytest.raises(KafkaError, match="restart this process") as caught:
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, fatal=True)))
        assert caught.value.retriable

    def test_that_killed_the_client_ends_even_if_it_does_not_say_fatal(self, bench: Bench) -> None:
        """Catches a fenced consumer that idles for ever, ready: the real client's last error has fatal() False."""
        with pytest.raises(KafkaError, match="the consumer died"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, fatal=False)))

    def test_that_died_for_a_cause_we_know_says_what_to_do(self, bench: Bench) -> None:
        """The library gives the cause in its text alone. Catches a pod that restarts for ever without a reason."""
        text = f"Fatal consumer error: {_Code(_Code.FENCED_INSTANCE_ID).str()}"
        with pytest.raises(RefusedError, match=r"same group\.instance\.id"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, text, fatal=True)))

    def test_offsets_that_go_back_end_it_with_a_message(self, bench: Bench) -> None:
        """Catches a topic that was made anew under a running consumer: its frames would be taken for old ones."""
        with pytest.raises(KafkaError, match="went back from 8 to 3"):
            bench.play(FakeMessage(P0, 7), FakeMessage(P0, 3))

    def test_deleted_frames_end_it_with_what_a_person_can_do(self, bench: Bench) -> None:
        """Catches skipping, in silence, what was deleted before it was read."""
        with pytest.raises(RefusedError, match="reset the offsets"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._AUTO_OFFSET_RESET)))

    def test_a_second_thread_is_refused(self, bench: Bench) -> None:
        raised: list[BaseException] = []

        def use() -> None:
            for call in (
                lambda: bench.source.poll(1, 0),
                bench.source.pause,
                bench.source.resume,
                lambda: bench.source.store([]),
                lambda: bench.source.commit([]),
                bench.source.lag,
                lambda: bench.source.close(1),
            ):
                try:
                    call()
                except OwnershipError as error:
                    raised.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join(10)
        assert len(raised) == 7
