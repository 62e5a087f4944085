"""Tests each guarantee of the loop separately, in virtual time. `test_pipeline_schedules.py` combines them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from consumer.concurrency import Stop
from consumer.delivery.base import Judge
from consumer.errors import DrainError, PublishError
from consumer.inference.batcher import WAITING_BATCHES
from consumer.kafka.dead_letter_queue import LetterLine
from consumer.observability.health import State
from consumer.pipeline import GATHER_S, PATIENCE_S
from consumer.types import BatchResult, Finished, Frame
from made_frames import P0, P1
from pipeline_runs import NEVER, published, run, until, world
from pipeline_world import BAD, World


class TestCommit:
    def test_comes_after_the_acknowledgement(self) -> None:
        """Catches storing an offset as soon as its outcome was passed to the producer."""
        made = world(4)
        made.delay_s = lambda: NEVER
        made.steps(20)
        assert len(made.publisher.published) == 4
        assert made.source.stored == {}

    def test_reaches_the_end_once_all_is_acknowledged(self) -> None:
        made = world(100)
        until(made, lambda: made.source.stored.get(P0) == 100)
        made.check()
        assert made.pipeline._held_bytes == 0

    def test_waits_for_a_slow_source_in_the_same_partition(self) -> None:
        """Catches a commit that follows the fastest camera: acknowledgements of two cameras overtake each other."""
        made = world(8)
        made.delay_s = lambda: NEVER if made.publisher.published[-1][0].source_id == "cam-0" else 0.001
        made.steps(20)
        assert made.publisher.outstanding == 4
        assert made.source.stored == {}

    def test_a_failed_write_ends_the_run_without_a_commit(self) -> None:
        """Catches skipping over an outcome that was not written."""
        made = world(4)
        made.publisher.fail = True
        with pytest.raises(PublishError):
            run(made, 50)
        assert made.log.committed == {}
        assert made.source.closed
        assert made.health.state is State.FAILED


class TestRebalance:
    @pytest.mark.parametrize("at", [0, 1, 3, 7])
    def test_in_a_burst_drops_only_the_frames_of_the_revoked_partition(self, at: int) -> None:
        """Catches admitting frames that a poll returned although the same poll ended their epoch."""
        made = world(8)
        for _ in range(8):
            made.log.append(P1, "cam-9", b"good")
        made.steps()  # assigned
        before = len(published(made))

        def away() -> None:
            made.source.revoke([P0])

        made.source.rebalances.append((at, away))
        made.steps(50)
        assert [offset for partition, offset in published(made)[before:] if partition == P1][-1] == 7
        assert made.source.stored[P1] == 8

    def test_revoked_and_assigned_in_one_poll_reads_uncommitted_frames_again(self) -> None:
        """Catches treating a frame of the first epoch as one of the second."""
        made = world(3)
        made.source.rebalances.append((2, lambda: made.source.revoke([P0])))
        made.source.rebalances.append((2, lambda: made.source.assign([P0])))
        until(made, lambda: made.source.stored.get(P0) == 3)
        assert published(made) == [(P0, 0), (P0, 1), (P0, 2)]

    def test_revocation_finishes_publishes_and_commits_submitted_frames(self) -> None:
        """Catches repeating whole batches each time the deployment is scaled."""
        made = world(4)
        made.service_s = made.delay_s = lambda: 2.0
        made.steps(2)
        assert made.publisher.published == []
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        made.steps()
        assert made.log.committed == {P0: 4}

    def test_revocation_leaves_waiting_frames_to_the_new_owner(self) -> None:
        """Catches spending the deadline of the rebalance on frames that were not started."""
        made = world(20)
        made.service_s = lambda: 1.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        made.steps()
        assert made.log.committed == {P0: 8}
        assert made.worker.in_flight == 0
        made.check()

    def test_revocation_ends_by_its_deadline_and_later_outcomes_are_dropped(self) -> None:
        """Catches a group that waits for one hung member, and a publish for a partition of another consumer."""
        made = world(4, limits={"drain_timeout_s": 6})
        made.service_s = lambda: 30.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        made.steps()
        assert made.source.longest_rebalance_s == pytest.approx(3, abs=0.1)
        assert made.log.committed == {}
        made.clock.advance(30)
        made.steps(3)
        assert made.publisher.published == []
        assert made.metrics.registry.get_sample_value("sluice_stale_outcomes_total") == 4
        assert made.pipeline._held_bytes == 0

    def test_loss_publishes_nothing_and_commits_nothing(self) -> None:
        """Catches treating a loss as a revocation: the new owner has already started."""
        made = world(20)
        made.service_s = lambda: 1.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.lose([P0])))
        before = made.clock.now
        made.steps()
        assert made.clock.now - before < 0.1
        assert made.worker.in_flight == 8, "frames that only waited go no further"
        for _ in range(3):
            made.clock.advance(5)
            made.steps(5)
        assert (made.publisher.published, made.log.committed) == ([], {})
        assert made.pipeline._held_bytes == 0

    def test_an_error_during_a_revocation_ends_the_run(self) -> None:
        """Catches publishing for this partition in a second rebalance of the same poll."""
        made = world(8)
        made.log.append(P1, "cam-9", b"good")
        made.service_s = lambda: 1.0
        made.steps(2)
        made.publisher.fail = True
        made.source.rebalances += [
            (0, lambda: made.source.revoke([P0])),
            (0, lambda: made.source.revoke([P1])),
        ]
        with pytest.raises(PublishError):
            made.steps()
        assert made.pipeline._offsets.partitions == []
        assert made.log.committed == {}


class TestBackpressure:
    @pytest.mark.parametrize("limits", [{"max_unacknowledged": 10}, {"max_in_flight_bytes": 2**20}])
    def test_pauses_after_a_delay_keeps_polling_and_resumes(self, limits: dict[str, int]) -> None:
        """Catches unbounded reading, a pause at every short delay, and a member that is removed while it waits."""
        made = world(40, payload=bytes(100_000), limits=limits)
        made.delay_s = lambda: 30.0
        until(made, lambda: made.pipeline._full_since is not None)
        full_since = made.clock.now
        assert not made.source.paused
        until(made, lambda: made.source.paused)
        assert PATIENCE_S < made.clock.now - full_since < PATIENCE_S + 0.2
        seen: list[float] = []
        made.source.rebalances.append((0, lambda: seen.append(made.clock.now)))
        made.steps(2)
        assert seen, "paused, it no longer polls"
        made.delay_s = lambda: 0.001
        until(made, lambda: made.source.stored.get(P0) == 40, turns=5000)
        assert not made.source.paused
        made.check()

    def test_holds_no_more_than_the_limit_and_one_burst(self) -> None:
        made = world(200, limits={"max_unacknowledged": 10})
        made.delay_s = lambda: NEVER
        made.steps(500)
        assert made.publisher.outstanding <= 10 + (WAITING_BATCHES + 2) * made.worker.size

    def test_a_static_batch_closes_early_if_the_byte_limit_is_reached(self) -> None:
        """Catches a deadlock of two limits: there is no room for the frames that would fill the batch."""
        static = {"policy": "static", "max_batch_size": 16}
        made = world(batching=static, limits={"max_in_flight_bytes": 2**20})
        for _ in range(20):
            made.log.append(P0, "cam-1", bytes(300_000))
            made.steps()
        until(made, lambda: made.source.stored.get(P0, 0) >= 18)

    def test_a_frame_that_arrives_without_room_is_accepted(self) -> None:
        """Catches dropping this frame, so that the commit skips it, and treating a negative room as room."""
        made = world(40, limits={"max_unacknowledged": 1})
        made.service_s = lambda: 0.7
        poll = made.source.poll

        def leaky(room: int, timeout_s: float, max_bytes: float = math.inf) -> list[Frame]:
            assert room >= 0
            if room:
                return poll(room, timeout_s, max_bytes)
            made.source.paused = False
            frames = poll(1, timeout_s, max_bytes)
            made.source.paused = True
            return frames

        made.source.poll = leaky  # type: ignore[method-assign]
        until(made, lambda: made.source.stored.get(P0) == 40, turns=50_000)
        assert [offset for _, offset in sorted(published(made))] == list(range(40))


class TestWriting:
    def test_with_a_backlog_several_batches_are_published_together(self) -> None:
        """Catches sending one request for every few frames while thousands wait."""
        made = world(400)
        made.service_s = lambda: 0.01
        writes: list[int] = []
        publish = made.publisher.publish

        def counted(finished: Sequence[Finished], judge: Judge) -> None:
            writes.append(len(finished))
            publish(finished, judge)

        made.publisher.publish = counted  # type: ignore[method-assign]
        until(made, lambda: made.source.stored.get(P0) == 400)
        assert writes.count(WAITING_BATCHES * made.worker.size) > len(writes) / 2, writes

    def test_waits_for_more_batches_only_if_there_is_no_room(self) -> None:
        """Catches additional latency if there are few frames."""
        made = world(400)
        made.service_s = lambda: 0.01
        asked: list[tuple[bool, float]] = []
        results = made.worker.results

        def counted(timeout_s: float = 0.0, gather_s: float = 0.0) -> list[BatchResult]:
            asked.append((made.worker.room > 0, gather_s))
            return results(timeout_s, gather_s)

        made.worker.results = counted  # type: ignore[method-assign]
        until(made, lambda: made.source.stored.get(P0) == 400)
        assert {gather_s for room, gather_s in asked if not room} == {0.0, GATHER_S}
        assert {gather_s for room, gather_s in asked if room} == {0.0}

    @pytest.mark.parametrize("limit", [5, 6, 7])
    def test_a_limit_of_a_few_batches_keeps_the_detector_busy(self, limit: int) -> None:
        """Catches waiting for all frames within the limit, while the detector could process the next batch."""
        made = world(400, payload=bytes(100_000), limits={"max_in_flight_bytes": limit * 2**18})
        made.service_s, made.delay_s = (lambda: 0.01), (lambda: 0.02)
        began = made.clock.now
        until(made, lambda: made.source.stored.get(P0) == 400, turns=20_000)
        assert made.clock.now - began < 400 / made.worker.size * 0.01 * 1.3

    @pytest.mark.parametrize("limits", [{"max_unacknowledged": 16}, {"max_in_flight_bytes": 2**20}])
    def test_does_not_wait_for_a_batch_that_a_limit_prevents(self, limits: dict[str, int]) -> None:
        """Catches a quarter of the throughput, because each batch waits for frames that do not fit the limit."""
        made = world(160, payload=bytes(100_000), limits=limits)
        made.service_s, made.delay_s = (lambda: 0.005), (lambda: 0.0)
        began = made.clock.now
        until(made, lambda: made.source.stored.get(P0) == 160, turns=5000)
        assert made.clock.now - began < 160 / made.worker.size * 0.005 * 2


class TestQueuedDeadLetters:
    """Dead letters after the first wait for its delivery report. Results continue."""

    @staticmethod
    def world(records: int = 8) -> World:
        made = world(dead_letter={"max_consecutive": 0})
        made.publisher.line = LetterLine(0)
        made.delay_s = lambda: NEVER
        for n in range(records):
            made.log.append(P0, f"cam-{n % 2}", BAD if n % 2 else b"good")
        made.steps(30)
        return made

    def test_do_not_block_results_and_count_as_outstanding(self) -> None:
        made = self.world()
        assert [offset for _, offset in published(made)] == [0, 1, 2, 4, 6]
        assert made.pipeline._delivery.outstanding == 8

    def test_of_a_lost_partition_are_dropped_and_their_bytes_released(self) -> None:
        """Catches a dead letter of an ended epoch, and bytes that are never released."""
        made = self.world()
        made.source.rebalances.append((0, lambda: made.source.lose([P0])))
        made.steps()
        assert made.pipeline._delivery.outstanding == 5
        for line in made.publisher.lanes.values():
            line[:] = [(0.0, done) for _, done in line]
        made.steps(5)
        assert made.pipeline._held_bytes == 0
        assert len(made.publisher.published) == 5

    @pytest.mark.parametrize("end", ["revocation", "shutdown"])
    def test_are_written_before_their_partition_is_revoked(self, end: str) -> None:
        """Catches frames that the next owner repeats because their dead letters were not sent yet."""
        made = self.world()
        made.delay_s = lambda: 0.01
        for line in made.publisher.lanes.values():
            line[:] = [(0.0, done) for _, done in line]
        if end == "revocation":
            made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
            made.steps()
        else:
            run(made, 0)
        assert made.log.committed[P0] == 8


class TestShutdown:
    def test_finishes_submitted_frames_commits_and_closes(self) -> None:
        made = world(4)
        made.service_s = made.delay_s = lambda: 2.0
        run(made, 2)
        assert made.log.committed == {P0: 4}
        assert made.source.closed
        assert made.health.state is State.DRAINING

    def test_does_not_wait_for_a_batch_to_fill(self) -> None:
        """Catches a static policy that holds its last frames back for the whole deadline, also in a rebalance."""
        made = world(3, batching={"policy": "static", "max_batch_size": 16})
        made.log.append(P1, "cam-9", b"good")
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.revoke([P1])))
        made.steps()
        assert made.log.committed == {P1: 1}
        for _ in range(3):
            made.log.append(P0, "cam-0", b"good")
        run(made, 2)
        assert made.log.committed == {P0: 6, P1: 1}
        assert made.clock.now - 1000 < 5

    def test_leaves_waiting_frames_uncommitted(self) -> None:
        """Catches a commit of the position instead of the watermark."""
        made = world(30)
        made.service_s = lambda: 1.0
        run(made, 2)
        assert made.log.committed == {P0: 8}

    def test_ends_by_its_deadline_and_reports_unfinished_frames(self) -> None:
        """Catches a pod that is killed during its drain, and one that exits with 0 although work is unfinished."""
        made = world(8, limits={"drain_timeout_s": 6})
        services = iter([0.5])
        made.service_s = lambda: next(services, NEVER)
        at: list[float] = []
        with pytest.raises(DrainError, match=r"4 frames .*6 s"):
            run(made, 2, lambda: at.append(made.clock.now))
        assert made.clock.now - at[0] == pytest.approx(6, abs=0.1)
        assert made.log.committed == {P0: 4}
        assert made.source.closed
        assert made.health.state is State.FAILED

    def test_is_immediate_if_nothing_was_assigned(self) -> None:
        made = world()
        before = made.clock.now
        run(made, 0)
        assert made.clock.now == before
        assert made.source.closed

    def test_starts_within_one_idle_iteration(self) -> None:
        made = world()
        stop = Stop(made.clock)
        made.source.rebalances.append((0, stop.set))
        before = made.clock.now
        made.pipeline.run(stop)
        assert made.clock.now - before <= 0.5
