"""`make faults`: random runs of the rig for a time, in both delivery modes and over both group protocols.

    campaign.py --minutes 120                  goes on where the last campaign of this delivery core ended
    campaign.py --minutes 9 --only sigstop,broker-pause
    campaign.py --replay sigstop:at_least_once:classic:4711

Every run is a line of `docs/faults.jsonl`; `docs/faults.md` is made after each, from the runs of the delivery core
as it is now. A violation
stops nothing: it is listed with its specification, its history and logs are kept in `.faults/`, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime as dt
import json
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import admin_faults
import broker_faults
import core
import death_faults
import decode_faults
import double_faults
import engine_faults
import network_faults
import outage_faults
import process_faults
import record_faults
import size_faults
from apache_kafka import ApacheKafka, mount_small_disk, unmount
from kafka_jars import KafkaUnavailableError
from report import render, row
from scenario import (
    BATCH,
    BROKER_SETTINGS,
    DELIVERIES,
    EXPOSURE,
    FRAMES_PER_S,
    PARTITIONS,
    PROTOCOLS,
    REPEATS_PER_DEATH,
    REPEATS_PER_RING,
    SESSION_S,
    SOURCES,
    Harm,
    Run,
    Spec,
    run,
)
from sluice_entry import BUG

ROOT = Path(__file__).resolve().parents[2]
ROWS, PAGE, KEPT = ROOT / "docs/faults.jsonl", ROOT / "docs/faults.md", ROOT / ".faults"
MODULES = (
    process_faults,
    broker_faults,
    network_faults,
    engine_faults,
    admin_faults,
    outage_faults,
    size_faults,
    record_faults,
    decode_faults,
    death_faults,
    double_faults,
)
HARMS: Mapping[str, Harm] = {harm.name: harm for module in MODULES for harm in module.HARMS}
_DISK_MIB = 768
_LONGEST_S = 60.0  # a run is not begun with less time left, or less than the longest so far took
_FACTS = {
    "rate": FRAMES_PER_S,
    "sources": SOURCES,
    "partitions": PARTITIONS,
    "session": SESSION_S,
    "batch": BATCH,
    "death": REPEATS_PER_DEATH,
    "ring": REPEATS_PER_RING,
    "before": EXPOSURE.before_s,
    "after": EXPOSURE.after_s,
}


class Lab:
    """The cluster of a campaign. One that a run has left broken is thrown away, and the next run gets a new one."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._cluster: ApacheKafka | None = None
        self._small_disks = can_fill_disks()

    def cluster(self) -> ApacheKafka:
        """Three healthy nodes with small disks."""
        if self._cluster is None:
            cluster = ApacheKafka(3, proxied=True, **BROKER_SETTINGS)
            if self._small_disks:
                cluster.limit_disks(_DISK_MIB)
            self._cluster = self._stack.enter_context(cluster)
        return self._cluster

    def close(self) -> None:
        self._stack.close()
        self._cluster = None


def can_fill_disks() -> bool:
    """Whether this user may mount the small disks that `disk-full` fills."""
    with tempfile.TemporaryDirectory() as place:
        try:
            mount_small_disk(Path(place), 1)
        except KafkaUnavailableError:
            return False
        unmount(Path(place))
    return True


def plan(rows: Sequence[Mapping[str, Any]], harms: Sequence[Harm], chance: random.Random) -> Iterator[Spec]:
    """Specifications without end: by chance, of the combinations (harm, delivery, protocol) with the fewest runs."""
    combinations = [
        (harm.name, delivery, protocol) for harm in harms for delivery in harm.deliveries for protocol in PROTOCOLS
    ]
    specs = [Spec.parse(each["spec"]) for each in rows]
    done = collections.Counter((spec.harm, spec.delivery, spec.protocol) for spec in specs)
    while True:
        fewest = min(done[each] for each in combinations)
        chosen = chance.choice([each for each in combinations if done[each] == fewest])
        done[chosen] += 1
        yield Spec(*chosen, seed=chance.randrange(2**32))


def campaign(specs: Iterator[Spec], minutes: float, bug: str) -> int:
    """Runs until the time is over. Returns how many found a violation."""
    ends_s = time.monotonic() + minutes * 60
    longest_s, violated, lab = _LONGEST_S, 0, Lab()
    try:
        for spec in specs:
            if time.monotonic() + longest_s > ends_s:
                break
            found, took_s = _one(spec, lab, bug)
            longest_s = max(longest_s, took_s)
            violated += bool(found.get("violations"))
            if not bug:
                add_row(found)
    finally:
        lab.close()
    return violated


