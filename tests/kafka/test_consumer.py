"""Tests `Source`: epochs, bursts, rebalances inside poll, and start offsets."""

from __future__ import annotations

import threading
from unittest import mock

import confluent_kafka
import pytest
from confluent_kafka import OFFSET_BEGINNING
from structlog.testing import capture_logs

from consumer.delivery.offsets import Committable
from consumer.errors import KafkaError
from consumer.kafka.consumer import BURST
from consumer.types import Rejected, TopicPartition
from fake_kafka import FakeMessage, failed
from made_frames import P0, P1, offsets
from source_runs import Bench, messages

pytestmark = pytest.mark.usefixtures("fake_consumer")

_Code = confluent_kafka.KafkaError


class TestBursts:
    def test_a_poll_returns_available_frames_and_waits_only_for_the_first(self, bench: Bench) -> None:
        bench.client.waits.clear()
        assert offsets(bench.play(*messages(3))) == [0, 1, 2]
        assert bench.client.waits == [0.2, 0, 0, 0]

    @pytest.mark.parametrize(("room", "taken"), [(1, 1), (5, 5), (1000, BURST)])
    def test_has_no_more_frames_than_there_is_room(self, bench: Bench, room: int, taken: int) -> None:
        assert len(bench.play(*messages(2 * BURST), room=room)) == taken

    def test_ends_with_the_frame_that_exceeds_the_byte_limit(self, bench: Bench) -> None:
        """Catches a burst of large frames that exceeds limits.max_in_flight_bytes by more than one frame."""
        bench.client.script.extend(FakeMessage(P0, offset, bytes(1000), b"cam-9") for offset in range(10))
        assert offsets(bench.source.poll(100, 0.2, 2900)) == [0, 1, 2]
        assert offsets(bench.source.poll(100, 0.2, 1)) == [3]
        assert offsets(bench.source.poll(100, 0.2)) == [4, 5, 6, 7, 8, 9]

    def test_frames_carry_the_record_and_where_it_came_from(self, bench: Bench) -> None:
        (got,) = bench.play(FakeMessage(P1, 7, b"\xff\xd8\xff", b"cam-9", timestamp_ms=1234))
        assert (got.source_id, got.captured_at_ms, got.received_at) == ("cam-9", 1234, bench.clock.now)
        assert (got.receipt.partition, got.receipt.offset) == (P1, 7)
        assert got.record.value == b"\xff\xd8\xff"

    def test_a_record_with_unreadable_headers_is_a_rejected_frame(self, bench: Bench) -> None:
        """Catches a poison pill: the client raises SystemError for a header name that is not UTF-8, once per record."""

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
        """Catches an epoch per process or per rebalance: a partition that returns would appear to have stayed."""
        bench.play(bench.client.rebalance("revoke", P0), bench.client.rebalance("assign", P0))
        bench.play(bench.client.rebalance("lost", P0), bench.client.rebalance("assign", P0))
        assigned = [what[P0] for event, what in bench.listener.told if event == "assigned" and P0 in what]
        assert assigned == sorted(set(assigned))
        assert len(assigned) == 3
        first, second = bench.listener.told[0][1].values()
        assert first != second

    def test_separate_frames_before_and_after_a_revocation_in_a_burst(self, bench: Bench) -> None:
        """Catches stamping frames with the epoch at the end of the poll, which makes stale frames appear current."""
        before, after = bench.play(
            FakeMessage(P0, 5),
            bench.client.rebalance("revoke", P0),
            bench.client.rebalance("assign", P0),
            FakeMessage(P0, 5),
        )
        assert before.receipt.epoch == bench.listener.told[0][1][P0]
        assert after.receipt.epoch == bench.listener.told[2][1][P0]
        assert before.receipt.epoch < after.receipt.epoch

    def test_frames_of_other_partitions_continue_through_a_rebalance(self, bench: Bench) -> None:
        epoch = bench.listener.told[0][1][P1]
        got = bench.play(FakeMessage(P1, 0), bench.client.rebalance("revoke", P0), FakeMessage(P1, 1))
        assert [f.receipt.epoch for f in got] == [epoch, epoch]


