"""Tests which offsets the consumer commits and when, and the lag that it reports."""

from __future__ import annotations

import threading
import time
from typing import Any

import confluent_kafka
import pytest
from structlog.testing import capture_logs

from consumer.delivery.offsets import Committable
from consumer.types import Lag
from fake_kafka import FakeMessage, failed, group_metadata
from made_frames import P0, P1
from source_runs import Bench
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("fake_consumer")

_Code = confluent_kafka.KafkaError


class TestCommit:
    def test_that_is_refused_raises_no_error_because_frames_are_repeated(self, bench: Bench) -> None:
        bench.client.refuse = failed(_Code.UNKNOWN_MEMBER_ID)
        bench.source.store([Committable(P0, 3)])
        bench.source.commit([Committable(P0, 3)])
        assert bench.client.called("commit") == [[(P0, 3)]]

    @pytest.mark.parametrize("code", [_Code.REBALANCE_IN_PROGRESS, _Code.ILLEGAL_GENERATION, _Code.STALE_MEMBER_EPOCH])
    def test_is_retried_while_the_group_rebalances(self, bench: Bench, code: int) -> None:
        """Catches a rollout whose pods repeat frames because each pod stops while the group still rebalances."""
        refused = iter([failed(code), failed(code), None])
        commit = bench.client.commit

        def answer(**given: Any) -> None:
            bench.client.refuse = next(refused)
            commit(**given)

        bench.client.commit = answer  # type: ignore[method-assign]
        bench.source.commit([Committable(P0, 3)])
        assert bench.client.called("commit") == [[(P0, 3)]] * 3

    def test_is_abandoned_if_the_rebalance_takes_too_long(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("consumer.kafka.commits.LAST_COMMIT_S", 1.0)
        bench.client.refuse = failed(_Code.REBALANCE_IN_PROGRESS)
        with capture_logs() as lines:
            bench.source.commit([Committable(P0, 3)])
        assert [line["event"] for line in lines] == ["commit refused; these frames will be repeated"]
        assert len(bench.client.called("commit")) > 2
        assert bench.commits == [None], "one refusal, however often it was asked"

    def test_ends_before_the_client_is_closed(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a client that is closed while its last commit is in progress, and used after that."""
        back, order = threading.Event(), []
        monkeypatch.setattr("consumer.kafka.commits.LAST_COMMIT_S", 0.05)
        monkeypatch.setattr(bench.client, "commit", lambda **_: (back.wait(30), order.append("commit")))
        monkeypatch.setattr(bench.client, "close", lambda: order.append("close"))
        bench.source.commit([Committable(P0, 3)])
        assert bench.source.close(0.05) is False
        assert order == []
        back.set()
        wait_until(lambda: order == ["commit", "close"], 5, "the client to be closed")

    def test_is_not_sent_if_the_process_is_not_a_member(self, bench: Bench) -> None:
        """An empty group accepts a commit from any process. Catches one after those of a successor that has left."""
        bench.client.metadata = group_metadata(-1, "")
        bench.source.commit([Committable(P0, 3)])
        assert bench.client.called("commit") == []

    def test_without_an_answer_is_abandoned(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a drain that is too long: without a coordinator, librdkafka waits for the session timeout."""
        hung = threading.Event()
        monkeypatch.setattr("consumer.kafka.commits.LAST_COMMIT_S", 0.05)
        monkeypatch.setattr(bench.client, "commit", lambda **_: hung.wait(30))
        before = time.monotonic()
        bench.source.commit([Committable(P0, 3)])
        assert time.monotonic() - before < 10
        hung.set()

    def test_is_measured_from_the_first_offset_that_it_covers(self, bench: Bench) -> None:
        """Catches measuring from the last store, which is always short, and measuring while nothing is stored."""
        report = bench.client.settings["on_commit"]
        bench.source.store([Committable(P0, 3)])
        bench.clock.advance(0.25)
        bench.source.store([Committable(P0, 4)])
        bench.clock.advance(0.25)
        report(failed(_Code.REQUEST_TIMED_OUT), [])
        report(None, [])
        report(None, [])  # a commit by librdkafka without a newly stored offset is not measured
        bench.clock.advance(100)
        report(failed(_Code._NO_OFFSET), [])
        bench.source.store([Committable(P0, 5)])
        bench.clock.advance(1)
        bench.source.commit([Committable(P0, 5)])
        assert bench.commits == [None, 0.5, 1.0]

    def test_is_sent_in_the_background_once_per_interval(self) -> None:
        bench = Bench(commit_interval_ms=500)
        bench.assign(P0)
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

    def test_is_not_sent_while_another_is_unanswered(self) -> None:
        """Catches commits that overtake each other: librdkafka retries them in no certain order.

        On Apache Kafka, after its coordinator had been unavailable, offset 630 of a partition was committed after 1476.
        """
        bench = Bench(commit_interval_ms=500)
        bench.assign(P0)
        for offset in range(3, 9):
            bench.source.store([Committable(P0, offset)])
            bench.clock.advance(0.5)
            bench.play()
        assert len(bench.client.called("commit")) == 1
        bench.answer_commit()  # an offset that was stored while a commit was in flight belongs to the next commit
        bench.play()
        assert len(bench.client.called("commit")) == 2

    def test_that_failed_is_sent_again_without_new_offsets(self) -> None:
        """Catches a quiet topic whose last frames are repeated by the next owner."""
        bench = Bench(commit_interval_ms=500)
        bench.assign(P0)
        bench.source.store([Committable(P0, 3)])
        for _ in range(3):
            bench.clock.advance(0.5)
            bench.play()
            bench.answer_commit(failed(_Code.REQUEST_TIMED_OUT))
        assert len(bench.client.called("commit")) == 3

    def test_without_an_answer_does_not_stop_later_commits(self) -> None:
        bench = Bench(commit_interval_ms=500)
        bench.assign(P0)
        bench.source.store([Committable(P0, 3)])
        for _ in range(2):
            bench.clock.advance(121)
            bench.play()
        assert len(bench.client.called("commit")) == 2

    def test_of_no_offsets_is_not_sent(self, bench: Bench) -> None:
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

    def test_counts_an_unread_partition_from_its_start_offset(self) -> None:
        """Catches a backlog that no metric shows because its first frame does not arrive."""
        bench = Bench()
        bench.client.group[P0] = 70
        bench.client.watermarks = (20, 100)
        bench.assign(P0, P1)
        assert bench.source.lag() == [Lag(P0, 30, None), Lag(P1, 80, None)]
        bench.client.group[P0] = 100
        assert bench.source.rewind()
        assert bench.source.lag() == [Lag(P0, 0, 0.0), Lag(P1, 80, None)]

    def test_is_unknown_if_the_client_chooses_the_start_offset(self) -> None:
        """Catches reporting a whole topic as lag although `auto.offset.reset: latest` skips it."""
        bench = Bench(consumer={"auto.offset.reset": "latest"})
        bench.assign(P0)
        assert bench.source.lag() == []

    def test_is_unknown_before_the_first_fetch_of_a_partition(self, bench: Bench) -> None:
        """Catches a lag of 0 while the broker of the partition is unavailable."""
        bench.client.watermarks = (confluent_kafka.OFFSET_INVALID, confluent_kafka.OFFSET_INVALID)
        assert bench.source.lag() == []
