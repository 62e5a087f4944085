"""The consumers of one group, as processes. What ends by itself is started anew, as a pod would be."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from brokers import Broker
from consumer.errors import DrainError
from history import Exit, History, Rebalance, Traceback
from sluice_process import Sluice, Topics

FAULTS = Path(__file__).resolve().parent
PATHS = f"{FAULTS}:{FAULTS.parent / 'support'}"
ENTRY = ("-m", "sluice_entry")
STOP_TIMEOUT_S = 40.0
# Engine: fixed and per-frame milliseconds, so that batches form; the digits behind them name the process.
_ENGINE = "simulated://{fixed}.{number:06d}ms@1,{most}.{number:06d}ms@16{more}"


@dataclass(slots=True)
class Member:
    """One process. `slot` is its place in the fleet, as the ordinal of a pod: its successor has the same."""

    slot: int
    sluice: Sluice
    doomed: bool = False  # a harm means to end it

    @property
    def writer(self) -> str:
        """What its results name as their model: no two processes share it."""
        return self.sluice.model

    @property
    def partitions(self) -> int:
        """Partitions assigned to it now, by its own metrics; 0 while it does not answer."""
        lines = self.sluice.get("/metrics")[1].splitlines()
        shown = (line.split()[-1] for line in lines if line.startswith("sluice_assigned_partitions "))
        return int(float(next(shown, "0")))

    @property
    def ready(self) -> bool:
        return self.sluice.running and self.sluice.get("/readyz")[0] == 200

    def signal(self, number: signal.Signals) -> None:
        self.sluice.signal(number)


@dataclass
class Fleet:
    """Up to a few members. All calls from the thread that made it: processes end with the thread that started them."""

    broker: Broker
    topics: Topics
    group: str
    history: History
    options: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)  # what `sluice_entry` reads, for every member
    engine_ms: tuple[int, int] = (5, 20)  # at a batch of 1, and of 16
    may_expel: bool = False  # a member can lose its place in the group and not know it when it is told to end
    new_ids: bool = False  # no process takes over the transactional ID of the one that it replaces
    engine_faults: str = ""  # appended to the simulated engine's address
    members: list[Member] = field(default_factory=list)
    _gone: list[Member] = field(default_factory=list)

    def start(self, slot: int | None = None, variables: Mapping[str, str] | None = None) -> Member:
        """A new process, in the lowest free slot. It joins the group when it is ready."""
        if slot is None:
            taken = {member.slot for member in self.members}
            slot = next(n for n in range(len(taken) + 1) if n not in taken)
        number = len(self.members) + len(self._gone)
        engine = _ENGINE.format(fixed=self.engine_ms[0], most=self.engine_ms[1], number=number, more=self.engine_faults)
        switches = {**self.variables, **(variables or {})}
        sluice = Sluice(
            self.broker,
            self.topics,
            engine,
            {**self.options, **self._identity(slot, number)},
            group=self.group,
            variables={**switches, "PYTHONPATH": PATHS} if switches else {},
            entry=ENTRY if switches else ("-m", "consumer"),
        )
        member = Member(slot, sluice)
        self.members.append(member)
        sluice.start()
        return member

    def kill(self, member: Member) -> Member:
        """SIGKILL, and a successor at once."""
        self._forget(member)
        member.sluice.kill()
        return self.start(member.slot)

    def retire(self, member: Member) -> None:
        """SIGTERM; the rest of the fleet takes over. An end that is not clean goes into the history."""
        # Before it is ready, it may not have set its signal handlers: then there is nothing to drain either.
        clean = {0} if member.ready else {0, -signal.SIGTERM}
        self._forget(member)
        member.signal(signal.SIGTERM)
        try:
            code = member.sluice.wait(STOP_TIMEOUT_S)
        except AssertionError:
            member.sluice.kill()
            code = -signal.SIGKILL
        # Told to end before it could know that the group had put it out: what it held is the others' already.
        expelled = code == DrainError.exit_code and "no member of its group" in _last_words(member.sluice.log)
        if expelled and self.may_expel:
            self.history.put_out += 1
        elif code not in clean:
            self.history.unclean_ends.append(code)

    def bury(self, member: Member) -> None:
        """A doomed member is dead; an end that was not the one meant for it goes into the history."""
        self._forget(member)
        if (code := member.sluice.wait()) != -signal.SIGKILL:
            self.history.exits.append(Exit(member.writer, code, _last_words(member.sluice.log)))

    def tend(self) -> None:
        """Start anew what ended by itself, and write down its exit code and last words."""
        for member in list(self.members):
            if not member.sluice.running and not member.doomed:
                self._forget(member)
                self.history.exits.append(Exit(member.writer, member.sluice.wait(), _last_words(member.sluice.log)))
                self.start(member.slot)

    def close(self) -> None:
        """End what still runs, and take the rebalances and tracebacks of all from their logs."""
        for member in self.members:
            member.sluice.kill()  # also where it is stopped
        self._gone += self.members
        self.members = []
        for member in self._gone:
            log = member.sluice.log
            self.history.rebalances += rebalances(member.writer, log)
            self.history.tracebacks += tracebacks(member.writer, log)

    @property
    def logs(self) -> dict[str, str]:
        return {member.writer: member.sluice.log for member in [*self._gone, *self.members]}

    def forget_logs(self) -> None:
        """Remove the log files of the processes that are gone."""
        for member in self._gone:
            member.sluice.remove_log()

    def _forget(self, member: Member) -> None:
        self.members.remove(member)
        self._gone.append(member)

    def _identity(self, slot: int, number: int) -> dict[str, Any]:
        """What a pod of that ordinal is configured with, and keeps over restarts; with `new_ids` its ID is new."""
        return {
            "kafka.client": {**self.options.get("kafka.client", {}), "client.id": client_id(slot)},
            "kafka.transactional_id": f"{self.group}-{slot}" + (f"-{number}" if self.new_ids else ""),
        }


def client_id(slot: int) -> str:
    """What the clients of a member call themselves before the brokers, and the proxy."""
    return f"member-{slot}"


def rebalances(writer: str, log: str) -> Iterator[Rebalance]:
    """The rebalances in a member's log."""
    for line in log.splitlines():
        if not line.startswith("{") or '"partitions"' not in line:
            continue
        try:
            said = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        if said.get("event") in {"assigned", "revoked", "lost"}:
            at_ms = datetime.fromisoformat(said["timestamp"]).timestamp() * 1000
            partitions = frozenset(int(each.rsplit("[", 1)[1].rstrip("]")) for each in said["partitions"])
            yield Rebalance(writer, at_ms, said["event"], partitions)


def tracebacks(writer: str, log: str) -> Iterator[Traceback]:
    """The tracebacks in a member's log. What the program means to say of an error is a line of JSON instead."""
    inside = False
    for line in log.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line and not line[0].isspace():
            inside = False
            yield Traceback(writer, line)


def _last_words(log: str) -> str:
    critical = [line for line in log.splitlines() if '"critical"' in line]
    return (critical or log.splitlines() or [""])[-1][:1000]
