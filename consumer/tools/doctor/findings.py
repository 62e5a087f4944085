"""The findings of the checks, as text and as JSON."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from consumer import __version__
from consumer.observability.logging import printable


class Status(enum.StrEnum):
    """The status of a finding.

    `problem`: the program will not work. `warning`: it works, but not well or not for long. `skipped`: not checked.
    """

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about the system, and what to do if something is wrong."""

    check: str
    status: Status
    message: str
    fix: str = ""

    def line(self) -> str:
        """One line of text. It is made safe to print, because it contains names from the cluster."""
        then = f". To fix it: {self.fix}" if self.fix else ""
        return printable(f"{self.status:<8} {self.check:<16} {self.message}{then}")


@dataclass(frozen=True, slots=True)
class Reporter:
    """Makes the findings of one check. `about` is put before each message."""

    check: str
    about: str = ""

    def ok(self, message: str) -> Finding:
        return self._finding(Status.OK, message)

    def warning(self, message: str, fix: str) -> Finding:
        return self._finding(Status.WARNING, message, fix)

    def problem(self, message: str, fix: str = "") -> Finding:
        return self._finding(Status.PROBLEM, message, fix)

    def skipped(self, reason: str) -> Finding:
        return self._finding(Status.SKIPPED, reason)

    def _finding(self, status: Status, message: str, fix: str = "") -> Finding:
        return Finding(self.check, status, self.about + message, fix)


def failed(findings: Iterable[Finding], *, strict: bool) -> bool:
    """Whether the findings mean that the program should not be started. `strict`: warnings count as problems."""
    bad = (Status.PROBLEM, Status.WARNING) if strict else (Status.PROBLEM,)
    return any(finding.status in bad for finding in findings)


def summary(findings: Sequence[Finding], seconds: float) -> str:
    """The last line of the text output."""
    counts = Counter(finding.status for finding in findings)
    listed = ", ".join(f"{counts[status]} {status}" for status in Status)
    return f"{listed}; {seconds:.1f} s"


def as_json(findings: Sequence[Finding], seconds: float, *, strict: bool) -> dict[str, Any]:
    """The JSON document that docs/doctor.md describes."""
    counts = Counter(finding.status for finding in findings)
    return {
        "version": __version__,
        "ok": not failed(findings, strict=strict),
        "seconds": round(seconds, 3),
        "counts": {str(status): counts[status] for status in Status},
        "findings": [
            {"check": each.check, "status": str(each.status), "message": each.message, "fix": each.fix}
            for each in findings
        ],
    }
