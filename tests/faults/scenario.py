"""One run of the rig: start a group, feed it, harm it, let it recover, stop it, and judge what happened.

A run is told by its specification, `harm:delivery:protocol:seed`: the same one makes the same choices again. (The
machine's timing is not in it: a violation that needs a certain moment may take several replays.)
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from apache_kafka import ApacheKafka
from brokers import APACHE, Broker, unique_name
from checker import Verdict, check
from fleet import Fleet, Member
from history import Delivery, Exposure, History, Strike
from memory import IN_FLIGHT_BYTES, MemorySampler, base_bytes
from proxy import Proxy
from readback import read_commits, read_inputs, read_outcomes
from recorder import Feeder, Observer, Sampler
from sluice_entry import DIE_AT, LAST_WORDS
from sluice_process import Topics
from waiting import wait_until

Protocol = Literal["classic", "consumer"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
DELIVERIES: tuple[Delivery, ...] = get_args(Delivery)

PARTITIONS = 4
SOURCES = 12
FRAMES_PER_S = 120.0
SESSION_S = 3.0
RECOVERY_LIMIT_S = 60.0
COMMIT_INTERVAL_MS = 200
BATCH = 16
# What one unclean end may leave acknowledged and not committed: the ring's four batches, and what the engine can do
# (800 frames/s) in two commit intervals; two, because the machine of the tests is slow and shared.
REPEATS_PER_DEATH = 4 * BATCH + int(800 * 2 * COMMIT_INTERVAL_MS / 1000)
# Where members can lose their partitions without knowing it, what was written around a strike may be repeated, once for
# each strike (`limits.check_repeats`). Before it: the last commit (two intervals) and what the reader of the outcomes
# is late. After it: a session, until the last member must know, and the 3 s in which clients give a request up.
EXPOSURE = Exposure(before_s=2 * COMMIT_INTERVAL_MS / 1000 + 0.6, after_s=SESSION_S + 3.0)
# The reader may be later than that with what a member's ring held when the strike began.
REPEATS_PER_RING = 4 * BATCH
# What the rig's clusters are started with: quick to notice a death, as far as production's order of things allows.
BROKER_SETTINGS: Mapping[str, Any] = {
    "group_consumer_session_timeout_ms": int(SESSION_S * 1000),
    "broker_session_timeout_ms": 6000,
    "broker_heartbeat_interval_ms": 1000,
    # Retention looks often enough to act within a run, and deleted topics leave the small disks at once.
    "log_retention_check_interval_ms": 3000,
    "log_segment_delete_delay_ms": 1000,
}


@dataclass(frozen=True, slots=True)
class Harm:
    """Something that happens to a group, to its brokers, or between them.

    `inflict` returns when the last of the harm is mended. `deaths`: unclean ends that it brings, each of which may
    repeat some outcomes under at-least-once; None where members can lose their partitions without knowing: then each
    strike exposes what is written around it (`EXPOSURE`). `exits`: codes with which it may end processes; other ends
    are violations. `rejects`: reasons for which it may make dead letters of good frames.
    """

    name: str
    inflict: Callable[[World], None]
    deaths: int | None = 0
    members: int = 2
    strikes: int = 2
    proxied: bool = False  # the members reach the brokers through a proxy
    deliveries: tuple[Delivery, ...] = DELIVERIES
    engine_faults: str = ""
    engine_ms: tuple[int, int] = (5, 20)
    options: Mapping[str, Any] = field(default_factory=dict)
    exits: tuple[int, ...] = ()
    rejects: tuple[str, ...] = ()
    feeder: Callable[..., Feeder] = Feeder
    rate: float = FRAMES_PER_S  # frames a second that the feeder sends, of all sources together
    prepare: Callable[[World], None] | None = None  # called before the first frame and the first member
    edit: Callable[[History], None] | None = None  # takes out of the history what this harm makes no promise about
    new_ids: bool = False  # each process has a transactional ID of its own, also one that replaces another


@dataclass(frozen=True, slots=True)
class Spec:
    """`str(spec)` and `Spec.parse` are inverse."""

    harm: str
    delivery: Delivery
    protocol: Protocol
    seed: int

    def __str__(self) -> str:
        return f"{self.harm}:{self.delivery}:{self.protocol}:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Spec:
        try:
            harm, delivery, protocol, seed = text.split(":")
            parsed = cls(harm, delivery, protocol, int(seed))  # type: ignore[arg-type] # checked below
        except ValueError:
            raise ValueError(f"{text!r} is not of the form harm:delivery:protocol:seed") from None
        if delivery not in DELIVERIES or protocol not in PROTOCOLS:
            raise ValueError(f"{text!r}: the delivery is one of {DELIVERIES}, the protocol one of {PROTOCOLS}")
        return parsed


class World:
    """What a harm may touch. `proxy` is there for harms that ask for it; `chance` is the only source of chance."""

    def __init__(self, cluster: ApacheKafka, fleet: Fleet, recording: Recording, chance: random.Random) -> None:
        self.cluster = cluster
        self.fleet = fleet
        self.recording = recording
        self.observer = recording.observer
        self.feeder = recording.feeder
        self.chance = chance
        self.partitions = PARTITIONS  # of the input topic; a harm may add some
        self.history = fleet.history
        self.topics = fleet.topics
        self.proxy: Proxy | None = None
        self._nothing = threading.Event()

    def wait(self, predicate: Callable[[], object], timeout_s: float, what: str) -> None:
        """Wait for a state, and start anew meanwhile what ended by itself."""

        def tend_and_look() -> object:
            self.fleet.tend()
            return predicate()

        wait_until(tend_and_look, timeout_s, what, interval=0.05)

    def expect(self, predicate: Callable[[], object], timeout_s: float, what: str) -> None:
        """Wait until the harm has struck. Raises AssertionError where it has not: then the run is void."""
        try:
            self.wait(predicate, timeout_s, what)
        except TimeoutError as error:
            raise AssertionError(str(error)) from error

    def last(self, at_least_s: float, at_most_s: float) -> None:
        """Let the harm last, for a time that chance chooses."""
        ends_s = time.monotonic() + self.chance.uniform(at_least_s, at_most_s)
        while (left := ends_s - time.monotonic()) > 0:
            self.fleet.tend()
            self._nothing.wait(min(0.1, left))

    def wait_for_death(self, member: Member, timeout_s: float) -> None:
        """Of a member that is to kill itself at the place that its variables name.

        Raises TimeoutError where it lives on or ended in another way: a harm that does not strike must not count as
        survived.
        """
        self.wait(lambda: not member.sluice.running, timeout_s, "the death of a member that was to kill itself")
        self.fleet.bury(member)
        if where := member.sluice.variables.get(DIE_AT):
            stage = where.partition(":")[0]
            if LAST_WORDS.format(stage=stage) not in member.sluice.log:
                code = member.sluice.wait()
                raise TimeoutError(f"the member that was to kill itself in {stage} ended with {code} before it did")

    def any_member(self) -> Member:
        return self.chance.choice(self.fleet.members)

    def shared_out(self) -> bool:
        """Every member has partitions, and no partition is without a member."""
        owned = [member.partitions for member in self.fleet.members]
        return all(owned) and sum(owned) == self.partitions

    def flowing_since(self, moment_s: float) -> bool:
        """A new outcome has come from every partition."""
        return all(self.observer.fresh_s[number] > moment_s for number in range(self.partitions))


@dataclass(slots=True)
class Run:
    """What is left of a run."""

    spec: Spec
    verdict: Verdict
    history: History
    logs: Mapping[str, str]
    took_s: float


def run(spec: Spec, harm: Harm, cluster: ApacheKafka, variables: Mapping[str, str] | None = None) -> Run:
    """One run on a healthy cluster (`proxied` for harms that ask for it), which is healthy again afterwards.

    `variables` are for `sluice_entry`. Raises where the rig itself, not the program, could not do its part.
    """
    began = time.monotonic()
    history = new_history(spec, harm)
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(Proxy(cluster.routes)) if harm.proxied else None
        bootstrap = proxy.bootstrap_servers if proxy else cluster.bootstrap_servers
        broker = Broker("apache", bootstrap, {}, APACHE, cluster.create_topic)
        topics = Topics.on(broker, PARTITIONS)
        stack.callback(_delete, cluster, topics)
        fleet = Fleet(broker, topics, unique_name("group"), history, member_options(spec, harm), variables or {})
        fleet.engine_ms, fleet.engine_faults = harm.engine_ms, harm.engine_faults
        fleet.may_expel = harm.deaths is None
        fleet.new_ids = harm.new_ids
        with _recording(history, cluster.bootstrap_servers, fleet, harm) as recording:
            world = World(cluster, fleet, recording, random.Random(spec.seed))
            world.proxy = proxy
            try:
                _go_through(world, harm)
                history.final = recording.sampler.take()
            except TimeoutError as error:
                history.stuck = str(error)
        history.inputs = read_inputs(cluster.bootstrap_servers, topics)
        history.commits = read_commits(cluster.bootstrap_servers, fleet.group)
        history.outcomes = list(read_outcomes(cluster.bootstrap_servers, topics, spec.delivery, recording.observer))
        if harm.edit is not None:
            harm.edit(history)
        done = Run(spec, check(history), history, fleet.logs, time.monotonic() - began)
        fleet.forget_logs()
    return done


def new_history(spec: Spec, harm: Harm) -> History:
    """With what the checker has to allow in this run."""
    options = member_options(spec, harm)
    history = History(
        spec.delivery,
        recovery_limit_s=RECOVERY_LIMIT_S,
        may_exit=frozenset(harm.exits),
        may_reject=frozenset(harm.rejects),
        in_flight_limit_bytes=int(options["limits.max_in_flight_bytes"]),
        memory_base_bytes=base_bytes(options),
    )
    if harm.deaths is None:
        history.allowed_repeats = harm.members * harm.strikes * REPEATS_PER_RING
        history.exposure = EXPOSURE
    else:
        history.allowed_repeats = harm.deaths * harm.strikes * REPEATS_PER_DEATH
    return history


def _go_through(world: World, harm: Harm) -> None:
    feeder = world.feeder
    if harm.prepare is not None:
        harm.prepare(world)
    for _ in range(harm.members):
        world.fleet.start()
    feeder.start()
    world.wait(lambda: world.flowing_since(0.0), 60, "the first outcomes of every partition")
    for _ in range(harm.strikes):
        world.wait(world.cluster.in_sync, 90, "all replicas to be in sync")
        world.wait(world.shared_out, 90, "the members to share the partitions")
        world.last(0.2, 1.5)
        began_s = time.monotonic()
        harm.inflict(world)
        world.history.strikes.append(Strike(harm.name, began_s, time.monotonic()))
        _wait_patiently(world, world.flowing_since, world.history.strikes[-1].ended_s)
    feeder.finish(60)
    began_s = time.monotonic()
    _wait_for_the_backlog(world)
    world.history.backlog_s = time.monotonic() - began_s
    for member in list(world.fleet.members):
        world.fleet.retire(member)


def _wait_patiently(world: World, reached: Callable[[Any], bool], what: Any) -> None:
    """Wait as long as a recovery may take. That it was not reached is for the checker to say."""
    with contextlib.suppress(TimeoutError):
        world.wait(lambda: reached(what), RECOVERY_LIMIT_S, "")


def _wait_for_the_backlog(world: World) -> None:
    """Until every frame has its outcome. Raises TimeoutError if no outcome comes for as long as a recovery may take.

    A slow machine needs longer for a backlog than for a recovery, and what it has not read yet is not lost.
    """
    acknowledged = _ids(world.history)
    while not acknowledged <= world.observer.seen:
        seen = len(world.observer.seen)
        what = f"the next outcome, with {len(acknowledged - world.observer.seen)} frames without one"
        world.wait(lambda seen=seen: len(world.observer.seen) > seen, RECOVERY_LIMIT_S, what)


def _ids(history: History) -> set[Any]:
    return {sent.id for sent in history.acknowledged}


class Recording:
    """The threads that write the history."""

    def __init__(self, history: History, bootstrap: str, fleet: Fleet, harm: Harm) -> None:
        self.observer = Observer(history.delivery, bootstrap, fleet.topics)
        self.feeder = harm.feeder(history, bootstrap, fleet.topics.frames, sources=SOURCES, rate=harm.rate)
        self._new_sampler = partial(Sampler, history, bootstrap, fleet.group, fleet.topics)
        self.sampler = self._new_sampler()

    def start(self) -> None:
        """All but the feeder."""
        self.observer.start()
        self.sampler.start()

    def sample_anew(self) -> None:
        """The input topic has more partitions now: sample those, too."""
        self.sampler.stop()
        self.sampler = self._new_sampler()
        self.sampler.start()

    def stop(self) -> None:
        for loop in (self.feeder, self.sampler, self.observer):
            loop.stop()


@contextlib.contextmanager
def _recording(history: History, bootstrap: str, fleet: Fleet, harm: Harm) -> Iterator[Recording]:
    recording = Recording(history, bootstrap, fleet, harm)
    recording.start()
    memory = MemorySampler(history, fleet)
    memory.start()
    try:
        yield recording
    finally:
        memory.stop()
        fleet.close()
        recording.stop()


def member_options(spec: Spec, harm: Harm) -> dict[str, Any]:
    """What every member of such a run is configured with."""
    classic = {"session.timeout.ms": int(SESSION_S * 1000), "heartbeat.interval.ms": 500}
    consumer = classic if spec.protocol == "classic" else {"group.protocol": "consumer"}
    return {
        "delivery": spec.delivery,
        "kafka.commit_interval_ms": COMMIT_INTERVAL_MS,
        "batching.max_batch_size": BATCH,
        "limits.max_in_flight_bytes": IN_FLIGHT_BYTES,
        **harm.options,
        "kafka.consumer": {**consumer, **harm.options.get("kafka.consumer", {})},
    }


def _delete(cluster: ApacheKafka, topics: Topics) -> None:
    """So that a long campaign does not fill the disk."""
    admin = cluster.admin()
    for future in admin.delete_topics([topics.frames, topics.detections, topics.dead]).values():
        with contextlib.suppress(Exception):  # a cluster that could not recover is replaced by its owner
            future.result(10)
