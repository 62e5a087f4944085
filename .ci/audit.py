"""Reports the known vulnerabilities of what is locked. Never fails the build; says so where it has no data.

pip-audit itself says "No known vulnerabilities found" also where it could ask nobody about any package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.txt", "requirements-uv.txt")  # requirements-runtime.txt is a part of the first
SECONDS = 90  # for each


def main() -> None:
    for lock in LOCKS:
        print(*lines(lock), sep="\n", flush=True)


def lines(lock: str) -> list[str]:
    """The report of one lock. What pip-audit says is not ours to shape: whatever it is, CI goes on."""
    try:
        return list(report(lock, audit(ROOT / lock)))
    except Exception as error:  # noqa: BLE001 - a report must not fail the build
        return [f"audit of {lock}: NO DATA, what pip-audit said cannot be read: {type(error).__name__}: {error}"]


def audit(lock: Path, seconds: float = SECONDS) -> dict[str, Any] | str:
    """What pip-audit says, or why it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--timeout", "5"]
    try:
        done = subprocess.run(  # noqa: S603 - a module of this environment
            [*command, "--format", "json", "-r", str(lock)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"it ended with {done.returncode}"
    return said


def report(lock: str, said: dict[str, Any] | str) -> Iterator[str]:
    """Lines for a person: what was found, and how much could not be looked up."""
    if isinstance(said, str):
        yield f"audit of {lock}: NO DATA, nothing was checked: {said}"
        return
    packages = said["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [(package, flaw) for package in packages for flaw in package.get("vulns", ())]
    yield f"audit of {lock}: {len(packages) - len(unknown)} packages checked, {len(found)} known vulnerabilities"
    for package, flaw in found:
        fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
        yield f"  {package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}"
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        yield f"  NO DATA about {len(unknown)} packages, the index does not know them or could not be asked: {shown}"


if __name__ == "__main__":
    main()
