"""Tests topic IDs and leader epochs in commits, partition ends after markers, and offsets outside the log."""

from __future__ import annotations

import re
from collections.abc import Collection

import confluent_kafka
import pytest

from consumer.config import Config
from consumer.delivery.offsets import Committable
from consumer.errors import KafkaError, OffsetsLostError, TopicReplacedError
from consumer.kafka.position import Position
from consumer.kafka.topic_ids import Replaced, TopicIds
from consumer.types import Receipt, TopicPartition
from fake_kafka import FakeMessage, failed
from made_frames import P0, P1
from source_runs import Bench, messages
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("fake_consumer")

_Code = confluent_kafka.KafkaError
OLD, NEW = "4L6g3nShT/AaIr3Pt8c/KE9eoG/he5Wg", "4L6g3nShT/T8/mvkx5SbKl2SR3h9sW7w"


def end_of(partition: object, offset: int) -> FakeMessage:
    return FakeMessage(partition, offset, error=failed(_Code._PARTITION_EOF))  # type: ignore[arg-type]


def out_of_range(offset: int) -> FakeMessage:
    return FakeMessage(P0, offset, error=failed(_Code._AUTO_OFFSET_RESET, "Offset out of range"))


class TestTheEndOfAPartition:
    def test_is_reported_only_if_it_is_above_the_last_frame(self, bench: Bench) -> None:
        """Catches a commit at each end that the client reaches: nearly one for each frame of a slow camera."""
        (frame,) = bench.play(FakeMessage(P0, 7), end_of(P0, 8))
        assert bench.source.ends() == []
        bench.play(end_of(P0, 10))
        assert bench.source.ends() == [Receipt(P0, 10, frame.receipt.epoch)]
        bench.play(end_of(P0, 10))
        assert bench.source.ends() == []

    def test_is_not_reported_if_reading_starts_there(self) -> None:
        bench = Bench()
        bench.client.group = {P0: 10}
        bench.assign(P0)
        bench.play(end_of(P0, 10))
        assert bench.source.ends() == []
        bench.play(end_of(P0, 11))
        assert [end.offset for end in bench.source.ends()] == [11]

    def test_of_an_empty_partition_is_not_reported(self, bench: Bench) -> None:
        bench.play(end_of(P0, 0))
        assert bench.source.ends() == []

    def test_of_an_unassigned_partition_is_ignored(self, bench: Bench) -> None:
        bench.play(bench.client.rebalance("revoke", P1), end_of(P1, 10))
        assert bench.source.ends() == []

    def test_reduces_the_lag_to_zero(self, bench: Bench) -> None:
        """Catches a lag that never returns to zero after a transaction."""
        bench.client.watermarks = (0, 9)
        bench.play(FakeMessage(P0, 7), end_of(P0, 9))
        assert {lag.partition: lag.records for lag in bench.source.lag()}[P0] == 0


class TestACommit:
    def test_names_the_topic_and_the_leader_epoch_of_the_last_record(self) -> None:
        bench = Bench()
        bench.topic_ids.ids = {P0.topic: OLD}
        bench.assign(P0)
        bench.play(
            FakeMessage(P0, 7, leader_epoch=3), FakeMessage(P0, 8, leader_epoch=3), FakeMessage(P0, 9, leader_epoch=5)
        )
        commits = [bench.source.commit_positions([Committable(P0, offset)])[0] for offset in (8, 9, 10)]
        assert [(item.offset, item.leader_epoch) for item in commits] == [(8, 3), (9, 3), (10, 5)]
        assert {item.metadata for item in commits} == {f"topic-id:{OLD}"}

    def test_without_a_topic_id_has_no_metadata(self, bench: Bench) -> None:
        """Brokers before 2.8 have no topic IDs."""
        bench.play(FakeMessage(P0, 7))
        (item,) = bench.source.commit_positions([Committable(P0, 8)])
        assert (item.offset, item.metadata, item.leader_epoch) == (8, "", None)

    def test_keeps_the_committed_leader_epoch_until_a_record_has_another(self) -> None:
        position = Position(1, start=40, leader_epochs=[(39, 2)])
        assert position.commit_of(P0, 40).leader_epoch == 2
        position.read(41, None, 6)
        assert [position.commit_of(P0, offset).leader_epoch for offset in (41, 42)] == [2, 6]

    def test_at_an_end_after_markers_has_no_leader_epoch(self) -> None:
        """The marker is from a newer leader. Catches using the epoch of the last frame: the log would seem cut."""
        position = Position(1, start=7)
        position.read(9, None, 2)
        assert position.reached(11)
        position.read(11, None, 3)
        assert position.reached(14)
        commits = [position.commit_of(P0, offset) for offset in (10, 11, 12, 14)]
        assert [(item.offset, item.leader_epoch) for item in commits] == [(10, 2), (11, None), (12, 3), (14, None)]

    def test_at_an_end_without_any_frame_has_no_leader_epoch(self) -> None:
        position = Position(1, start=40, leader_epochs=[(39, 2)])
        assert position.reached(43)
        assert [position.commit_of(P0, offset).leader_epoch for offset in (40, 43)] == [2, None]


