"""What administrators and retention do to the topics while the group works.

Only records are deleted whose outcome is written and whose offset is committed: anything else would be real loss.
Rights are not taken away here. The brokers of the rig know every client, and each other, as the same anonymous user.
It has to be a super user of the authorizer, or the controllers do not start; nothing can be denied to a super user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import OFFSET_END, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import NewPartitions

from consumer import errors
from feeders import EndsAborted, SteeredFeeder, TransactionalFeeder, only_committed
from history import History
from kafka_clients import alter_topic
from loads import LettersToCut
from process_faults import kill_one, terminate_one
from scenario import PARTITIONS, Harm, World

_ANSWER_S = 15
_DONE_S = 30.0
_ADDED = 2
_REMADE = "again-"
_REFUSED = (errors.PublishError.exit_code,)
_LONGER = 50  # frames


def configure(world: World, topic: str, **settings: object) -> None:
    """Set settings of a topic, `_` for `.`."""
    alter_topic(world.cluster.admin(), topic, **settings)


def steered(world: World) -> SteeredFeeder:
    """The feeder of a harm that has to steer it."""
    assert isinstance(world.feeder, SteeredFeeder)
    return world.feeder


def hold_until_done(world: World) -> dict[int, int]:
    """Hold the feeder until every frame has its outcome, and the group has committed it.

    Returns for each partition the offset behind its last frame.
    """
    steered(world).hold()
    world.wait(
        lambda: {sent.id for sent in list(world.history.acknowledged)} <= world.observer.seen,
        _DONE_S,
        "the outcomes of all frames while the feeder is held",
    )
    ends: dict[int, int] = {}
    for sent in world.history.acknowledged:
        ends[sent.id.partition] = max(ends.get(sent.id.partition, 0), sent.id.offset + 1)

    def committed() -> bool:
        samples = world.history.samples[-1:]
        return any(all(each.committed.get(number, 0) >= end for number, end in ends.items()) for each in samples)

    world.wait(committed, _DONE_S, "the group to commit all frames while the feeder is held")
    return ends


def delete_records(world: World) -> None:
    """Every record of the input topic goes, as retention takes them; then a member restarts.

    A correct program starts where the topic begins now: what was deleted is done.
    """
    ends = hold_until_done(world)
    everything = [TopicPartition(world.topics.frames, number, OFFSET_END) for number in range(PARTITIONS)]
    admin = world.cluster.admin()
    begins = {
        each.partition: answer.result(_ANSWER_S).low_watermark
        for each, answer in admin.delete_records(everything).items()
    }
    gone = {number: begins[number] - end for number, end in ends.items()}  # records and markers behind the last frame
    wanted = 1 if isinstance(world.feeder, TransactionalFeeder) else 0
    assert min(gone.values()) >= wanted, f"the partitions begin at {begins} now, and their last frames ended at {ends}"
    terminate_one(world)
    steered(world).let_go()


def keep_deleted(history: History) -> None:
    """The input topic does not hold any more what was deleted."""
    only_committed(history)
    held = {sent.id for sent in history.inputs}
    history.inputs += [sent for sent in history.acknowledged if sent.id not in held]


def remake_topic(world: World) -> None:
    """The input topic is deleted and made again under the running members, and new frames are there at once.

    A correct program gives every record of the new topic an outcome. A member may end, and its successor begins again.
    """
    done = sum(_remade(world).values())
    feeder = steered(world)
    # Sometimes the new topic is at once longer than the old one was.
    feeder.burst(world.chance.choice([done // 2, done + 200]))
    feeder.let_go()


def remake_longer(world: World) -> None:
    """As `remake_topic`, and every partition is at once longer than the old one was.

    The offsets of the old topic exist in the new one then, so no broker refuses them: a member can read on there, and
    never learn what it has missed. The partitions stay where they were: a new leader would make the client look whether
    the log was cut. It fetches again five seconds after the brokers have refused the old topic.
    """
    ends = _remade(world, world.cluster.places(world.topics.frames))
    feeder = steered(world)
    feeder.burst_to({number: end + _LONGER for number, end in ends.items()})
    feeder.let_go()


def _remade(world: World, places: Sequence[Sequence[int]] | None = None) -> dict[int, int]:
    """Leaves the feeder held and the new topic empty. Returns where each partition of the old one ended.

    `places`: as for `create_topic`.
    """
    feeder = steered(world)
    ends = hold_until_done(world)
    feeder.begin_again(_REMADE)  # its new client is connected when the topic is there
    admin = world.cluster.admin()
    name = world.topics.frames
    admin.delete_topics([name])[name].result(_ANSWER_S)
    world.last(0.0, 0.5)
    _make(world, name, places)
    world.observer.seen.clear()
    return ends


def _make(world: World, name: str, places: Sequence[Sequence[int]] | None) -> None:
    """Brokers that have not quite deleted the old one refuse the new one."""

    def made() -> bool:
        try:
            world.cluster.create_topic(name, PARTITIONS, places=places)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            return False
        return True

    world.wait(made, 20, "the input topic to be made again")


def only_remade(history: History) -> None:
    """Judge the new topic's frames: the old ones had the same offsets.

    Not judged is their order, nor a repeat: a member that does not know yet that the topic is another one may begin in
    its middle, and then at its beginning. Nor the commits, of which those of the old topic are a part.
    """
    outcomes = {}
    for outcome in history.outcomes:
        if outcome.source.startswith(_REMADE):
            outcomes.setdefault(outcome.id, outcome)
    history.outcomes = [outcomes[each] for each in sorted(outcomes)]
    history.samples, history.commits, history.rebalances = [], [], []


def add_partitions(world: World) -> None:
    """The input topic gets more partitions; some sources move to them.

    A correct program reads them from their beginning, as soon as it or the brokers see them.
    """
    feeder = steered(world)
    feeder.hold()
    admin = world.cluster.admin()
    total = PARTITIONS + _ADDED
    admin.create_partitions([NewPartitions(world.topics.frames, total)])[world.topics.frames].result(_ANSWER_S)
    world.wait(lambda: len(world.cluster.metadata().topics[world.topics.frames].partitions) == total, 20, "partitions")
    world.wait(world.cluster.in_sync, 20, "leaders of the new partitions")
    world.partitions = total
    feeder.renew()
    feeder.let_go()
    world.wait(world.shared_out, 40, "the new partitions to have a member")
    world.recording.sample_anew()


def change_limits(world: World) -> None:
    """`max.message.bytes` of the topics goes down and up again while dead letters of 400 kB are written.

    A correct program cuts the letters that do not fit. A result always fits.
    """
    for _ in range(2):
        configure(world, world.topics.dead, max_message_bytes=world.chance.choice([200_000, 300_000]))
        configure(world, world.topics.detections, max_message_bytes=500_000)
        world.last(2.0, 4.0)
        for topic in (world.topics.dead, world.topics.detections):
            configure(world, topic, max_message_bytes=10_000_000)
        world.last(1.0, 2.0)


_FETCHES_LATE = {"kafka.consumer": {"fetch.error.backoff.ms": 5000}}
_SEES_PARTITIONS = {"kafka.client": {"topic.metadata.refresh.interval.ms": 1000}}


def _remade_harm(name: str, inflict: Callable[[World], None], **more: Any) -> Harm:
    exits = (errors.KafkaError.exit_code,)
    return Harm(name, inflict, deaths=None, strikes=1, feeder=SteeredFeeder, edit=only_remade, exits=exits, **more)


HARMS = (
    Harm("records-deleted", delete_records, strikes=1, feeder=SteeredFeeder, edit=keep_deleted),
    Harm("records-deleted-marker", delete_records, strikes=1, feeder=TransactionalFeeder, edit=keep_deleted),
    Harm("records-deleted-aborted", delete_records, strikes=1, feeder=EndsAborted, edit=keep_deleted),
    Harm("input-in-transactions", kill_one, deaths=1, feeder=TransactionalFeeder, edit=only_committed),
    _remade_harm("topic-remade", remake_topic),
    _remade_harm("topic-remade-longer", remake_longer, options=_FETCHES_LATE),
    Harm("partitions-added", add_partitions, strikes=1, feeder=SteeredFeeder, options=_SEES_PARTITIONS),
    # With at-least-once, a limit that is lowered ends the process once, so that the order is kept.
    Harm("limits-changed", change_limits, deaths=None, strikes=1, feeder=LettersToCut, exits=_REFUSED),
)