def _one(spec: Spec, lab: Lab, bug: str) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    at, commit, digest = f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%MZ}", _code(), core.digest()
    print(f"{spec} ... ", end="", flush=True)
    try:
        done = run(spec, HARMS[spec.harm], lab.cluster(), {BUG: bug} if bug else None)
    except KafkaUnavailableError:
        raise
    except Exception as error:  # noqa: BLE001 - the rig's own failure is listed, and the campaign goes on
        lab.close()
        print(f"void: {error!r:.500}\n{traceback.format_exc()[-2000:]}", flush=True)
        void = {"at": at, "commit": commit, "core": digest, "spec": str(spec), "void": f"{error!r:.300}"}
        return void, time.monotonic() - began
    edited = _code() != commit, core.digest() != digest
    commit, digest = (
        f"{each}-edited" if changed else each for each, changed in zip((commit, digest), edited, strict=True)
    )
    found = row(done, at=at, commit=commit, core=digest)
    _say(done, found)
    if found["violations"]:
        _keep(done)
    return found, done.took_s


_SAID_ELSEWHERE = {"at", "commit", "core", "spec", "violations"}


def _say(done: Run, found: Mapping[str, Any]) -> None:
    shown = {name: value for name, value in found.items() if name not in _SAID_ELSEWHERE}
    print(" ".join(f"{name}={value}" for name, value in shown.items()), flush=True)
    for violation in done.verdict.violations[:10]:
        print(f"    {violation}", flush=True)
    for each in done.history.exits[:10]:
        print(f"    (ended by itself with {each.code}: {each.last_words[:300]})", flush=True)


def _keep(done: Run) -> None:
    """Keep what a person needs to find the cause."""
    place = KEPT / str(done.spec).replace(":", "-")
    place.mkdir(parents=True, exist_ok=True)
    (place / "history.pickle").write_bytes(pickle.dumps(done.history))  # `check` gives the same verdict again
    for number, (writer, log) in enumerate(done.logs.items()):
        (place / f"member-{number}.log").write_text(f"{writer}\n{log}")
    print(f"    kept in {place.relative_to(ROOT)}", flush=True)


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def add_row(found: Mapping[str, Any]) -> None:
    """Add a line, and make the page again. What another campaign or a person has written meanwhile stays."""
    with ROWS.open("a") as file:
        file.write(json.dumps(found) + "\n")
    write_page()


def write_page() -> None:
    PAGE.write_text(render(read_rows(), _FACTS, core.digest()))


def _code() -> str:
    """The commit that is run, "-dirty" where something else is; the campaign's own pages do not count."""

    def git(*arguments: str) -> str:
        said = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return said.stdout.strip()

    ours = [f":!{path.relative_to(ROOT)}" for path in (ROWS, PAGE, KEPT)]
    commit = git("rev-parse", "--short", "HEAD")
    return (commit + ("-dirty" if git("status", "--porcelain", "--", ".", *ours) else "")) or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120, help="how long (default: 120)")
    parser.add_argument("--only", default="", help=f"harms, comma-separated, of {', '.join(HARMS)}")
    parser.add_argument("--delivery", default="", choices=["", *DELIVERIES], help="this one only")
    parser.add_argument("--seed", type=int, help="of the choice of runs; each run has its own besides")
    parser.add_argument("--replay", type=Spec.parse, metavar="SPEC", help="one run, as it was printed")
    parser.add_argument("--bug", default="", help="a seeded bug of bugs.py; nothing is written to docs/ then")
    parser.add_argument("--report", action="store_true", help="only make docs/faults.md again")
    chosen = parser.parse_args(arguments)
    if chosen.report:
        write_page()
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmounts and ends what was started
    if chosen.replay:
        return int(campaign(iter([chosen.replay]), 60, chosen.bug) > 0)
    harms = [HARMS[name] for name in chosen.only.split(",")] if chosen.only else list(HARMS.values())
    if chosen.delivery:
        harms = [dataclasses.replace(harm, deliveries=(chosen.delivery,)) for harm in harms]
    if not can_fill_disks():
        print("disk-full is left out: it takes the right to mount small disks (root)", flush=True)
        harms = [harm for harm in harms if harm.name != "disk-full"]
    seed = chosen.seed if chosen.seed is not None else random.randrange(2**32)
    print(f"campaign of {chosen.minutes:g} minutes, seed {seed}", flush=True)
    current = core.digest()
    ours = [each for each in read_rows() if each.get("core") == current]
    return int(campaign(plan(ours, harms, random.Random(seed)), chosen.minutes, chosen.bug) > 0)


if __name__ == "__main__":
    sys.exit(main())