class TestATopicThatWasCreatedAgain:
    def test_is_read_from_its_beginning_by_the_next_assignment(self) -> None:
        """Catches using an old offset for the new topic: the frames below it would be lost."""
        bench = Bench()
        bench.client.group, bench.client.group_metadata = {P0: 300, P1: 40}, {P0: f"topic-id:{OLD}"}
        bench.topic_ids.ids = {P0.topic: NEW}
        bench.assign(P0, P1)
        (assigned,) = bench.client.called("incremental_assign")
        assert assigned == [(P0, confluent_kafka.OFFSET_BEGINNING), (P1, 40)]
        assert bench.topic_ids.expected == {P0.topic: NEW}

    def test_is_looked_up_once_for_all_of_its_partitions(self) -> None:
        """Each lookup takes more than a second. Catches an assignment of 50 partitions that takes a minute."""
        bench = Bench()
        partitions = [TopicPartition(P0.topic, number) for number in range(50)]
        bench.client.group = dict.fromkeys(partitions, 300)
        bench.client.group_metadata = dict.fromkeys(partitions, f"topic-id:{OLD}")
        bench.topic_ids.ids = {P0.topic: NEW}
        bench.assign(*partitions)
        assert bench.topic_ids.settled == [P0.topic]

    def test_is_read_from_its_beginning_after_a_rewind_too(self) -> None:
        """The group still has the old offset. Catches a rewind to it: the frames below it would be lost."""
        bench = Bench()
        bench.client.group, bench.client.group_metadata = {P0: 300}, {P0: f"topic-id:{OLD}"}
        bench.topic_ids.ids = {P0.topic: NEW}
        bench.assign(P0)
        bench.play(*messages(5))
        assert bench.source.rewind()
        assert bench.client.called("seek") == [[(P0, 0)]]

    def test_keeps_its_offset_on_a_mirror_of_another_cluster(self) -> None:
        """MirrorMaker copies commits with their metadata. Catches a failover that reads the whole topic again."""
        bench = Bench()
        bench.client.group, bench.client.group_metadata = {P0: 300}, {P0: "topic-id:another-cluster/AaIr3Pt8c"}
        bench.topic_ids.ids = {P0.topic: NEW}
        bench.assign(P0)
        assert bench.client.called("incremental_assign") == [[(P0, 300)]]

    def test_is_not_detected_if_a_mirror_of_another_cluster_appears(self) -> None:
        """The commits name the other cluster. Catches a process that ends because a topic "was created again"."""
        bench = Bench()
        bench.client.group, bench.client.group_metadata = {P0: 300}, {P0: "topic-id:another-cluster/AaIr3Pt8c"}
        bench.assign(P0)  # while the topic does not exist
        bench.topic_ids.ids = {P0.topic: NEW}
        bench.assign(P1)
        assert bench.client.called("incremental_assign") == [[(P0, 300)], [(P1, confluent_kafka.OFFSET_BEGINNING)]]

    def test_keeps_its_offset_if_the_ids_agree(self) -> None:
        bench = Bench()
        bench.client.group, bench.client.group_metadata = {P0: 300}, {P0: f"topic-id:{NEW}"}
        bench.topic_ids.ids = {P0.topic: NEW}
        bench.assign(P0)
        assert bench.client.called("incremental_assign") == [[(P0, 300)]]

    def test_is_detected_later_if_it_did_not_exist_at_the_assignment(self) -> None:
        bench = Bench()
        bench.client.group, bench.client.group_metadata = {P0: 300}, {P0: f"topic-id:{OLD}"}
        bench.assign(P0)
        assert bench.client.called("incremental_assign") == [[(P0, 300)]]
        assert bench.topic_ids.expected == {P0.topic: OLD}

    def test_ends_the_process_without_a_commit(self, bench: Bench) -> None:
        """The frames of the last poll may be from the new topic. Catches a commit of the old offset on close."""
        bench.play(*messages(3))
        bench.source.store([Committable(P0, 3)])
        bench.topic_ids.replaced = Replaced(P0.topic, OLD, NEW)
        with pytest.raises(TopicReplacedError, match="deleted and created again") as caught:
            bench.play(*messages(2, first=3))
        assert caught.value.retriable
        nothing = confluent_kafka.OFFSET_INVALID
        assert bench.client.called("store")[-2:] == [
            [(P0, nothing)],
            [(P1, nothing)],
        ]  # both partitions belong to the topic
        bench.source.store([Committable(P0, 3)])
        bench.source.commit([Committable(P0, 3)])
        assert bench.client.called("store")[-1] == [(P1, nothing)]
        assert bench.client.called("commit") == []

    def test_ends_the_process_if_a_rebalance_assigns_the_new_topic(self) -> None:
        bench = Bench()
        bench.topic_ids.ids = {P0.topic: OLD}
        bench.assign(P0)
        bench.topic_ids.ids = {P0.topic: NEW}
        with pytest.raises(TopicReplacedError):
            bench.play(bench.client.rebalance("assign", P1))

    def test_is_looked_up_again_if_the_brokers_do_not_answer(self) -> None:
        bench = Bench()
        bench.topic_ids.ids, bench.topic_ids.failures = {P0.topic: OLD}, 2
        bench.assign(P0)
        assert bench.topic_ids.expected == {P0.topic: OLD}

    def test_is_an_error_if_the_brokers_do_not_return_an_id_in_time(self) -> None:
        """Catches a start at a committed offset without a comparison of the topic IDs."""
        bench = Bench()
        bench.topic_ids.failures = 1000
        with pytest.raises(KafkaError, match="cannot look up the topic IDs of frames"):
            bench.play(bench.client.rebalance("assign", P0))

    def test_is_detected_by_the_watch_unless_it_is_a_mirror(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a watch that compares IDs of two clusters, and one that detects nothing."""
        answers: list[int] = []

        def look_up(_ids: TopicIds, topics: Collection[str]) -> dict[str, str]:
            answers.append(len(topics))
            return dict.fromkeys(topics, NEW)

        monkeypatch.setattr(TopicIds, "look_up", look_up)
        ids = TopicIds(Config(kafka={"bootstrap_servers": "127.0.0.1:1"}))
        try:
            ids.watch({"mirrored": "another-cluster/AaIr3Pt8c"})
            wait_until(lambda: len(answers) > 1, 10, "two answers")
            assert ids.replaced is None
            ids.watch({"frames": OLD})
            assert wait_until(lambda: ids.replaced, 10, "the watch") == Replaced("frames", OLD, NEW)
        finally:
            ids.close()


class TestAnOffsetThatIsNotInTheLog:
    @pytest.mark.parametrize(
        ("offset", "log", "text"),
        [
            (10, (11, 11), r"records 10 to 10 of frames\[0\] were deleted"),
            (300, (0, 200), r"offset 300 of frames\[0\] is beyond the end of the log, 200"),
            (50, (0, 200), r"the log of frames\[0\] was cut below offset 50 and written again: Offset out of range"),
        ],
    )
    def test_needs_a_person_and_the_message_states_the_cause(
        self, bench: Bench, offset: int, log: tuple[int, int], text: str
    ) -> None:
        """Catches the message "frames were deleted before they were read" for every cause."""
        bench.client.watermarks = log
        bench.play(FakeMessage(P0, 7))
        bench.source.store([Committable(P0, 8)])
        with pytest.raises(OffsetsLostError, match=text) as caught:
            bench.play(out_of_range(offset))
        assert not caught.value.retriable
        assert bench.client.called("store")[-1] == [(P1, confluent_kafka.OFFSET_INVALID)]

    def test_of_a_partition_that_was_revoked_meanwhile_is_ignored(self, bench: Bench) -> None:
        """The client drops outdated frames, but not this error. Catches an exit for a partition of another consumer."""
        frames = bench.play(bench.client.rebalance("revoke", P0), out_of_range(10), FakeMessage(P1, 7))
        assert [frame.receipt.partition for frame in frames] == [P1]

    def test_is_unknown_if_the_leader_epochs_show_that_the_log_was_cut(self, bench: Bench) -> None:
        """In this case librdkafka gives no offset. Catches a TypeError, which would end the process."""
        found = "Partition log truncation detected at offset 50 (leader epoch 1)"
        with pytest.raises(OffsetsLostError, match=rf"the log of frames\[0\] was cut: {re.escape(found)}"):
            bench.play(FakeMessage(P0, None, error=failed(_Code._AUTO_OFFSET_RESET, found)))

    def test_of_a_topic_that_was_created_again_needs_only_a_restart(self) -> None:
        bench = Bench()
        bench.topic_ids.ids = {P0.topic: OLD}
        bench.assign(P0)
        bench.topic_ids.ids = {P0.topic: NEW}
        with pytest.raises(TopicReplacedError):
            bench.play(out_of_range(300))
