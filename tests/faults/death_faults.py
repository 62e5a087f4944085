"""Members that die in the middle of what is rare: a revocation, the way back after a failed transaction, the end.

A correct program loses nothing, its successor repeats no more than what was not committed, and under exactly once
nothing is repeated.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from fleet import Member, client_id
from network import Api, drop, hold, hold_answers, hold_end_txn
from network_faults import IMPATIENT
from scenario import PARTITIONS, Harm, World
from sluice_entry import DIE_AT


def _mortal(world: World, stage: str) -> Member:
    member = world.fleet.start(variables={DIE_AT: f"{stage}:1"})
    member.doomed = True
    return member


def die_revoked(world: World) -> None:
    """One member has everything, the mortal takes half of it, and has to give half of that to two more."""
    while len(world.fleet.members) > 1:
        world.fleet.retire(world.any_member())
    world.wait(world.shared_out, 40, "one member to have all partitions")
    mortal = _mortal(world, world.chance.choice(["revoked", "settle", "settle_end", "revoked_end"]))
    world.wait(lambda: mortal.partitions == PARTITIONS // 2, 60, "the mortal member to have its half")
    for _ in range(2):
        world.fleet.start()
    world.wait_for_death(mortal, 60)


def die_at_look_up(world: World) -> None:
    """Between the assignment and the first fetch: before the committed offsets are asked for, or behind the answer."""
    world.wait_for_death(_mortal(world, world.chance.choice(["look_up", "look_up_end"])), 60)


def die_rewinding(world: World) -> None:
    """A transaction fails because its end is held; the member goes back to the committed offsets, and dies there."""
    assert world.proxy is not None
    mortal = _mortal(world, world.chance.choice(["rewind", "rewind_end"]))
    world.wait(lambda: mortal.partitions, 60, "the mortal member to have its share")
    with world.proxy.injected(hold_end_txn(client_id(mortal.slot))):
        world.wait_for_death(mortal, 60)


def die_closing(world: World) -> None:
    """All is drained and committed, and the group has not been told that the member leaves; or it just has."""
    mortal = _mortal(world, world.chance.choice(["close", "close_end"]))
    world.wait(lambda: mortal.partitions, 60, "the mortal member to have its share")
    world.last(0.2, 1.0)
    mortal.signal(signal.SIGTERM)
    world.wait_for_death(mortal, 60)


def die_committing(*, answered: bool) -> Callable[[World], None]:
    """SIGKILL when EndTxn is on the wire: the brokers have done it and the member does not know, or it comes later.

    In the second case it comes when a successor with the same transactional ID may work already. Brokers refuse it
    then; what was in the transaction comes again.
    """

    def inflict(world: World) -> None:
        assert world.proxy is not None
        member = world.any_member()
        make = hold_answers if answered else hold
        with world.proxy.injected(make([Api.END_TXN], client_id(member.slot), limit=1)) as fault:
            world.expect(lambda: fault.hits, 20, "a transaction to end")
            world.fleet.kill(member)
            world.last(0.0, 6.0)

    return inflict


def die_in_transaction(world: World) -> None:
    """SIGKILL of a member whose last transaction nobody ends: it stays open until `transaction.timeout.ms`.

    Its successor has another transactional ID and does not end it either. Whoever takes the partitions has to wait,
    and may neither repeat nor skip what was in it.
    """
    assert world.proxy is not None
    member = world.any_member()
    with world.proxy.injected(drop([Api.END_TXN], client_id(member.slot))) as fault:
        world.expect(lambda: fault.hits, 20, "a transaction to end")
        world.fleet.kill(member)


_SHORT_TRANSACTIONS = {"kafka.producer": {"delivery.timeout.ms": 5000, "transaction.timeout.ms": 6000}}
_EXACTLY_ONCE = ("exactly_once",)
HARMS = (
    Harm("die-revoked", die_revoked, deaths=1, strikes=1),
    Harm("die-at-look-up", die_at_look_up, deaths=1),
    Harm("die-rewinding", die_rewinding, deaths=1, proxied=True, options=IMPATIENT, deliveries=_EXACTLY_ONCE),
    Harm("die-closing", die_closing, deaths=1),
    Harm("die-committed", die_committing(answered=True), deaths=1, proxied=True, deliveries=_EXACTLY_ONCE),
    Harm("die-committing", die_committing(answered=False), deaths=1, proxied=True, deliveries=_EXACTLY_ONCE),
    Harm(
        "new-ids",
        die_in_transaction,
        deaths=1,
        strikes=1,
        proxied=True,
        deliveries=_EXACTLY_ONCE,
        new_ids=True,
        options=_SHORT_TRANSACTIONS,
    ),
)
