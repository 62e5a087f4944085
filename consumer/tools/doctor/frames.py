"""Checks a sample of the newest frames: whether each source is in one partition, and whether the clocks agree."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from consumer.tools.doctor.findings import Finding, Reporter
from consumer.tools.doctor.sample import SampledFrame

_SHOWN = 3
_AHEAD_MS = 1000  # clocks that NTP synchronises differ by a few milliseconds
_LATE_MS = 10_000


def murmur2(key: bytes) -> int:
    """The 31-bit hash with which Java clients and librdkafka's `murmur2_random` choose the partition of a key."""
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    hashed = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        part = int.from_bytes(key[at : at + 4], "little") * factor & mask
        part = (part ^ part >> 24) * factor & mask
        hashed = (hashed * factor & mask) ^ part
    if rest := key[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    return (hashed ^ hashed >> 15) & 0x7FFFFFFF


def partitioning(sample: Sequence[SampledFrame], partitions: Mapping[str, int], report: Reporter) -> Iterator[Finding]:
    """Report sources with frames in several partitions: order is kept only within a partition.

    Args:
        sample: the newest frames.
        partitions: the number of partitions of each topic.
        report: makes the findings.
    """
    if not sample:
        yield report.skipped("there are no frames to check")
        return
    homes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for each in sample:
        homes[each.partition.topic, each.source_id].add(each.partition.partition)
    split = sorted(source for source, found in homes.items() if len(found) > 1)
    summary = f"{len(homes)} sources in the newest {len(sample)} frames"
    if split:
        names = ", ".join(
            f"{source} in partitions {_listed(homes[topic, source])} of {topic}" for topic, source in split[:_SHOWN]
        )
        more = f" and {len(split) - _SHOWN} more" if len(split) > _SHOWN else ""
        yield report.problem(
            f"{summary}; {len(split)} of them are in several partitions, so their order is not kept: {names}{more}",
            "let every producer send the source ID as key, with partitioner=murmur2_random (Java's default); frames "
            "without a key are spread over all partitions. After partitions were added, the problem ends by itself",
        )
        return
    if max(partitions.values()) == 1:
        yield report.ok(f"{summary}; there is one partition")
        return
    keyed = [each for each in sample if each.key is not None and partitions[each.partition.topic] > 1]
    misplaced = [each for each in keyed if murmur2(each.key or b"") % partitions[each.partition.topic] != _number(each)]
    if not misplaced:
        unkeyed = "" if keyed else " (none has a key, so this may be chance)"
        yield report.ok(f"{summary}, each in one partition, where murmur2_random puts it{unkeyed}")
    else:
        crc = all(zlib.crc32(each.key or b"") % partitions[each.partition.topic] == _number(each) for each in misplaced)
        yield report.warning(
            f"{summary}, each in one partition, but {len({each.source_id for each in misplaced})} not in the one that "
            f"Java's partitioner chooses{' (in that of librdkafka, consistent_random)' if crc else ''}: a second "
            "producer with another partitioner would split them",
            "set partitioner=murmur2_random at producers that use librdkafka, before others join them",
        )


def clocks(sample: Sequence[SampledFrame], report: Reporter) -> Iterator[Finding]:
    """Compare the clocks of producers and brokers with the local clock: capture times and latencies depend on them."""
    stamped = [each for each in sample if each.timestamp_ms is not None]
    if not stamped:
        yield report.skipped("there are no frames with timestamps to compare with the local clock")
        return
    for by_broker, whose in ((True, "the brokers' clock"), (False, "a producer's clock")):
        if frames := [each for each in stamped if each.by_broker is by_broker]:
            yield from _clock(frames, whose, report)


def _clock(frames: Sequence[SampledFrame], whose: str, report: Reporter) -> Iterator[Finding]:
    ahead = max(frames, key=lambda each: each.ahead_ms)
    live = [each for each in frames if each.live]
    nearest = max(live, key=lambda each: each.ahead_ms, default=None)
    fix = "synchronise the clocks (NTP); until then latencies and max_frame_age_ms are wrong by this difference"
    if ahead.ahead_ms > _AHEAD_MS:
        yield report.warning(
            f"{whose} is at least {ahead.ahead_ms / 1000:.1f} s ahead of the local clock, by the timestamp of a frame "
            f"of {ahead.source_id}",
            fix,
        )
    elif nearest is not None and nearest.ahead_ms < -_LATE_MS:
        yield report.warning(
            f"frames that have just arrived are at least {-nearest.ahead_ms / 1000:.1f} s old by their timestamps: "
            f"{whose} is behind the local clock, or they are sent late",
            fix,
        )
    elif nearest is not None:
        yield report.ok(
            f"{whose} and the local clock agree within {abs(nearest.ahead_ms)} ms, by {len(live)} frames that arrived"
        )
    else:
        yield report.ok(
            f"{whose} is not ahead of the local clock, by the timestamps of {len(frames)} frames (no frame arrived "
            "meanwhile, so it is not known whether it is behind)"
        )


def _number(each: SampledFrame) -> int:
    return each.partition.partition


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
