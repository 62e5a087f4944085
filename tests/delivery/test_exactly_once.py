"""Tests the loop with exactly-once delivery in virtual time, each guarantee separately.

`transaction_world` documents where each guarantee is checked.
"""

from __future__ import annotations

from typing import Any

import pytest

from consumer.concurrency import Stop
from consumer.config import Config
from consumer.delivery.exactly_once import RECOVERY_S
from consumer.delivery.offsets import Committable
from consumer.errors import DrainError, EngineError, KafkaError, RejectRateError
from consumer.kafka.group import LOOKUP_S
from consumer.observability.metrics import Metrics
from consumer.types import BatchResult
from made_frames import P0, P1
from pipeline_group import Log
from pipeline_runs import NEVER, run, until
from pipeline_world import BAD, UNPUBLISHABLE
from transaction_world import FATES, ExactlyOnceWorld, Fate

METRICS = Metrics()


def world(records: int = 0, payload: bytes = b"good", **sections: Any) -> ExactlyOnceWorld:
    """Like `pipeline_runs.world`, for exactly-once delivery."""
    log = Log({P0: [], P1: []})
    made = ExactlyOnceWorld(log, Config(**{"batching": {"max_batch_size": 4}, **sections}))
    for n in range(records):
        log.append(P0, f"cam-{n % 2}", payload)
    made.source.subscribe()
    made.source.rebalances.append((0, lambda: made.source.assign([P0, P1])))
    return made


def count(made: ExactlyOnceWorld, result: str) -> float:
    return made.metrics.registry.get_sample_value("sluice_transactions_total", {"result": result}) or 0.0


