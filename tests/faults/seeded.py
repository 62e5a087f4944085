"""Run the seeded bugs on real brokers, each under the harm that is named for it, until the rig catches it.

seeded.py                    every bug, five runs at most; then writes docs/seeded-bugs.md
seeded.py --minutes 9 NAME   these bugs only, as far as the time goes; the others keep what was found before
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bugs import BUGS, planted
from campaign import HARMS, Lab
from scenario import PROTOCOLS, Delivery, Spec, run
from schedules import SCHEDULES, first_violation, without_logs
from sluice_entry import BUG

ROOT = Path(__file__).resolve().parents[2]
FOUND, PAGE = ROOT / "docs/seeded-bugs.json", ROOT / "docs/seeded-bugs.md"
RUNS = 5
_LONGEST_S = 75.0  # no run is begun with less time left

_INTRODUCTION = """\
# The rig, tried on wrong designs

Written by `tests/faults/seeded.py`. Each line is a bug that `tests/faults/bugs.py` plants in the program from outside.
*Virtual time*: of five runs of two hundred schedules of the core (`tests/faults/test_bugs.py`, in `make test`), how
many caught it; `-`: it is in code that the schedules do without. *Real brokers*: the run, of five at most, in which the
fault rig caught it, under which harm, and the first violation that it named. Two bugs without a harm live where only a
schedule can lead: an assignment that goes and comes back while its batch is in the engine. `late-flush-in-doubt` costs
time and breaks no promise that the rig judges. All bugs of `tests/faults/output_bugs.py` are tried in
`tests/faults/test_output_bugs.py` as well: there each is caught by one deterministic check of the code that it changes.

| bug | breaks | virtual time | real brokers | the first violation |
| --- | --- | --- | --- | --- |
"""

_NOTES = """
`commit-over-a-gap` went through five runs of `sigkill` unseen: it needs acknowledgements that overtake each other, as a
paused broker brings them. `no-rewind-after-abort` was caught when EndTxn was held for nine seconds at most; it is held
for up to sixteen now, as a transaction is given up after ten. `write-twice` is found by the program itself, which ends.
`in-doubt-counts-as-rolled-back` went through five runs of `net-end-txn-held` unseen: brokers refuse a commit that comes
late. It needs one that was done and not answered. `no-topic-watch` went unseen while the new topic was shorter than the
old one, or had other leaders: both make the client ask where to begin. With `group.protocol=consumer` the coordinator
takes the partitions of a deleted topic away, and the bug does no harm. `held-outcome-keeps-its-batch` went through five
runs of an earlier `camera-backlog` unseen: its member read one partition at a time, and paused; little overtakes a
backlog then.
"""


def in_virtual_time(name: str) -> int:
    """Of `RUNS` runs, how many catch it."""
    with without_logs(), planted(name):
        return sum(bool(first_violation(SCHEDULES[BUGS[name].delivery], seed)) for seed in range(RUNS))


def on_brokers(name: str, lab: Lab, ends_s: float) -> dict[str, Any] | None:
    """The run that catches it, or how many did not; None where the time was over before that was known."""
    bug = BUGS[name]
    delivery: Delivery = "exactly_once" if bug.delivery == "exactly_once" else "at_least_once"
    for number in range(1, RUNS + 1):
        if time.monotonic() + _LONGEST_S > ends_s:
            return None
        spec = Spec(bug.harm, delivery, bug.protocol or random.choice(PROTOCOLS), random.randrange(2**32))
        done = run(spec, HARMS[bug.harm], lab.cluster(), {BUG: name})
        said = [str(each) for each in done.verdict.violations]
        memory = f"{done.verdict.memory_bytes >> 20} MiB at most"
        print(f"{name} {spec}: {len(said)} violations in {done.took_s:.0f} s, {memory}, {said[:1]}", flush=True)
        if said:
            return {"run": number, "spec": str(spec), "violations": len(said), "first": said[0]}
    return {"run": 0}


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    return _INTRODUCTION + "".join(f"| {' | '.join(_cells(name, found.get(name, {})))} |\n" for name in BUGS) + _NOTES


def _cells(name: str, found: Mapping[str, Any]) -> Iterable[str]:
    bug, real = BUGS[name], found.get("real")
    yield f"`{name}`"
    yield bug.breaks
    yield f"{found['virtual']} of {RUNS}" if "virtual" in found else "not run" if bug.virtual else "-"
    if not bug.harm:
        yield "-"
    elif real is None:
        yield "not run"
    else:
        yield f"run {real['run']}, `{bug.harm}`" if real["run"] else f"**not in {RUNS} runs**, `{bug.harm}`"
    yield str(real["first"]).replace("|", "/")[:160] if real and real["run"] else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120, help="how long at most (default: 120)")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BUGS)}; all where none is given")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, and unmounts the small disks
    ends_s = time.monotonic() + chosen.minutes * 60
    found: dict[str, dict[str, Any]] = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    lab, missed = Lab(), 0
    try:
        for name in chosen.names or BUGS:
            about = found.setdefault(name, {})
            if BUGS[name].virtual:
                about["virtual"] = in_virtual_time(name)
            if BUGS[name].harm and (real := on_brokers(name, lab, ends_s)) is not None:
                about["real"] = real
                missed += not real["run"]
            FOUND.write_text(json.dumps(found, indent=1) + "\n")
            PAGE.write_text(render(found))
    finally:
        lab.close()
    return missed


if __name__ == "__main__":
    sys.exit(main())
