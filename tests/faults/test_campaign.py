"""The plan of a campaign and the page that it writes."""

from __future__ import annotations

import collections
import itertools
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import core
from campaign import HARMS, plan
from report import render
from scenario import DELIVERIES, PROTOCOLS, Spec

FACTS = {"rate": 100.0, "sources": 12, "partitions": 4, "session": 3.0, "batch": 16, "death": 384, "ring": 64}
FACTS |= {"before": 1.0, "after": 6.0}
CORE = "0123456789ab"


def row(spec: str = "sigkill:at_least_once:classic:1", **more: Any) -> dict[str, Any]:
    zeros = dict.fromkeys(["lost", "wrong", "repeats", "explained", "late", "out_of_order", "commit_ahead"], 0)
    plain = {"frames": 1000, "samples": 50, "recoveries_s": [1.0], "exit_codes": [], "violations": [], "put_out": 0}
    kept = {"at": "2026-01-02T03:04Z", "commit": "abc", "core": CORE, "spec": spec, "seconds": 30.0, "stale_answers": 0}
    return {**kept, **zeros, **plain, "memory_mib": 200, "memory_allowed_mib": 400, **more}


def test_a_specification_is_read_as_it_was_printed() -> None:
    spec = Spec("sigstop", "exactly_once", "consumer", 4711)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["sigstop", "sigstop:sometimes:classic:1", "sigstop:at_least_once:classic:x"])
def test_a_wrong_specification_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sigstop"):
        Spec.parse(text)


def test_a_campaign_goes_on_with_what_was_run_least() -> None:
    """Catches: short campaigns that all begin with the same harms, so that the rest is never run."""
    harms = [HARMS["sigkill"], HARMS["broker-pause"]]
    rows = [row(f"sigkill:{delivery}:{protocol}:1") for delivery in DELIVERIES for protocol in PROTOCOLS]
    specs = list(itertools.islice(plan(rows, harms, random.Random(1)), 12))
    assert {spec.harm for spec in specs[:4]} == {"broker-pause"}
    assert set(collections.Counter((s.harm, s.delivery, s.protocol) for s in specs[4:]).values()) == {1}
    assert len({spec.seed for spec in specs}) == 12


def test_the_same_seed_makes_the_same_plan() -> None:
    first, second = (list(itertools.islice(plan([], list(HARMS.values()), random.Random(7)), 9)) for _ in range(2))
    assert first == second


def test_the_page_adds_up_what_was_run() -> None:
    rows = [
        row(recoveries_s=[1.0, 3.0]),
        row(
            "sigkill:at_least_once:consumer:2",
            repeats=7,
            explained=96,
            late=2,
            recoveries_s=[2.0],
            exit_codes=[5],
            put_out=3,
            memory_mib=300,
        ),
        row("sigstop:exactly_once:classic:3", seconds=3600.0),
        {"at": "", "commit": "abc", "core": CORE, "spec": "disk-full:at_least_once:classic:4", "void": "no cluster"},
    ]
    page = render(rows, FACTS, CORE)
    assert "3 runs so far (2 with `group.protocol=classic`, 1 with `group.protocol=consumer`)" in page
    assert "3,000 frames, 1 h 1 min; 1 more void" in page
    assert "| sigkill | 2 | 2,000 | 0 | 0 | 7 | 96 | 2 | 0 | 0 of 100 | 2.0 | 3.0 | 3.0 | 1 | 300 of 400 |" in page
    assert "| sigstop | 1 | 1,000 | 0 | 0 | 0 | 0 | 0 | 0 | 0 of 50 | 1.0 | 1.0 | 1.0 | 0 | 200 of 400 |" in page
    assert "None." in page
    assert "- `disk-full:at_least_once:classic:4` at abc: no cluster" in page
    assert "ended with exit code 7: 3." in " ".join(page.split())