class TestATransaction:
    def test_contains_all_ready_outcomes(self) -> None:
        """Catches a transaction for each frame, or for each batch if several batches are ready."""
        made = world(40)
        made.service_s = lambda: 0.0
        made.publisher.takes_s = lambda: 0.5
        until(made, lambda: made.log.committed.get(P0) == 40)
        assert len(made.publisher.transactions) < 20
        assert sum(made.publisher.transactions) == 40

    def test_waits_for_earlier_frames_of_the_partition(self) -> None:
        """With fair scheduling, the one frame of cam-b overtakes eleven of cam-a. Catches repeats after a crash."""
        made = world()
        for n in range(12):
            made.log.append(P0, "cam-b" if n == 11 else "cam-a", b"good")
        until(made, lambda: made.log.committed.get(P0) == 12)
        assert len(made.publisher.transactions) > 1

    def test_without_outcomes_does_not_raise_the_byte_budget(self) -> None:
        """Catches a budget that grows to its limit through transactions without outcomes: the next one is late."""
        made = world(4)
        until(made, lambda: made.log.committed.get(P0) == 4)
        made.delivery._held.more = True  # from an earlier `take`
        before = made.delivery._budget.bytes
        made.log.mark(P0, 3)
        made.delivery.hand_over([Committable(P0, 7)], 5.0)
        assert made.log.committed[P0] == 7
        assert made.delivery._budget.bytes == before

    def test_that_was_rolled_back_is_retried_with_the_same_outcomes(self) -> None:
        """A rebalance begins while the offsets are sent. Catches a second inference for the same frames."""
        made = world(8)
        fates = iter(["rolled back", "rolled back"])
        made.publisher.fate = lambda: next(fates, "commits")
        looked_at: list[int] = []
        results = made.worker.results

        def counted(*waits_s: float) -> list[BatchResult]:
            found = results(*waits_s)
            looked_at.extend(len(item.outcomes) for item in found)
            return found

        made.worker.results = counted  # type: ignore[method-assign]
        until(made, lambda: made.log.committed.get(P0) == 8)
        assert sum(looked_at) == 8
        assert count(made, "failed") == 2

    @pytest.mark.parametrize("fate", FATES[3:])
    def test_that_fails_leads_to_a_restart_from_the_committed_offsets(self, fate: Fate) -> None:
        """Catches a lost frame, a repeat, or a standstill after any kind of failure."""
        made = world(40)
        fates = iter(["commits", fate])
        made.publisher.fate = lambda: next(fates, "commits")
        until(made, lambda: made.log.committed.get(P0) == 40)
        assert count(made, "failed") == 1
        assert count(made, "committed") >= 2
        assert made.pipeline._held_bytes == 0

    @pytest.mark.parametrize("fate", ["rolled back", "aborts"])
    def test_that_fails_repeatedly_ends_the_process(self, fate: Fate) -> None:
        """Catches an endless loop over an error that no retry resolves."""
        made = world(8)
        made.publisher.fate = lambda: fate
        made.publisher.takes_s = lambda: 5.0
        with pytest.raises(KafkaError, match=r"no transaction succeeded for 120 s"):
            made.steps(1000)
        assert made.clock.now - 1000 < RECOVERY_S + 30
        assert made.log.committed == {}

    def test_that_failed_ends_the_process_if_recovery_never_succeeds(self) -> None:
        """The producer is renewed each time, but the committed offsets cannot be read: the coordinator is unavailable.

        Catches a recovery that counts only failed renewals: it never ends, and the pod is never ready.
        """
        made = world(8)
        fates = iter(["aborts"])
        made.publisher.fate = lambda: next(fates, "commits")

        def no_answer() -> bool:
            made.clock.advance(2 * LOOKUP_S)
            return True

        made.source.rewind_fails = no_answer
        began, turns_of_a_day = made.clock.now, 24 * 3600 // int(2 * LOOKUP_S)
        with pytest.raises(KafkaError, match=r"no transaction succeeded for 120 s.*committed offsets"):
            made.steps(turns_of_a_day)
        assert RECOVERY_S < made.clock.now - began < RECOVERY_S + 30
        assert made.log.committed == {}

    def test_that_failed_gives_recovery_enough_time(self) -> None:
        """Catches a recovery that ends the process after the first lookup without an answer."""
        made = world(8)
        fates = iter(["aborts"])
        made.publisher.fate = lambda: next(fates, "commits")
        closed_until = made.clock.now + RECOVERY_S - 20

        def no_answer() -> bool:
            made.clock.advance(2 * LOOKUP_S)
            return made.clock.now < closed_until

        made.source.rewind_fails = no_answer
        until(made, lambda: made.log.committed.get(P0) == 8)

    def test_that_fails_long_after_another_does_not_end_the_process(self) -> None:
        """The answer to a commit was lost, and an idle night followed. Catches counting both failures as one series."""
        made = world(4)
        fates = iter(["answer lost", "rolled back"])
        made.publisher.fate = lambda: next(fates, "commits")
        until(made, lambda: made.log.committed.get(P0) == 4 and not made.delivery.broken)
        made.clock.advance(2 * RECOVERY_S)
        made.log.append(P0, "cam-1", b"good")
        until(made, lambda: made.log.committed.get(P0) == 5)
        assert count(made, "failed") == 2

    def test_keeps_the_membership_while_brokers_are_unavailable(self) -> None:
        """Catches a recovery that does not poll, and frames that are accepted meanwhile."""
        made = world(8)
        fates = iter(["aborts"])
        made.publisher.fate = lambda: next(fates, "commits")
        failing = [True]
        made.publisher.renewal_fails = lambda: failing[0]
        until(made, lambda: made.delivery.broken)
        polled: list[bool] = []
        made.source.rebalances.append((0, lambda: polled.append(made.source.paused)))
        made.steps(3)
        assert polled == [True]
        assert made.worker.in_flight == 0
        failing[0] = False
        until(made, lambda: made.log.committed.get(P0) == 8)

    def test_counts_as_paused_while_nothing_is_read(self) -> None:
        """Catches a pod that reads nothing for minutes while no dashboard and no alert shows it."""
        made = world(8)

        def paused() -> float | None:
            return made.metrics.registry.get_sample_value("sluice_paused")

        fates = iter(["aborts"])
        made.publisher.fate = lambda: next(fates, "commits")
        failing = [True]
        made.publisher.renewal_fails = lambda: failing[0]
        until(made, lambda: made.delivery.broken)
        assert paused() == 0
        made.steps(3)
        assert paused() == 1
        failing[0] = False
        until(made, lambda: made.log.committed.get(P0) == 8)
        assert paused() == 0

    def test_does_not_begin_without_a_membership(self) -> None:
        """Catches a commit that the brokers do not check: they check only the group metadata that is sent."""
        made = world(8)
        made.source.member = False
        made.steps(20)
        assert made.log.acknowledged == set()
        made.source.member = True
        until(made, lambda: made.log.committed.get(P0) == 8)


class TestRebalance:
    def test_revocation_commits_submitted_frames(self) -> None:
        """Catches dropping finished frames without a transaction."""
        made = world(4)
        made.service_s = lambda: 2.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        made.steps()
        assert made.log.committed == {P0: 4}

    def test_revocation_ends_by_its_deadline_although_a_transaction_hangs(self) -> None:
        made = world(4, limits={"drain_timeout_s": 6})
        made.publisher.takes_s = lambda: 60.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        made.steps()
        assert made.source.longest_rebalance_s <= 3.1

    def test_a_failed_transaction_in_a_revocation_rewinds_all_partitions(self) -> None:
        """Catches continuing with frames of a transaction that may or may not have been committed."""
        made = world(8)
        for _ in range(8):
            made.log.append(P1, "cam-9", b"good")
        made.service_s = lambda: 0.5
        made.steps(2)
        fates = iter(["answer lost"])
        made.publisher.fate = lambda: next(fates, "commits")
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        until(made, lambda: made.log.committed.get(P1) == 8)
        made.source.rebalances.append((0, lambda: made.source.assign([P0])))
        until(made, lambda: made.log.committed.get(P0) == 8)

    def test_loss_commits_nothing(self) -> None:
        made = world(20)
        made.service_s = lambda: 1.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.lose([P0])))
        for _ in range(3):
            made.steps(5)
            made.clock.advance(5)
        assert made.log.acknowledged == set()
        assert made.pipeline._held_bytes == 0


