"""The process that a fuzz run may crash: `python fuzz_child.py KIND FIRST COUNT SECONDS PROGRESS`.

KIND is strict, lenient (images) or records. It works through the seeds from FIRST on, until COUNT are done or SECONDS
are over, and prints a report as JSON. PROGRESS always holds the seed that it is at, for whoever finds it dead or hung.
"""

from __future__ import annotations

import collections
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fuzz_images
import fuzz_records
import images
from consumer import messages as wire
from consumer.config import DecodeConfig
from consumer.decoding import Decoder, configure_opencv
from consumer.types import REASONS, Frame, Letterbox, LetterboxPolicy, Record, Rejected
from wire_records import check_frame

MAX_SECONDS = 1.0  # of one case. CPU time: a neighbour on the machine is not a hang
MAX_GROWTH_MIB = 64.0  # of the whole process, over all cases
MAX_PIXELS = 2**21  # a camera's 1920x1080: the limit that the memory is bounded for
_NOTICEABLE_MIB = 16.0  # what a later case must add to be blamed too
_CEILING = 8 * 2**30  # bytes of address space: a case that wants more fails by itself, and not the machine
_CANARY = 0xA5
_MARGIN = 4096

Check = Callable[[Any], str]


def decode_check(*, strict: bool) -> Check:
    """Decode into a guarded slot: the outcome's name. AssertionError for one that is none, and for a stray write."""
    tested = Decoder(DecodeConfig(strict=strict, max_pixels=MAX_PIXELS), LetterboxPolicy(320))
    memory = np.full(tested.slot_bytes + 2 * _MARGIN, _CANARY, np.uint8)
    slot = memory[_MARGIN:-_MARGIN]

    def check(payload: bytes) -> str:
        outcome = tested.decode(payload, slot)
        assert (memory[:_MARGIN] == _CANARY).all(), "written before the slot"
        assert (memory[-_MARGIN:] == _CANARY).all(), "written behind the slot"
        if isinstance(outcome, Letterbox):
            assert 0 < outcome.width * outcome.height <= MAX_PIXELS, outcome
            return "picture"
        assert isinstance(outcome, Rejected)
        assert outcome.stage == "decode"
        assert outcome.reason in REASONS, outcome
        assert outcome.detail.isprintable(), outcome
        assert len(outcome.detail) < 300, outcome
        return outcome.reason

    for warm in (images.jpeg(1280, 720), images.png(320, 240), images.webp(640, 480)):
        check(warm)
    return check


def parse_check(record: Record) -> str:
    """Parse the record, and write the dead letter where it is rejected: the outcome's name."""
    frame: Frame = check_frame(record)
    if not isinstance(frame.verdict, Rejected):
        return "frame"
    letter = wire.encode_dead_letter(frame, frame.verdict, source="/sluice/g", max_bytes=100_000, now_ms=1)
    read = wire.read_dead_letter(Record(letter.key, letter.value, tuple(letter.headers), letter.timestamp_ms))
    assert read is not None
    assert read.reason == frame.verdict.reason
    return frame.verdict.reason


def peak_mib() -> float:
    """The most memory that this process has had resident. Not from getrusage, which counts the parent's before exec."""
    return status_mib("VmHWM")


def status_mib(field: str) -> float:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def cost(check: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and MiB at the most that one check takes, wherever it runs. Raises what the check does."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_mib("VmRSS")
    started = time.thread_time()
    check()
    return time.thread_time() - started, peak_mib() - before


def run(kind: str, first: int, count: int, seconds: float, progress: int) -> dict[str, Any]:
    configure_opencv()
    check: Check = parse_check if kind == "records" else decode_check(strict=kind == "strict")
    make: Callable[[int], Any] = fuzz_records.record if kind == "records" else fuzz_images.image
    make(first)
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[tuple[int, str]] = []
    baseline = allowed = peak_mib()
    slowest, seed, ends = 0.0, first, time.monotonic() + seconds
    for seed in range(first, first + count):
        os.pwrite(progress, seed.to_bytes(8, "little"), 0)
        if time.monotonic() > ends:
            break
        case = make(seed)
        started = time.thread_time()
        try:
            outcomes[check(case)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, this seed found it
            failures.append((seed, f"{type(error).__name__}: {error}"[:500]))
        took = time.thread_time() - started
        slowest = max(slowest, took)
        if took > MAX_SECONDS:
            failures.append((seed, f"took {took:.1f} s"))
        if (peak := peak_mib()) > max(baseline + MAX_GROWTH_MIB, allowed):
            failures.append((seed, f"grew the process by {peak - baseline:.0f} MiB"))
            allowed = peak + _NOTICEABLE_MIB
    return {
        "cases": outcomes.total(),
        "next": seed + 1,
        "outcomes": dict(outcomes),
        "failures": failures,
        "slowest_s": slowest,
        "growth_mib": peak_mib() - baseline,
    }


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_CEILING, _CEILING))
    kind, first, count, seconds, path = sys.argv[1:]
    report = run(kind, int(first), int(count), float(seconds), os.open(path, os.O_RDWR | os.O_CREAT))
    print(json.dumps(report))
