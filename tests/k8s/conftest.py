"""Rendering the manifests, and the figures of the program that they must agree with."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumer.config import load_config, options
from consumer.kafka.commits import LAST_COMMIT_S

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"

Object = dict[str, Any]


@dataclass(frozen=True)
class Manifests:
    """What one kustomization renders to."""

    objects: tuple[Object, ...]

    def all(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str) -> Object:
        (only,) = self.all(kind)
        return only

    @property
    def pod(self) -> Object:
        return self.one("Deployment")["spec"]["template"]["spec"]

    @property
    def container(self) -> Object:
        (only,) = self.pod["containers"]
        return only

    @property
    def containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    def config_map(self, prefix: str) -> Object:
        """The generated ConfigMap of that name, without its hash."""
        (found,) = [
            m for m in self.all("ConfigMap") if re.fullmatch(rf"{prefix}-[a-z0-9]{{10}}", m["metadata"]["name"])
        ]
        return found


@pytest.fixture(scope="session")
def kustomize() -> Sequence[str]:
    """The command that renders a folder."""
    if shutil.which("kustomize"):
        return "kustomize", "build"
    if shutil.which("kubectl"):
        version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
        if (found := re.search(r"v1\.(\d+)", version)) and int(found[1]) >= 25:
            return "kubectl", "kustomize"
    reason = "needs kubectl 1.25 or newer, or kustomize: see tests/k8s/install.sh"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def render(kustomize: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Manifests]:
    """`render("gpu", "keda")`: an overlay with components on it, as a user's own kustomization combines them."""

    @functools.cache
    def rendered(overlay: str, *components: str) -> Manifests:
        folder = tmp_path_factory.mktemp("kustomization")
        where = os.path.relpath(K8S, folder.resolve())
        text = {
            "resources": [f"{where}/overlays/{overlay}"],
            "components": [f"{where}/components/{name}" for name in components],
        }
        folder.joinpath("kustomization.yaml").write_text(json.dumps(text))
        done = subprocess.run([*kustomize, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return Manifests(tuple(yaml.safe_load_all(done.stdout)))

    return rendered


@pytest.fixture(scope="session")
def option_variables() -> frozenset[str]:
    return frozenset(variable for _, variable, _, _ in options()) | {"SLUICE_CONFIG"}


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No SLUICE_ variable of the machine that the tests run on."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def shutdown_s(clean_environment: pytest.MonkeyPatch) -> float:
    """Seconds from SIGTERM to the end of `sluice run`: the drain, the last commit, and every `close(<seconds>)`."""
    closing = sum(
        float(call.args[0].value)
        for file in ("pipeline.py", "app.py")
        for call in ast.walk(ast.parse(ROOT.joinpath("consumer", file).read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "close"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    )
    assert closing >= 5, "the deadlines of closing have moved: find them again"
    return load_config().limits.drain_timeout_s + LAST_COMMIT_S + closing


@dataclass(frozen=True)
class Instruction:
    stage: str
    word: str
    rest: str


@pytest.fixture(scope="session")
def dockerfile() -> Sequence[Instruction]:
    return tuple(_instructions(ROOT.joinpath("Dockerfile").read_text()))


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stage = ""
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stage = rest.partition(" AS ")[2]
        yield Instruction(stage, word, rest)
