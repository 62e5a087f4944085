"""Tests what exactly-once delivery needs of the consumer: group metadata, and a rewind to the committed offsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal
from unittest import mock

import confluent_kafka
import pytest
import structlog

from consumer.config import Config
from consumer.delivery.offsets import Committable
from consumer.errors import KafkaError
from consumer.kafka import group
from consumer.kafka.consumer import Source
from consumer.kafka.consumer_settings import consumer_settings
from consumer.types import Frame, Receipt
from fake_kafka import FakeConsumer, FakeMessage, FakeTopicIds, failed, group_metadata
from made_frames import P0, P1, VirtualClock, offsets


class Bench:
    def __init__(self, **kafka: Any) -> None:
        clock = VirtualClock()
        config = Config(delivery="exactly_once", kafka=kafka)  # type: ignore[arg-type]
        self.source = Source(config, mock.Mock(), clock=clock, wall_clock_ms=clock.unix_ms, topic_ids=FakeTopicIds())  # type: ignore[arg-type]
        self.client: FakeConsumer = self.source._client  # type: ignore[assignment]
        self.source.subscribe()

    def play(self, *script: Any) -> list[Frame]:
        self.client.script.extend(script)
        return self.source.poll(100, 0.2)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(confluent_kafka, "Consumer", FakeConsumer)
    made = Bench()
    made.play(made.client.rebalance("assign", P0, P1))
    yield made
    assert made.source._failure is None


class TestMembership:
    def test_is_the_metadata_of_the_library(self, bench: Bench) -> None:
        assert bench.source.membership() == group_metadata(3, "member-1")

    @pytest.mark.parametrize(("generation", "member"), [(-1, ""), (-1, "member-1"), (3, "")])
    def test_is_none_if_the_process_is_not_a_member(self, bench: Bench, generation: int, member: str) -> None:
        """Catches a commit that the brokers do not check: they check only the group metadata that is sent."""
        bench.client.metadata = group_metadata(generation, member)
        assert bench.source.membership() is None

    @pytest.mark.parametrize("instance", [None, "pod-0"])
    def test_is_decoded_from_the_real_library(self, instance: str | None) -> None:
        """Catches a librdkafka with another encoding. Before the first join, its metadata is not that of a member."""
        settings = {"bootstrap.servers": "localhost:1", "group.id": "g", "log_level": 0}
        client = confluent_kafka.Consumer(settings | ({"group.instance.id": instance} if instance else {}))
        assert client.consumer_group_metadata() == group_metadata(-1, "", instance).replace(b"sluice", b"g")
        assert group.is_member(client.consumer_group_metadata()) is False
        client.close()

    def test_that_cannot_be_decoded_is_an_error(self) -> None:
        with pytest.raises(KafkaError, match="at_least_once"):
            group.is_member(b"CGMDv9:?")


class TestRewind:
    def test_seeks_to_the_committed_offsets_in_new_epochs(self, bench: Bench) -> None:
        before = bench.play(FakeMessage(P0, 7), FakeMessage(P1, 2))
        bench.client.group = {P0: 6, P1: 2}
        epochs = bench.source.rewind()
        assert bench.client.called("seek") == [[(P0, 6)], [(P1, 2)]]
        assert epochs is not None
        again = bench.play(FakeMessage(P0, 6), FakeMessage(P0, 7))
        assert offsets(again) == [6, 7], "the offsets go back without the topic being made anew"
        assert {item.receipt.epoch for item in again} == {epochs[P0]}
        assert not {item.receipt.epoch for item in before} & set(epochs.values())

    def test_without_a_commit_seeks_to_the_start_of_the_assignment(self, bench: Bench) -> None:
        """Catches a seek to the end (auto.offset.reset: latest), past frames that were read but not committed."""
        bench.play(FakeMessage(P0, 40), FakeMessage(P0, 41))
        for _ in range(2):
            assert bench.source.rewind() is not None
        assert bench.client.called("seek") == [[(P0, 40)], [(P0, 40)]]

    def test_of_a_partition_without_a_frame_keeps_its_end(self, bench: Bench) -> None:
        """The client reports an end once. Catches a recovery that forgets an end after markers: a lag would remain."""
        end = FakeMessage(P1, 11, error=failed(confluent_kafka.KafkaError._PARTITION_EOF))
        bench.play(FakeMessage(P0, 40), end)
        assert [each.offset for each in bench.source.ends()] == [11]
        epochs = bench.source.rewind()
        assert epochs is not None
        assert bench.source.ends() == [Receipt(P1, 11, epochs[P1])]

    def test_never_goes_below_the_offsets_of_a_transaction(self, bench: Bench) -> None:
        """Catches repeats if a coordinator that has just taken over answers with older offsets."""
        bench.play(FakeMessage(P0, 40), FakeMessage(P1, 7))
        bench.source.transacted([Committable(P0, 41)])
        for _ in range(2):
            bench.client.group = {P0: 12, P1: 5}
            assert bench.source.rewind() is not None
        assert bench.client.called("seek") == [[(P0, 41)], [(P1, 5)]] * 2
        bench.play(bench.client.rebalance("revoke", P0), bench.client.rebalance("assign", P0))
        bench.client.group = {P0: 50, P1: 5}
        assert bench.source.rewind() is not None
        assert bench.client.called("seek")[-2:] == [[(P1, 5)], [(P0, 50)]]

    def test_never_goes_below_the_offset_committed_at_the_assignment(self, bench: Bench) -> None:
        """Catches repeats of frames that the last owner committed, if a new coordinator answers with older offsets."""
        bench.client.group = {P0: 30}
        bench.play(bench.client.rebalance("revoke", P0), bench.client.rebalance("assign", P0))
        bench.play(FakeMessage(P0, 30))
        bench.client.group = {P0: 12}
        assert bench.source.rewind() is not None
        assert bench.client.called("seek") == [[(P0, 30)]]

    def test_resumes_before_it_seeks(self, bench: Bench) -> None:
        """Catches a resume after the seek: it would continue at the position of the pause."""
        bench.client.group = {P0: 6}
        bench.source.pause()
        bench.source.rewind()
        assert [name for name, _ in bench.client.calls if name in {"resume", "seek"}][-2:] == ["resume", "seek"]

    def test_that_fails_half_way_can_be_retried(self, bench: Bench) -> None:
        """Catches mistaking the offsets of the successful half for those of a topic that was created again."""
        bench.play(FakeMessage(P0, 7), FakeMessage(P1, 7))
        bench.client.group = {P0: 3, P1: 3}
        seek = bench.client.seek

        def once(partition: confluent_kafka.TopicPartition) -> None:
            if partition.partition == P1.partition:
                bench.client.seek_failures, bench.client.seek = 1, seek  # type: ignore[method-assign]
            seek(partition)

        bench.client.seek = once  # type: ignore[method-assign]
        assert bench.source.rewind() is None
        bench.play(FakeMessage(P0, 3))
        assert bench.source.rewind() is not None

    def test_without_an_answer_from_the_coordinator_can_be_retried(self, bench: Bench) -> None:
        bench.play(FakeMessage(P0, 7))
        bench.client.lookup_failures = 2
        assert bench.source.rewind() is None
        assert bench.source.rewind() is not None

    def test_with_nothing_assigned_is_immediate(self, bench: Bench) -> None:
        bench.play(bench.client.rebalance("revoke", P0, P1))
        bench.client.lookup_failures = 5
        assert bench.source.rewind() == {}


class TestTheStart:
    """The remaining member of a group looks up where the partitions of a dead member start."""

    @pytest.mark.parametrize(
        ("delivery", "timeout_ms", "tries"),
        [
            ("exactly_once", None, 6),
            ("exactly_once", 5_000, 6),
            ("exactly_once", "40000", 11),
            ("exactly_once", 120_000, 27),
            ("at_least_once", 120_000, 6),  # there is no transaction
        ],
    )
    def test_is_looked_up_for_as_long_as_a_transaction_may_stay_open(
        self, delivery: Literal["exactly_once", "at_least_once"], timeout_ms: int | str | None, tries: int
    ) -> None:
        """Catches a fixed 30 s: the brokers end the transaction up to 10 s after `transaction.timeout.ms`."""
        producer: dict[str, Any] = {} if timeout_ms is None else {"transaction.timeout.ms": timeout_ms}
        config = Config(delivery=delivery, kafka={"producer": producer})  # type: ignore[arg-type]
        assert group.start_tries(config) == tries
        if delivery == "exactly_once" and timeout_ms is not None:
            asked_s, ended_s = tries * group.LOOKUP_S, float(timeout_ms) / 1000 + 10
            assert asked_s >= ended_s

    @pytest.mark.parametrize(("failures", "goes_on"), [(10, True), (11, False)])
    def test_waits_for_the_transaction_of_a_dead_member(
        self, monkeypatch: pytest.MonkeyPatch, failures: int, goes_on: bool
    ) -> None:
        """Catches a limit that the consumer does not use, and an endless wait."""
        monkeypatch.setattr(confluent_kafka, "Consumer", FakeConsumer)
        made = Bench(producer={"transaction.timeout.ms": 40_000})
        made.client.group, made.client.lookup_failures = {P0: 7}, failures
        if not goes_on:
            with pytest.raises(KafkaError, match="cannot read the committed offsets"):
                made.play(made.client.rebalance("assign", P0))
            return
        made.play(made.client.rebalance("assign", P0))
        assert made.client.called("assign") + made.client.called("incremental_assign") == [[(P0, 7)]]

    def test_logs_once_the_reason_and_the_limit_of_a_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches half a minute without a log line while a healthy pod reads nothing."""
        monkeypatch.setattr(confluent_kafka, "Consumer", FakeConsumer)
        made = Bench(producer={"transaction.timeout.ms": 40_000})
        made.client.lookup_failures = 4
        with structlog.testing.capture_logs() as logs:
            made.play(made.client.rebalance("assign", P0))
        told = [line for line in logs if line["event"].startswith("waiting for the committed offsets")]
        assert [line["at_most_s"] for line in told] == [50]


def test_only_transactions_commit() -> None:
    """Catches commits by the library itself, which succeed without a transaction."""
    assert consumer_settings(Config(delivery="exactly_once"))["enable.auto.commit"] is False
    assert consumer_settings(Config())["enable.auto.commit"] is True
