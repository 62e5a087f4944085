"""Real sizes and uneven load under tight limits, so that members pause, resume, and finish frames out of turn."""

from __future__ import annotations

from collections.abc import Iterable

from admin_faults import configure, steered
from fleet import Member
from loads import Backlog, BadFrames, Envelopes, LargeFrames, LargeLetters, MediumFrames
from network import throttle_requests
from process_faults import kill_one
from scenario import Harm, World

_MIB = 2**20
_BACKLOG_BYTES = 104 * _MIB
_SLOW_BYTES_PER_S = 900_000
_IN_FLIGHT = {"limits.max_in_flight_bytes": 8 * _MIB, "limits.max_unacknowledged": 40}


def metric(member: Member, name: str) -> float:
    """The sum of a metric over its labels; 0 while the member does not answer."""
    lines = member.sluice.get("/metrics")[1].splitlines()
    shown = (line.rpartition(" ") for line in lines if line.startswith((f"{name} ", f"{name}{{")))
    return sum(float(value) for _, _, value in shown)


def wait_for_pause(world: World, timeout_s: float) -> None:
    """Until a member has stopped reading because it holds as much as it may."""

    def paused(members: Iterable[Member]) -> bool:
        return any(metric(member, "sluice_paused") for member in members)

    world.expect(lambda: paused(world.fleet.members), timeout_s, "a member to pause")


def wait_for_burst(world: World, limit_s: float) -> None:
    """Until all that was sent has its outcome. Slower than that is a violation: nothing is broken."""
    sent = {sent.id for sent in list(world.history.acknowledged)}
    world.wait(
        lambda: sent <= world.observer.seen,
        limit_s,
        f"the outcomes of {len(sent - world.observer.seen)} frames that came at once",
    )


def overload(world: World) -> None:
    """More large frames at once than a member may hold: it pauses, and a member dies meanwhile."""
    feeder = steered(world)
    feeder.hold()
    feeder.send_at_once(24)
    wait_for_pause(world, 20)
    kill_one(world)
    feeder.let_go()


def overload_by_one_camera(world: World) -> None:
    """Two of three frames at once are of one camera, and all that is in flight is little.

    A correct program pauses, and is through the backlog in the time that the engine needs for it.
    """
    feeder = steered(world)
    feeder.hold()
    feeder.send_at_once(900)
    wait_for_pause(world, 20)
    feeder.hold()
    wait_for_burst(world, 60)
    feeder.let_go()


def overtake_a_backlog(world: World) -> None:
    """A member starts behind a backlog of one camera, and frames of others, some in its partition. Those go first.

    Under exactly once the results of those in its partition wait for those of the backlog. A correct program does not
    keep the pictures of their whole batches meanwhile: nothing counts those.
    """
    feeder = steered(world)
    feeder.hold()
    member = world.any_member()
    world.fleet.retire(member)
    feeder.burst(2600, 60)
    world.fleet.start(member.slot)
    world.expect(
        lambda: any(metric(each, "sluice_in_flight_bytes") > _BACKLOG_BYTES / 2 for each in world.fleet.members),
        30,
        "a member to hold much of the backlog",
    )
    wait_for_burst(world, 60)
    feeder.let_go()


def overload_with_envelopes(world: World) -> None:
    """More envelopes at once than a member may hold. It reads until it is full, and pauses.

    A correct program counts the copies that it makes of the pictures.
    """
    feeder = steered(world)
    feeder.hold()
    feeder.send_at_once(300)
    wait_for_pause(world, 30)
    feeder.hold(60)
    wait_for_burst(world, 60)
    feeder.let_go()


def reject_large_frames(world: World) -> None:
    """Bad frames of 1.2 MB among good ones, and the topic of the dead letters takes 1 MB.

    A correct program cuts the letters, and is as fast with transactions as it is without: seconds.
    """
    feeder = steered(world)
    feeder.hold()
    feeder.burst(330)
    wait_for_burst(world, 25)
    feeder.let_go()


def limit_letters(world: World) -> None:
    configure(world, world.topics.dead, max_message_bytes=1_000_000)


def slow_way_out(world: World) -> None:
    """What members send goes at 0.9 MB/s, and 40 bad frames of 300 kB have to be written at once: 13 s of sending.

    A correct program writes them in transactions that are small enough to end in time.
    """
    assert world.proxy is not None
    feeder = steered(world)
    feeder.hold()
    fault = throttle_requests(_SLOW_BYTES_PER_S)
    with world.proxy.injected(fault):
        feeder.burst(40)
        wait_for_burst(world, 45)
    assert fault.hits, "nothing was sent"
    feeder.let_go()


HARMS = (
    Harm(
        "frames-large",
        overload,
        deaths=1,
        strikes=1,
        feeder=LargeFrames,
        rate=2,
        engine_ms=(700, 1500),
        options={**_IN_FLIGHT, "batching.max_batch_size": 4},
    ),
    Harm(
        "camera-greedy",
        overload_by_one_camera,
        strikes=1,
        feeder=MediumFrames,
        rate=40,
        engine_ms=(400, 460),
        options={
            "limits.max_in_flight_bytes": 24 * _MIB,
            "limits.max_unacknowledged": 300,
            "batching.max_batch_size": 64,
        },
    ),
    Harm(
        "envelopes-large",
        overload_with_envelopes,
        strikes=1,
        members=1,
        feeder=Envelopes,
        rate=4,
        engine_ms=(50, 1500),
        options={
            "limits.max_in_flight_bytes": _BACKLOG_BYTES,
            "batching.max_batch_size": 64,
            "detector.image_size": 64,
            "decode.workers": "threads",
        },
    ),
    # The limit is more than the member can hold in its ring and its waiting lines: what it uses beyond is not counted.
    Harm(
        "camera-backlog",
        overtake_a_backlog,
        strikes=1,
        members=1,
        feeder=Backlog,
        rate=20,
        engine_ms=(5, 100),  # faster than the patience of a full member: while it pauses, nothing overtakes
        options={
            "limits.max_in_flight_bytes": _BACKLOG_BYTES,
            "batching.max_batch_size": 64,
            "detector.image_size": 64,
            "decode.workers": "threads",
            # Little of each partition at a time: else it comes in pieces of more than a batch, and overtakes nothing.
            "kafka.consumer": {"queued.max.messages.kbytes": 2048, "fetch.message.max.bytes": 250_000},
        },
    ),
    Harm("letters-large", reject_large_frames, strikes=1, feeder=LargeLetters, prepare=limit_letters),
    Harm("way-out-slow", slow_way_out, deaths=None, strikes=1, feeder=BadFrames, rate=20, proxied=True),
)
