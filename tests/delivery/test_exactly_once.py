"""The loop with exactly-once delivery, in virtual time: one promise at a time, then any schedule.

`transaction_world` says where each promise is checked.
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
    """As `pipeline_runs.world`."""
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
    def test_holds_all_that_is_ready(self) -> None:
        """Catches a transaction for each frame, or for each batch when several are there."""
        made = world(40)
        made.service_s = lambda: 0.0
        made.publisher.takes_s = lambda: 0.5
        until(made, lambda: made.log.committed.get(P0) == 40)
        assert len(made.publisher.transactions) < 20
        assert sum(made.publisher.transactions) == 40

    def test_waits_for_the_frames_before_it(self) -> None:
        """Fair turns: the one frame of cam-b overtakes eleven of cam-a. Catches what a crash would repeat."""
        made = world()
        for n in range(12):
            made.log.append(P0, "cam-b" if n == 11 else "cam-a", b"good")
        until(made, lambda: made.log.committed.get(P0) == 12)
        assert len(made.publisher.transactions) > 1

    def test_of_offsets_alone_does_not_raise_the_budget_of_bytes(self) -> None:
        """Catches a budget that grows to its limit by transactions that wrote nothing: the next one is late."""
        made = world(4)
        until(made, lambda: made.log.committed.get(P0) == 4)
        made.delivery._held.more = True  # of an earlier `take`
        before = made.delivery._budget.bytes
        made.log.mark(P0, 3)
        made.delivery.hand_over([Committable(P0, 7)], 5.0)
        assert made.log.committed[P0] == 7
        assert made.delivery._budget.bytes == before

    def test_that_was_rolled_back_is_tried_again_with_what_was_held(self) -> None:
        """A rebalance begins while the offsets are sent. Catches a second run of the engine for the same frames."""
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
    def test_that_fails_is_followed_by_a_new_beginning_at_what_is_committed(self, fate: Fate) -> None:
        """Catches a loss, a repeat, or a standstill, whatever the failure left behind."""
        made = world(40)
        fates = iter(["commits", fate])
        made.publisher.fate = lambda: next(fates, "commits")
        until(made, lambda: made.log.committed.get(P0) == 40)
        assert count(made, "failed") == 1
        assert count(made, "committed") >= 2
        assert made.pipeline._held_bytes == 0

    @pytest.mark.parametrize("fate", ["rolled back", "aborts"])
    def test_that_fails_again_and_again_ends_the_process(self, fate: Fate) -> None:
        """Catches an endless loop over something that no repetition mends."""
        made = world(8)
        made.publisher.fate = lambda: fate
        made.publisher.takes_s = lambda: 5.0
        with pytest.raises(KafkaError, match=r"no transaction succeeded for 120 s"):
            made.steps(1000)
        assert made.clock.now - 1000 < RECOVERY_S + 30
        assert made.log.committed == {}

    def test_that_failed_ends_the_process_if_the_way_back_stays_closed(self) -> None:
        """The producer is renewed each time, and the committed offsets cannot be read: the coordinator is away.

        Catches a recovery that counts only renewals that fail: it never ends, and the pod is never ready.
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

    def test_that_failed_gives_the_way_back_its_time(self) -> None:
        """Catches a recovery that ends the process at the first look-up without an answer."""
        made = world(8)
        fates = iter(["aborts"])
        made.publisher.fate = lambda: next(fates, "commits")
        closed_until = made.clock.now + RECOVERY_S - 20

        def no_answer() -> bool:
            made.clock.advance(2 * LOOKUP_S)
            return made.clock.now < closed_until

        made.source.rewind_fails = no_answer
        until(made, lambda: made.log.committed.get(P0) == 8)

    def test_that_fails_is_no_reason_to_end_the_process_for_one_that_failed_long_before(self) -> None:
        """Its answer was lost, though it had committed, and a quiet night followed. Catches adding the two up."""
        made = world(4)
        fates = iter(["answer lost", "rolled back"])
        made.publisher.fate = lambda: next(fates, "commits")
        until(made, lambda: made.log.committed.get(P0) == 4 and not made.delivery.broken)
        made.clock.advance(2 * RECOVERY_S)
        made.log.append(P0, "cam-1", b"good")
        until(made, lambda: made.log.committed.get(P0) == 5)
        assert count(made, "failed") == 2

    def test_keeps_the_membership_while_the_brokers_are_away(self) -> None:
        """Catches a recovery that does not poll, and frames that are taken in meanwhile."""
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
        """Catches a pod that reads nothing for minutes, and a dashboard and an alert that know nothing of it."""
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

    def test_is_not_begun_without_a_membership(self) -> None:
        """Catches a commit that the brokers do not check: they check what is sent."""
        made = world(8)
        made.source.member = False
        made.steps(20)
        assert made.log.acknowledged == set()
        made.source.member = True
        until(made, lambda: made.log.committed.get(P0) == 8)


