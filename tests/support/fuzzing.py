"""Fuzz runs in processes of their own, so that a crash in a native library is a failure of its seed and not of pytest.

`python fuzzing.py MINUTES` (`make fuzz FUZZ_MINUTES=10`) goes on from seeds that no run had before, and keeps what
fails in tests/fuzz/kept, from where every later test run repeats it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgpack

import fuzz_images
import fuzz_records
from consumer.types import Record

Kind = Literal["strict", "lenient", "records"]
KINDS: tuple[Kind, ...] = ("strict", "lenient", "records")
ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "tests" / "fuzz" / "kept"
# A process that stays at one seed for so long hangs. Its own clock says so earlier, if it is alive.
_HANGS_S = 30.0
_STARTS_S = 120.0


@dataclass
class Report:
    """What became of a range of seeds. `failures`: what was wrong with which."""

    kind: Kind
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    slowest_s: float = 0.0
    growth_mib: float = 0.0

    def __str__(self) -> str:
        figures = f"slowest {self.slowest_s * 1000:.0f} ms, memory +{self.growth_mib:.0f} MiB"
        return f"{self.kind}: {self.outcomes.total()} cases, {figures}, {dict(self.outcomes.most_common())}"


@dataclass
class _Child:
    """One process on its way through [first, stop)."""

    first: int
    stop: int
    process: subprocess.Popen[str]
    progress: Path
    log: Path
    at: int | None = None
    since: float = 0.0

    @property
    def seed(self) -> int | None:
        """Where it is; None while it starts."""
        told = self.progress.read_bytes()
        return int.from_bytes(told, "little") if told else None

    def hangs(self) -> bool:
        at, now = self.seed, time.monotonic()
        if at != self.at:
            self.at, self.since = at, now
        return now - self.since > (_STARTS_S if at is None else _HANGS_S)


def fuzz(kind: Kind, first: int, count: int, *, seconds: float = 3600, processes: int = 2) -> Report:
    """Run these seeds. A process that dies is followed by another one behind the seed that killed it."""
    report = Report(kind)
    ends = time.monotonic() + seconds
    share = -(-count // processes)
    with tempfile.TemporaryDirectory(prefix="sluice-fuzz-") as folder:
        spans = [(start, min(start + share, first + count)) for start in range(first, first + count, share)]
        running = [_start(kind, *span, seconds, Path(folder)) for span in spans]
        try:
            while running:
                for child in list(running):
                    if child.process.poll() is None and not child.hangs():
                        continue
                    running.remove(child)
                    after = _collect(report, child)
                    if after < child.stop and (left := ends - time.monotonic()) > 0:
                        running.append(_start(kind, after, child.stop, left, Path(folder)))
                time.sleep(0.05)
        finally:
            for child in running:
                child.process.kill()
                child.process.wait()
    return report


def _start(kind: Kind, first: int, stop: int, seconds: float, folder: Path) -> _Child:
    progress, log = folder / f"{first}.at", folder / f"{first}.log"
    progress.write_bytes(b"")
    arguments = [kind, str(first), str(stop - first), f"{seconds:.1f}", str(progress)]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("fuzz_child.py")), *arguments],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    return _Child(first, stop, process, progress, log, since=time.monotonic())


def _collect(report: Report, child: _Child) -> int:
    """Take what a process that has ended, or hangs, has to say into the report; returns the seed to go on with."""
    hung = child.process.poll() is None
    if hung:
        child.process.send_signal(signal.SIGABRT)  # faulthandler writes where it hangs
    try:
        said, _ = child.process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        child.process.kill()
        said, _ = child.process.communicate()
    if child.process.returncode == 0:
        body = json.loads(said)
        report.outcomes.update(body["outcomes"])
        report.failures.update(body["failures"])
        report.slowest_s = max(report.slowest_s, body["slowest_s"])
        report.growth_mib = max(report.growth_mib, body["growth_mib"])
        return child.stop
    # What it had counted before is lost with it; the seeds are not, and a failed run is repeated anyway.
    at = child.first if child.seed is None else child.seed
    what = "hung" if hung else f"killed the process ({child.process.returncode})"
    report.failures[at] = f"{what}\n{child.log.read_text(errors='replace')[-2000:]}"
    return at + 1


def keep(report: Report) -> list[Path]:
    """Write the cases that failed to tests/fuzz/kept: there they stay, also when the generators change."""
    kept = []
    for seed in report.failures:
        case = fuzz_records.record(seed) if report.kind == "records" else fuzz_images.image(seed)
        content = case if isinstance(case, bytes) else packed(case)
        kind = "record" if report.kind == "records" else "image"
        path = KEPT / f"{kind}-{hashlib.sha256(content).hexdigest()[:12]}"
        path.write_bytes(content)
        kept.append(path)
    return kept


def packed(record: Record) -> bytes:
    """A record as a file."""
    fields = (record.key, record.value, [list(header) for header in record.headers], record.timestamp_ms)
    content: bytes = msgpack.packb(fields)
    return content


def unpacked(content: bytes) -> Record:
    key, value, headers, timestamp_ms = msgpack.unpackb(content)
    return Record(key, value, tuple((name, part) for name, part in headers), timestamp_ms)


def main(arguments: Sequence[str]) -> int:
    """For so many minutes, a third of them for each kind; 1 where something failed."""
    minutes = float(arguments[0]) if arguments else 10.0
    failed = 0
    for kind in KINDS:
        first = random.SystemRandom().randrange(2**20, 2**62)
        print(f"{kind}: from seed {first}", flush=True)
        report = fuzz(kind, first, 2**31, seconds=minutes * 60 / len(KINDS), processes=os.cpu_count() or 2)
        print(report, flush=True)
        for (seed, what), path in zip(report.failures.items(), keep(report), strict=True):
            print(f"seed {seed}: {what}\n  kept as {path}", flush=True)
        failed += len(report.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