class TestRebalance:
    def test_a_loss_is_reported_as_a_loss(self, bench: Bench) -> None:
        """Catches registering only on_revoke: the listener would commit for a partition of another consumer."""
        bench.play(bench.client.rebalance("lost", P0))
        assert bench.listener.told[-1] == ("lost", [P0])

    def test_the_partition_stays_assigned_while_the_listener_runs(self, bench: Bench) -> None:
        """Catches unassigning the partition first, so that the commit inside is refused."""
        bench.listener.revoked = lambda partitions: bench.source.commit([Committable(P0, 3)])  # type: ignore[method-assign]
        bench.play(bench.client.rebalance("revoke", P0))
        names = [name for name, _ in bench.client.calls]
        assert names.index("commit") < names.index("incremental_unassign")

    @pytest.mark.parametrize("event", ["assign", "revoke", "lost"])
    def test_poll_raises_the_error_of_the_listener_after_the_rebalance(self, bench: Bench, event: str) -> None:
        """Catches an exception that the client library swallows, and an incomplete rebalance."""
        bench.listener.raises = [RuntimeError("no")]
        with pytest.raises(RuntimeError, match="no"):
            bench.play(FakeMessage(P1, 0), bench.client.rebalance(event, P0), FakeMessage(P1, 1), FakeMessage(P1, 2))
        assert len(bench.client.script) == 1, "the burst ends with the failure"
        done = "incremental_assign" if event == "assign" else "incremental_unassign"
        assert bench.client.called(done)

    def test_poll_raises_the_first_of_two_errors(self, bench: Bench) -> None:
        """Catches reporting a consequence instead of its cause."""
        bench.listener.raises = [RuntimeError("cause"), RuntimeError("consequence")]
        with pytest.raises(RuntimeError, match="cause"):
            bench.play(bench.client.rebalance("revoke", P0), bench.client.rebalance("revoke", P1))

    def test_an_eager_strategy_replaces_the_whole_assignment(self) -> None:
        bench = Bench(consumer={"partition.assignment.strategy": "range"})
        bench.assign(P0)
        bench.play(bench.client.rebalance("revoke", P0))
        assert bench.client.called("assign")
        assert bench.client.called("unassign")
        assert not bench.client.called("incremental_assign")

    def test_a_close_is_not_reported_as_a_revocation(self, bench: Bench) -> None:
        """Catches finishing frames a second time, on the thread that closes."""
        told = len(bench.listener.told)
        assert bench.source.close(5)
        bench.client.rebalance("revoke", P0, P1)()
        assert len(bench.listener.told) == told

    def test_a_close_ends_by_its_timeout(self, bench: Bench) -> None:
        hung = threading.Event()
        bench.client.close = lambda: hung.wait(30)
        assert bench.source.close(0.05) is False
        hung.set()

    @pytest.mark.parametrize(
        "error", [confluent_kafka.KafkaException(failed(_Code._FAIL)), SystemError("no error set")]
    )
    def test_a_failed_close_does_not_hide_an_earlier_error(self, bench: Bench, error: Exception) -> None:
        """Catches an error of the close that replaces the exit code and the advice of the original error."""
        bench.client.close = mock.Mock(side_effect=error)
        with capture_logs() as lines:
            assert bench.source.close(5)
        assert [line["event"] for line in lines] == ["consumer not closed in order"]


class TestStartingPoint:
    def test_is_the_committed_offset_or_else_the_beginning(self) -> None:
        """Catches a first start at the end of the topic: earlier frames would never be processed."""
        bench = Bench()
        bench.client.group = {P1: 42}
        bench.assign(P0, P1)
        assert bench.client.called("incremental_assign") == [[(P0, OFFSET_BEGINNING), (P1, 42)]]

    def test_is_left_to_the_client_if_the_user_set_a_reset_policy(self) -> None:
        bench = Bench(consumer={"auto.offset.reset": "latest"})
        bench.assign(P0)
        assert bench.client.called("incremental_assign") == [[(P0, -1001)]]

    def test_is_looked_up_again_after_a_short_coordinator_outage(self) -> None:
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

    def test_is_looked_up_once_even_after_a_stop(self, bench: Bench) -> None:
        """Catches a clean stop that ends with code 4: without a commit, the client does not know the start offset."""
        bench.listener.patience = 0
        p2 = TopicPartition("frames", 2)
        bench.assign(p2)
        assert bench.client.called("incremental_assign")[-1] == [(p2, OFFSET_BEGINNING)]

    def test_is_not_waited_for_after_a_stop(self) -> None:
        """Catches a stop that exceeds the grace period in a rebalance while the coordinator is unavailable."""
        bench = Bench()
        bench.client.lookup_failures = 99
        bench.listener.patience = 1
        nothing = FakeMessage(P0, 0, error=failed(_Code._AUTO_OFFSET_RESET))
        assert bench.play(bench.client.rebalance("assign", P0), nothing) == []
        assert bench.client.lookup_failures == 98
        assert bench.client.called("incremental_assign") == [[(P0, -1001)]]


class TestPause:
    def test_applies_to_partitions_that_are_assigned_later(self, bench: Bench) -> None:
        """Catches fetching a new partition while there is no room."""
        bench.source.pause()
        bench.source.pause()
        assert bench.client.called("pause") == [[(P0, -1001), (P1, -1001)]]
        p2 = TopicPartition("frames", 2)
        bench.assign(p2)
        assert bench.client.called("pause")[-1][0][0] == p2
        bench.source.resume()
        assert [p for p, _ in bench.client.called("resume")[-1]] == [P0, P1, p2]

    def test_ends_for_a_partition_that_is_assigned_again(self, bench: Bench) -> None:
        """librdkafka remembers a pause. Catches a partition that is never fetched again."""
        bench.source.pause()
        bench.play(bench.client.rebalance("revoke", P0))
        bench.source.resume()
        bench.assign(P0)
        assert [p for p, _ in bench.client.called("resume")[-1]] == [P0]
