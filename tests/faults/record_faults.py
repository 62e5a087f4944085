"""Records that brokers may refuse to take back as a result or as a dead letter, or may delete too early."""

from __future__ import annotations

from admin_faults import configure
from loads import FromLastWeek, FromTheFuture, LongNames, WithoutKeys
from process_faults import kill_one
from scenario import PARTITIONS, Harm, World

_WEEK_MS = 7 * 86_400_000
_LIMIT_BYTES = 1300  # of a result


def go_on(world: World) -> None:
    """The records do the harm. They come all the time, and a member dies among them."""
    world.last(2.0, 4.0)
    kill_one(world)
    world.last(1.0, 2.0)


def accept_the_future(world: World) -> None:
    """The input topic takes timestamps of any time; that of the dead letters refuses more than an hour ahead."""
    configure(world, world.topics.frames, message_timestamp_after_max_ms=2**62)


def compact_letters(world: World) -> None:
    """A compacted topic refuses records without a key. Nothing is compacted in the time of a run."""
    configure(world, world.topics.dead, cleanup_policy="compact")


def limit_results(world: World) -> None:
    configure(world, world.topics.detections, max_message_bytes=_LIMIT_BYTES)


def keep_letters_a_week(world: World) -> None:
    """Retention goes by the timestamps of the records."""
    configure(world, world.topics.dead, retention_ms=_WEEK_MS)


def wait_for_retention(world: World) -> None:
    """Old letters go where retention sees them as old. A correct program has written them with the present time."""
    world.wait(lambda: len(world.observer.seen) > 10 * PARTITIONS, 30, "outcomes")
    world.last(6.0, 8.0)  # two rounds of retention


# What a correct program does with each: the letter of a bad frame from the future gets a time that brokers take; a
# letter without a key gets one; a result that is too large becomes a dead letter (`unpublishable`).
HARMS = (
    Harm("bad-frames-ahead", go_on, deaths=1, strikes=1, feeder=FromTheFuture, prepare=accept_the_future),
    Harm("records-without-keys", go_on, deaths=1, strikes=1, feeder=WithoutKeys, prepare=compact_letters),
    Harm(
        "results-too-large",
        go_on,
        deaths=1,
        strikes=1,
        feeder=LongNames,
        prepare=limit_results,
        rejects=("unpublishable",),
        # Else a batch of small results is refused for its size. One request for each result takes long.
        options={"kafka.producer": {"batch.size": 1}},
        rate=40,
    ),
    Harm("frames-old", wait_for_retention, strikes=1, feeder=FromLastWeek, prepare=keep_letters_a_week),
)
