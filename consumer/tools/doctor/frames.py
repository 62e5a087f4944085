"""Judges a sample of the newest frames: is each source in one partition, and what do the clocks say?"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from consumer.tools.doctor.findings import Finding, Reporter
from consumer.tools.doctor.sample import SampledFrame

_SHOWN = 3
_AHEAD_MS = 1000  # clocks that are kept by NTP differ by a few milliseconds
_LATE_MS = 10_000


def murmur2(key: bytes) -> int:
    """The hash by which Java clients, and librdkafka's `murmur2_random`, choose the partition of a key. 31 bits."""
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


def partitioning(seen: Sequence[SampledFrame], partitions: Mapping[str, int], report: Reporter) -> Iterator[Finding]:
    """Order is kept within a partition only. `partitions`: how many each topic has."""
    if not seen:
        yield report.skipped("there are no frames to look at")
        return
    homes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for each in seen:
        homes[each.partition.topic, each.source_id].add(each.partition.partition)
    split = sorted(source for source, found in homes.items() if len(found) > 1)
    told = f"{len(homes)} sources in the newest {len(seen)} frames"
    if split:
        names = ", ".join(
            f"{source} in partitions {_listed(homes[topic, source])} of {topic}" for topic, source in split[:_SHOWN]
        )
        more = f" and {len(split) - _SHOWN} more" if len(split) > _SHOWN else ""
        yield report.problem(
            f"{told}; {len(split)} of them lie in several partitions, so their order is not kept: {names}{more}",
            "let every producer send the source ID as key, with partitioner=murmur2_random (Java's default); frames "
            "without a key are spread over all partitions. If partitions were added lately, it passes by itself",
        )
        return
    if max(partitions.values()) == 1:
        yield report.ok(f"{told}; there is one partition")
        return
    keyed = [each for each in seen if each.key is not None and partitions[each.partition.topic] > 1]
    strays = [each for each in keyed if murmur2(each.key or b"") % partitions[each.partition.topic] != _number(each)]
    if not strays:
        unkeyed = "" if keyed else " (none has a key: this may be chance)"
        yield report.ok(f"{told}, each in one partition, where murmur2_random puts it{unkeyed}")
    else:
        crc = all(zlib.crc32(each.key or b"") % partitions[each.partition.topic] == _number(each) for each in strays)
        yield report.warning(
            f"{told}, each in one partition, but {len({each.source_id for each in strays})} not in the one that Java's "
            f"partitioner chooses{' (in that of librdkafka, consistent_random)' if crc else ''}: a second producer of "
            "another kind would split them",
            "set partitioner=murmur2_random at producers that use librdkafka, before another kind joins them",
        )


def clocks(seen: Sequence[SampledFrame], report: Reporter) -> Iterator[Finding]:
    """Capture times, ages and latencies compare the clocks of producers or brokers with ours."""
    stamped = [each for each in seen if each.timestamp_ms is not None]
    if not stamped:
        yield report.skipped("there are no frames whose timestamps could be compared with our clock")
        return
    for by_broker, whose in ((True, "the brokers' clock"), (False, "a producer's clock")):
        if frames := [each for each in stamped if each.by_broker is by_broker]:
            yield from _clock(frames, whose, report)


def _clock(frames: Sequence[SampledFrame], whose: str, report: Reporter) -> Iterator[Finding]:
    ahead = max(frames, key=lambda each: each.ahead_ms)
    live = [each for each in frames if each.live]
    nearest = max(live, key=lambda each: each.ahead_ms, default=None)
    fix = "synchronise the clocks (NTP); until then latencies and max_frame_age_ms are wrong by this"
    if ahead.ahead_ms > _AHEAD_MS:
        yield report.warning(
            f"{whose} is {ahead.ahead_ms / 1000:.1f} s ahead of ours at least: a frame of {ahead.source_id} comes "
            "from the future",
            fix,
        )
    elif nearest is not None and nearest.ahead_ms < -_LATE_MS:
        yield report.warning(
            f"frames that came in just now say that they are {-nearest.ahead_ms / 1000:.1f} s old at least: {whose} is "
            "behind ours, or they are sent late",
            fix,
        )
    elif nearest is not None:
        yield report.ok(f"{whose} and ours agree within {abs(nearest.ahead_ms)} ms, by {len(live)} frames that came in")
    else:
        yield report.ok(
            f"{whose} is not ahead of ours, by the timestamps of {len(frames)} frames (nothing came in meanwhile, so "
            "whether it is behind is not known)"
        )


def _number(each: SampledFrame) -> int:
    return each.partition.partition


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
