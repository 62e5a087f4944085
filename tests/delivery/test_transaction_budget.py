"""Tests the size of transactions: as large as the connection to the brokers can transfer in time."""

from __future__ import annotations

import pytest

from consumer.delivery.base import TRANSACTION_S
from consumer.delivery.offsets import OffsetTracker
from consumer.delivery.reorder_buffer import HeldOutcomes, outcome_bytes
from consumer.delivery.transaction_budget import LEAST_BYTES, MOST_BYTES, TARGET_S, TransactionBudget
from consumer.types import Finished
from made_frames import P0, P1, REJECTED, frame, result

LETTER = 300_000


def letter(offset: int, partition: object = P0, size: int = LETTER) -> Finished:
    item = frame(offset, partition=partition, payload=bytes(size))  # type: ignore[arg-type]
    return Finished(item, REJECTED, result([item], [REJECTED]).summary)


def holding(*items: Finished) -> tuple[HeldOutcomes, OffsetTracker]:
    held, offsets = HeldOutcomes(), OffsetTracker()
    for partition in {item.frame.receipt.partition for item in items}:
        offsets.assign(partition, 1)
    for item in items:
        offsets.received(item.frame.receipt)
        held.hold(item)
    return held, offsets


class Connection:
    """A connection: a transaction takes `round_trip_s` plus the transfer time of its bytes. It fails after 10 s."""

    def __init__(self, bytes_per_s: float, round_trip_s: float = 0.02) -> None:
        self.bytes_per_s, self.round_trip_s = bytes_per_s, round_trip_s
        self.budget = TransactionBudget()
        self.failed_row = self.worst_row = 0

    def write(self, held: HeldOutcomes, offsets: OffsetTracker) -> tuple[int, float]:
        """Run one transaction. Returns the number of committed outcomes and the duration in seconds."""
        ready = held.take(offsets, self.budget.bytes)
        size = sum(map(outcome_bytes, ready))
        seconds = self.round_trip_s + size / self.bytes_per_s
        if seconds > TRANSACTION_S:
            self.budget.failed(size, TRANSACTION_S)
            for item in ready:
                held.hold(item)
            self.failed_row += 1
            self.worst_row = max(self.worst_row, self.failed_row)
            return 0, TRANSACTION_S
        self.failed_row = 0
        self.budget.committed(size, seconds, full=held.more)
        for item in ready:
            offsets.done(item.frame.receipt)
        return len(ready), seconds


@pytest.mark.parametrize("bytes_per_s", [50_000, 200_000, 900_000, 10_000_000, 1_000_000_000])
def test_a_backlog_drains_at_the_speed_of_the_connection(bytes_per_s: float) -> None:
    """Catches a transaction of all ready outcomes: on a slow connection it never ends in time or commits anything."""
    connection = Connection(bytes_per_s)
    held, offsets = holding(*[letter(n) for n in range(400)])
    done, took_s = 0, 0.0
    while done < 400:
        assert took_s < 100_000, f"{done} of 400"
        count, seconds = connection.write(held, offsets)
        done, took_s = done + count, took_s + seconds
    assert took_s < 1.5 * 400 * (LETTER + 2048) / bytes_per_s + 60
    assert connection.worst_row <= 2


def test_adapts_within_a_few_transactions_to_a_new_connection_speed() -> None:
    """Catches a budget that is measured only once."""
    connection = Connection(100_000_000)
    held, offsets = holding(*[letter(n) for n in range(1000)])
    while connection.budget.bytes < MOST_BYTES:
        connection.write(held, offsets)
    connection.bytes_per_s = 300_000
    tries = 0
    while connection.write(held, offsets)[0] == 0:
        tries += 1
    assert tries <= 3
    connection.bytes_per_s = 100_000_000
    for _ in range(8):
        connection.write(held, offsets)
    assert connection.budget.bytes > 4_000_000


def test_an_immediate_failure_does_not_shrink_it() -> None:
    """Catches a rebalance or a refusal that is mistaken for a slow connection."""
    budget = TransactionBudget()
    before = budget.bytes
    budget.failed(before, 0.1)
    assert budget.bytes == before
    budget.failed(before, TRANSACTION_S)
    assert LEAST_BYTES <= budget.bytes < before


def test_slow_round_trips_do_not_shrink_it() -> None:
    """Catches small transactions on a connection with high latency but enough bandwidth."""
    budget = TransactionBudget()
    for _ in range(50):
        budget.committed(1000, 1.5 * TARGET_S, full=False)
    assert budget.bytes == TransactionBudget().bytes


def test_brokers_that_are_slow_for_any_size_get_large_transactions() -> None:
    """Catches a budget that shrinks to its minimum, so that each transaction of a backlog has only a few outcomes."""
    connection = Connection(100_000_000, round_trip_s=5.0)
    held, offsets = holding(*[letter(n) for n in range(1000)])
    sizes = []
    for _ in range(12):
        sizes.append(connection.budget.bytes)
        connection.write(held, offsets)
    assert min(sizes) > LEAST_BYTES
    assert max(sizes[-3:]) > 4 * sizes[0]


def test_offsets_alone_do_not_shrink_it() -> None:
    """Catches a transaction without outcomes that is mistaken for a slow connection."""
    budget = TransactionBudget()
    budget.committed(0, TRANSACTION_S, full=False)
    budget.failed(0, TRANSACTION_S)
    assert budget.bytes == TransactionBudget().bytes


def test_a_single_outcome_of_any_size_is_sent() -> None:
    """Catches a large dead letter that waits indefinitely for a larger budget."""
    large = letter(0, size=5_000_000)
    held, offsets = holding(large, letter(1))
    assert held.take(offsets, 1000) == [large]
    assert held.more


def test_no_partition_waits_for_another_indefinitely() -> None:
    """Catches one partition with a backlog that fills every transaction."""
    held, offsets = holding(*[letter(n, P0) for n in range(10)], letter(0, P1))
    seen = []
    for _ in range(3):
        for item in held.take(offsets, 2 * LETTER + 10_000):
            seen.append(item.frame.receipt.partition)
            offsets.done(item.frame.receipt)
    assert P1 in seen