class TestRebalance:
    def test_revoked_commits_what_was_submitted(self) -> None:
        """Catches giving up finished work without its transaction."""
        made = world(4)
        made.service_s = lambda: 2.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        made.steps()
        assert made.log.committed == {P0: 4}

    def test_revoked_ends_by_its_deadline_although_the_transaction_hangs(self) -> None:
        made = world(4, limits={"drain_timeout_s": 6})
        made.publisher.takes_s = lambda: 60.0
        made.steps(2)
        made.source.rebalances.append((0, lambda: made.source.revoke([P0])))
        made.steps()
        assert made.source.longest_rebalance_s <= 3.1

    def test_a_transaction_that_fails_in_it_drops_the_other_partitions_too_and_reads_them_again(self) -> None:
        """Catches going on with frames of a transaction that may or may not have committed."""
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

    def test_lost_commits_nothing(self) -> None:
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
    def test_finishes_what_was_submitted_in_a_transaction(self) -> None:
        made = world(4)
        made.service_s = lambda: 2.0
        run(made, 2)
        assert made.log.committed == {P0: 4}
        assert made.source.closed

    def test_counts_the_turn_in_which_the_stop_came(self) -> None:
        """A turn that waits for brokers is as long as a transaction. Catches a drain that begins its time after it."""
        made = world(4, limits={"drain_timeout_s": 12})
        stop = Stop(made.clock)
        made.publisher.takes_s = lambda: stop.set() or 60.0  # type: ignore[func-returns-value]
        made.publisher.fate = lambda: "rolled back"
        with pytest.raises(DrainError, match="within limits"):
            made.pipeline.run(stop)
        assert 10 <= made.clock.now - stop.at <= 12.1

    @pytest.mark.parametrize("service_s", [0.0, NEVER])
    def test_outside_the_group_does_not_wait_for_what_cannot_come(self, service_s: float) -> None:
        """Its membership is gone, and nobody polls in a drain. Catches a drain that uses up its time in vain."""
        made = world(8)
        made.service_s = lambda: service_s
        made.source.member = False
        stop = Stop(made.clock)
        made.source.rebalances.append((9, stop.set))
        with pytest.raises(DrainError, match="no member of its group"):
            made.pipeline.run(stop)
        assert made.clock.now - stop.at < 0.2
        assert made.log.committed == {}

    def test_put_out_of_the_group_by_the_brokers_word_does_not_wait_either(self) -> None:
        """With KIP-848 the client does not know it before its next poll: a transaction is told."""
        made = world(4)
        made.publisher.fate = lambda: "expelled"
        with pytest.raises(DrainError, match="no member of its group"):
            run(made, 1)
        assert made.clock.now - 1000 < 1

    def test_gives_a_membership_that_was_lost_earlier_its_time(self) -> None:
        """A poll has mended it since. Catches giving up for what was true of another turn."""
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

    def test_with_a_transaction_that_failed_says_what_was_left(self) -> None:
        """Catches an exit with 0 that left work undone, and one that blames a deadline which had not passed."""
        made = world(4)
        made.service_s = lambda: 2.0
        made.publisher.fate = lambda: "aborts"
        with pytest.raises(DrainError, match="4 frames were not done because a transaction failed"):
            run(made, 2)


class TestTheBreaker:
    LIMIT = {"max_consecutive": 5}

    @pytest.mark.parametrize("payload", [BAD, UNPUBLISHABLE])
    def test_counts_what_was_written(self, payload: bytes) -> None:
        """Catches a breaker that does not see results which cannot be written: they are found out late here."""
        made = world(20, payload=payload, dead_letter=self.LIMIT)
        with pytest.raises(RejectRateError):
            made.steps(100)

    def test_does_not_count_a_repetition_twice(self) -> None:
        """Catches rejections of transactions that failed, added up until the process stops for them."""
        made = world(4, payload=BAD, dead_letter=self.LIMIT)
        fates = iter(["aborts", "aborts", "aborts"])
        made.publisher.fate = lambda: next(fates, "commits")
        until(made, lambda: made.log.committed.get(P0) == 4)


class TestBackpressure:
    def test_what_is_held_counts_against_the_limit(self) -> None:
        """Catches reading on without bound while one frame holds all others up."""
        made = world(200, limits={"max_unacknowledged": 10})
        made.publisher.takes_s = lambda: 0.2
        until(made, lambda: made.log.committed.get(P0) == 200, turns=20_000)

    def test_a_hung_engine_ends_the_run(self) -> None:
        made = world(4, limits={"stall_timeout_s": 47})
        made.service_s = lambda: NEVER
        with pytest.raises(EngineError):
            made.steps(1_000_000)
