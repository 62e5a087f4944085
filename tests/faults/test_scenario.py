"""What the rig itself must not get wrong: a harm that does not strike, and the memory of a process."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from campaign import HARMS as CAMPAIGN
from consumer.decoding import Decoder
from consumer.decoding.processes.process import Process
from fleet import Member
from history import History
from memory import base_bytes, peak_bytes
from process_faults import HARMS
from scenario import EXPOSURE, REPEATS_PER_DEATH, REPEATS_PER_RING, Spec, World, member_options, new_history
from sluice_entry import DIE_AT, LAST_WORDS, STAGES

MIB = 2**20


class FakeSluice:
    """A process that was told to kill itself."""

    model = "fake"

    def __init__(self, *, running: bool, code: int = -signal.SIGKILL, log: str = "") -> None:
        self.running, self.code, self.log = running, code, log
        self.variables = {DIE_AT: "decode:3"}

    def wait(self) -> int:
        return self.code


def world() -> World:
    fleet: Any = SimpleNamespace(history=History("at_least_once"), topics=None, tend=lambda: None, bury=lambda _: None)
    recording: Any = SimpleNamespace(observer=None, feeder=None)
    return World(None, fleet, recording, random.Random(1))  # type: ignore[arg-type]


def wait_for(sluice: FakeSluice) -> None:
    world().wait_for_death(Member(0, sluice), 0.01)  # type: ignore[arg-type]


def test_a_doomed_member_that_lives_on_fails_the_run() -> None:
    """Catches: a stage that is never passed, so that its harm strikes nobody and every run of it is sound."""
    with pytest.raises(TimeoutError, match="kill itself"):
        wait_for(FakeSluice(running=True))


def test_a_doomed_member_must_die_in_its_stage() -> None:
    """Catches: a member that ended before, or by something else, and counts as killed in the middle of its work."""
    with pytest.raises(TimeoutError, match="kill itself in decode ended with 1 before"):
        wait_for(FakeSluice(running=False, code=1, log="Traceback"))
    wait_for(FakeSluice(running=False, log=LAST_WORDS.format(stage="decode")))


def test_decoding_has_a_stage_for_processes_and_one_for_threads() -> None:
    """Catches: a patch of the method of the parent that only decodes where there are no processes."""
    options = {harm.name: harm.options for harm in HARMS}
    assert STAGES["decode"][0] is Process
    assert options["sigkill-decode"]["decode.workers"] == "processes"
    assert STAGES["decode_threads"][0] is Decoder
    assert options["sigkill-decode-threads"]["decode.workers"] == "threads"


def test_the_peak_of_a_process_counts_what_it_gave_back_and_its_children() -> None:
    """Catches: memory that is sampled, so that the peak between two samples is missed; and children left out."""
    child = f"print(len(b'x' * {80 * MIB}), flush=True); input()"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE)\n"
        "input()\nchild.communicate(b'x')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        watch = threading.Timer(30, process.kill)
        watch.start()
        assert process.stdout.readline().strip() == str(80 * MIB)  # it is freed by now
        assert 80 * MIB < peak_bytes(process.pid) < 160 * MIB
        process.stdin.write("\n")
        process.stdin.close()
        process.wait()
        watch.cancel()
    assert peak_bytes(process.pid) == 0


def test_the_constant_of_memory_follows_the_options() -> None:
    small = {"batching.max_batch_size": 16, "decode.threads": 2}
    threads = base_bytes({**small, "decode.workers": "threads"})
    assert threads == (96 + 75 + 32 + 64) * MIB
    assert base_bytes({**small, "decode.workers": "processes"}) == threads + 2 * (48 + 16) * MIB
    assert base_bytes({**small, "batching.max_batch_size": 32, "decode.workers": "threads"}) == threads + 75 * MIB


def test_a_run_allows_what_its_harm_explains_and_nothing_else() -> None:
    """Catches: a harm of brokers or networks under which a group may repeat, or processes may end, as they like."""
    killed = new_history(Spec("sigkill", "at_least_once", "classic", 1), CAMPAIGN["sigkill"])
    assert (killed.allowed_repeats, killed.exposure) == (2 * REPEATS_PER_DEATH, None)
    assert (killed.may_exit, killed.may_reject) == (frozenset(), frozenset())
    assert killed.in_flight_limit_bytes == 16 * MIB
    cut = new_history(Spec("net-cut-one", "at_least_once", "classic", 1), CAMPAIGN["net-cut-one"])
    assert (cut.allowed_repeats, cut.exposure) == (2 * 2 * REPEATS_PER_RING, EXPOSURE)
    assert cut.may_exit == {9}
    told = dataclasses.replace(CAMPAIGN["sigkill"], exits=(6,), rejects=("engine",))
    allowed = new_history(Spec("sigkill", "at_least_once", "classic", 1), told)
    assert (allowed.may_exit, allowed.may_reject) == ({6}, {"engine"})


def test_a_harm_that_sets_the_consumer_keeps_the_protocol_of_the_run() -> None:
    """Catches: a harm whose settings replace the protocol, so that both kinds of runs are of one protocol."""
    harm = CAMPAIGN["topic-remade-longer"]
    for protocol, name in (("consumer", "group.protocol"), ("classic", "session.timeout.ms")):
        settings = member_options(Spec.parse(f"{harm.name}:at_least_once:{protocol}:1"), harm)["kafka.consumer"]
        assert {name, "fetch.error.backoff.ms"} <= settings.keys()
        assert ("group.protocol" in settings) == (protocol == "consumer")