def test_the_page_lists_each_violation_with_its_specification_until_a_person_explains_it() -> None:
    bad = row(lost=1, violations=["loss: input 0@3 of cam-1 has no outcome"])
    page = render([bad], FACTS, CORE)
    assert "- `sigkill:at_least_once:classic:1` at abc: loss: input 0@3 of cam-1 has no outcome. **Open.**" in page
    assert "Fixed in def." in render([{**bad, "note": "Fixed in def."}], FACTS, CORE)


def test_the_page_counts_only_runs_of_the_code_as_it_is_now() -> None:
    """Catches: figures of code that is gone, added to those of the code that a reader has."""
    old = row(commit="old", core="another", lost=5, violations=["loss: input 0@3 of cam-1 has no outcome"])
    oldest = {name: value for name, value in row(commit="oldest").items() if name not in {"core", "memory_mib"}}
    void = {"at": "", "commit": "old", "core": "another", "spec": "sigkill:at_least_once:classic:4", "void": "broken"}
    page = " ".join(render([old, oldest, void, row(), row(commit="def")], FACTS, CORE).split())
    assert f"of the delivery core {CORE}, the code as it is now" in page
    assert "Commits that were run, with their runs: abc (1), def (1)." in page
    assert "3 runs of earlier cores, 1 of them with violations, are kept in `faults.jsonl` and count" in page
    assert "2 runs so far" in page
    assert "2,000 frames" in page
    assert "0 more void" in page
    assert "0@3" not in page
    assert "| sigkill | 2 | 2,000 | 0 |" in page


def test_the_page_of_a_core_that_was_not_run_yet() -> None:
    page = " ".join(render([row(core="another")], FACTS, CORE).split())
    assert "with their runs: none yet. 1 runs of earlier cores" in page
    assert "0 runs so far" in page
    assert "No runs yet." in page


def copied(place: Path) -> Path:
    return Path(shutil.copytree(core.PACKAGE, place / "consumer", ignore=shutil.ignore_patterns("__pycache__")))


def test_the_digest_of_the_core_changes_with_its_code(tmp_path: Path) -> None:
    """Catches: a list of files that forgets one that is new, and figures of code that has changed since."""
    package = copied(tmp_path)
    assert core.digest(package) == core.digest()
    (package / "kafka" / "brand_new.py").write_text("x = 1\n")
    added = core.digest(package)
    (package / "kafka" / "brand_new.py").write_text("x = 2\n")
    changed = core.digest(package)
    (package / "kafka" / "brand_new.py").write_text("from math import sqrt as x\n")
    assert len({core.digest(), added, changed, core.digest(package)}) == 4


def test_the_digest_of_the_core_does_not_change_when_definitions_move(tmp_path: Path) -> None:
    """Catches: a campaign of hours that counts for nothing after a module was split or renamed."""
    package = copied(tmp_path)
    (package / "pipeline.py").rename(package / "kafka" / "loop.py")
    main = package / "app.py"
    main.write_text(main.read_text().replace("consumer.pipeline", "consumer.kafka.loop"))
    assert "consumer.kafka.loop" in main.read_text()
    assert core.digest(package) == core.digest()


def test_the_digest_of_the_core_does_not_change_with_words_or_tools(tmp_path: Path) -> None:
    """Catches: a campaign of hours that counts for nothing after a comment was improved."""
    package = copied(tmp_path)
    for path in [package / "pipeline.py", package / "config" / "options.py"]:
        path.write_text(path.read_text().replace('"""', '"""Other words. ', 1) + "\n# A comment.\n")
    options = package / "config" / "options.py"
    options.write_text(options.read_text().replace("Encoded bytes of one frame at most.", "Other words."))
    (package / "tools" / "more.py").write_text("x = 1\n")
    assert core.digest(package) == core.digest()


def test_what_the_digest_leaves_out_must_exist(tmp_path: Path) -> None:
    """Catches: a module that was left out, is renamed, and counts from then on without anyone having decided it."""
    package = copied(tmp_path)
    (package / "observability" / "tracing.py").rename(package / "observability" / "traces.py")
    with pytest.raises(ValueError, match=r"no observability/tracing\.py"):
        core.digest(package)
