"""What is installed: locked by hash, in step with pyproject.toml, listed, and looked up as far as it can be."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.txt", "requirements-runtime.txt", "requirements-uv.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(lock: str) -> list[str]:
    """The requirements of a lock, each with its hashes, on one line."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def versions(lock: str) -> dict[str, list[Version]]:
    """A package may have a version for each Python."""
    found: dict[str, list[Version]] = {}
    for block in blocks(lock):
        name, version = re.match(r"([a-z0-9._-]+)==(\S+)", block).groups()  # type: ignore[union-attr]
        found.setdefault(name, []).append(Version(version))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_and_has_its_hashes(lock: str) -> None:
    """Catches a line that takes whatever the index gives, and an index, a URL or a path in a lock."""
    assert blocks(lock)
    for block in blocks(lock):
        requirement, *hashes = re.split(r"\s+--hash=", block.strip())
        assert re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.+!-]+( ;.*)?", requirement.strip()), block[:100]
        assert hashes, f"no hash: {requirement}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each.strip()) for each in hashes)


def extras_of(lock: str) -> list[str]:
    """The extras that `make lock` resolves for it."""
    (command,) = re.findall(rf"uv pip compile(?:[^\n]|\\\n)*?-o {re.escape(lock)}", MAKEFILE)
    return re.findall(r"--extra (\w+)", command)


def requirements_of(extra: str) -> list[Requirement]:
    """The requirements of an extra. An extra that names other extras of the project stands for theirs."""
    found = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            found += [each for other in sorted(requirement.extras) for each in requirements_of(other)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("lock", LOCKS[:2])
def test_the_locks_are_in_step_with_the_project(lock: str) -> None:
    """Catches a dependency that was added, raised or renamed without `make lock`."""
    wanted = list(map(Requirement, PROJECT["dependencies"])) + [
        requirement for extra in extras_of(lock) for requirement in requirements_of(extra)
    ]
    locked = versions(lock)
    for requirement in wanted:
        line = str(requirement)
        assert requirement.name in locked, f"run make lock: {line}"
        for version in locked[requirement.name]:
            assert requirement.specifier.contains(version), f"run make lock: {line}, but {version} is locked"


def test_what_runs_here_is_what_is_locked() -> None:
    """Catches an environment that drifted from its lock: then the tests prove something about other code."""
    from importlib.metadata import PackageNotFoundError, version

    locked = versions("requirements.txt")
    for name in (
        "confluent-kafka",
        "msgpack",
        "opencv-python-headless",
        "simplejpeg",
        "numpy",
        "pydantic",
        "onnxruntime",
    ):
        try:
            assert Version(version(name)) in locked[name]
        except PackageNotFoundError:
            pytest.fail(f"{name} is not installed")


def test_the_sbom_lists_exactly_what_is_locked_for_the_image(tmp_path: Path) -> None:
    """Catches an SBOM of something else; run as `make sbom` runs it."""
    (recipe,) = re.findall(r"\$\(BIN\)/(cyclonedx-py [^\n]*)", MAKEFILE)
    words = recipe.replace("$(SBOM)", str(tmp_path / "sbom.json")).split()
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    body = json.loads((tmp_path / "sbom.json").read_text())
    assert body["bomFormat"] == "CycloneDX"
    assert body["metadata"]["component"]["name"] == PROJECT["name"]
    listed = {(each["name"], Version(each["version"])) for each in body["components"]}
    assert listed == {(name, each) for name, found in versions("requirements-runtime.txt").items() for each in found}
    assert all(each["purl"].startswith("pkg:pypi/") for each in body["components"])
    assert all(each["externalReferences"][0]["hashes"] for each in body["components"])


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTheAudit:
    def test_says_what_was_found_and_where_it_is_mended(self, audit: ModuleType) -> None:
        flaw = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": []}
        said = {"dependencies": [{"name": "a", "version": "1.0", "vulns": [flaw]}, {"name": "b", "vulns": []}]}
        assert list(audit.report("x.txt", said)) == [
            "audit of x.txt: 2 packages checked, 1 known vulnerabilities",
            "  a 1.0: PYSEC-1, fixed in 2.0",
        ]

    def test_says_so_where_it_has_no_data(self, audit: ModuleType) -> None:
        """Catches pip-audit's own summary: "No known vulnerabilities found" where it could ask nobody."""
        said: dict[str, Any] = {"dependencies": [{"name": f"p{n}", "skip_reason": "not found"} for n in range(9)]}
        first, second = audit.report("x.txt", said)
        assert first == "audit of x.txt: 0 packages checked, 0 known vulnerabilities"
        assert second.startswith("  NO DATA about 9 packages")
        assert list(audit.report("x.txt", "no answer")) == ["audit of x.txt: NO DATA, nothing was checked: no answer"]

    def test_is_bounded_in_time_and_never_fails(self, audit: ModuleType) -> None:
        """Catches a build that hangs on, or fails for, a service that is away."""
        assert audit.audit(ROOT / "requirements-uv.txt", seconds=0.01) == "no answer within 0.01 s"
        said = audit.audit(ROOT / "no-such-file.txt", seconds=60)
        assert isinstance(said, str)
        assert said

    @pytest.mark.parametrize(
        "said",
        [
            "[]",
            "null",
            '"x"',
            "{}",
            '{"dependencies": 3}',
            '{"dependencies": [7]}',
            '{"dependencies": [{"skip_reason": 1}]}',
            '{"dependencies": [{"name": "a", "vulns": 1}]}',
            '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X"}]}]}',
            '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": null}]}]}',
            b"\xff\xfe{",
            "[" * 100_000,
        ],
    )
    def test_has_a_line_and_no_failure_for_whatever_pip_audit_says(
        self, said: str | bytes, audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        """Catches a build that fails for a new version of pip-audit, and a report that hides it."""
        (tmp_path / "said").write_bytes(said if isinstance(said, bytes) else said.encode())
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
        program.chmod(0o755)
        monkeypatch.setattr(audit.sys, "executable", str(program))
        audit.main()
        told = capsys.readouterr().out.splitlines()
        assert len(told) == len(audit.LOCKS)
        assert all(line.startswith("audit of ") and "NO DATA" in line for line in told), told

    def test_has_a_line_and_no_failure_where_there_is_no_pip_audit(
        self, audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr(audit.sys, "executable", "/no/such/python")
        audit.main()
        assert capsys.readouterr().out.count("NO DATA") == len(audit.LOCKS)

    def test_runs_in_ci_behind_the_tests(self) -> None:
        lines = (ROOT / ".ci" / "run").read_text().splitlines()
        assert lines.index(".venv/bin/python .ci/audit.py") > lines.index("make test")