class TestShutdown:
    def test_finishes_submitted_frames_in_a_transaction(self) -> None:
        made = world(4)
        made.service_s = lambda: 2.0
        run(made, 2)
        assert made.log.committed == {P0: 4}
        assert made.source.closed

    def test_counts_the_iteration_in_which_the_stop_was_set(self) -> None:
        """An iteration that waits for brokers can take as long as a transaction. Catches a drain timeout after it."""
        made = world(4, limits={"drain_timeout_s": 12})
        stop = Stop(made.clock)
        made.publisher.takes_s = lambda: stop.set() or 60.0  # type: ignore[func-returns-value]
        made.publisher.fate = lambda: "rolled back"
        with pytest.raises(DrainError, match="within limits"):
            made.pipeline.run(stop)
        assert 10 <= made.clock.now - stop.at <= 12.1

    @pytest.mark.parametrize("service_s", [0.0, NEVER])
    def test_does_not_wait_if_the_membership_was_lost(self, service_s: float) -> None:
        """A process without a membership cannot rejoin in a drain, which does not poll. Catches a useless wait."""
        made = world(8)
        made.service_s = lambda: service_s
        made.source.member = False
        stop = Stop(made.clock)
        made.source.rebalances.append((9, stop.set))
        with pytest.raises(DrainError, match="no member of its group"):
            made.pipeline.run(stop)
        assert made.clock.now - stop.at < 0.2
        assert made.log.committed == {}

    def test_does_not_wait_if_the_brokers_removed_the_member(self) -> None:
        """With KIP-848 the client does not know before its next poll. Only the error of a transaction shows it."""
        made = world(4)
        made.publisher.fate = lambda: "expelled"
        with pytest.raises(DrainError, match="no member of its group"):
            run(made, 1)
        assert made.clock.now - 1000 < 1

    def test_waits_if_a_lost_membership_was_restored(self) -> None:
        """A poll has restored the membership. Catches giving up because of the state in an earlier iteration."""
        made = world(4)
        fates = iter(["expelled"])
        made.publisher.fate = lambda: next(fates, "commits")
        made.steps(2)
        assert count(made, "failed") == 1
        for _ in range(4):
            made.log.append(P0, "cam-1", b"good")
        made.service_s = lambda: 2.0
        run(made, 1)
        assert made.log.committed == {P0: 8}

    def test_reports_unfinished_frames_after_a_failed_transaction(self) -> None:
        """Catches an exit with 0 although work is unfinished, and an error about a deadline that has not passed."""
        made = world(4)
        made.service_s = lambda: 2.0
        made.publisher.fate = lambda: "aborts"
        with pytest.raises(DrainError, match="4 frames were not done because a transaction failed"):
            run(made, 2)


class TestTheBreaker:
    LIMIT = {"max_consecutive": 5}

    @pytest.mark.parametrize("payload", [BAD, UNPUBLISHABLE])
    def test_counts_written_rejections(self, payload: bytes) -> None:
        """Catches a breaker that misses results which cannot be written: they are detected late here."""
        made = world(20, payload=payload, dead_letter=self.LIMIT)
        with pytest.raises(RejectRateError):
            made.steps(100)

    def test_does_not_count_a_repeated_rejection_twice(self) -> None:
        """Catches counting the rejections of failed transactions repeatedly until the process stops."""
        made = world(4, payload=BAD, dead_letter=self.LIMIT)
        fates = iter(["aborts", "aborts", "aborts"])
        made.publisher.fate = lambda: next(fates, "commits")
        until(made, lambda: made.log.committed.get(P0) == 4)


class TestBackpressure:
    def test_held_outcomes_count_against_the_limit(self) -> None:
        """Catches unbounded reading while one frame blocks all others."""
        made = world(200, limits={"max_unacknowledged": 10})
        made.publisher.takes_s = lambda: 0.2
        until(made, lambda: made.log.committed.get(P0) == 200, turns=20_000)

    def test_a_hung_detector_ends_the_run(self) -> None:
        made = world(4, limits={"stall_timeout_s": 47})
        made.service_s = lambda: NEVER
        with pytest.raises(EngineError):
            made.steps(1_000_000)
