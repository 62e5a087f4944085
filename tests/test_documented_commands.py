"""Every command of the documentation is run by a test, or marked as not run; every option in it exists.

A `sh` block without a mark is run here, beside the configuration above it on its page. Otherwise the line before it is
`<!-- run by: tests/test_x.py -->` (several with commas), or `<!-- not run: why -->`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer.main
import yaml

import images
from consumer.cli import app
from consumer.config import Config, load_config
from consumer.messages import ResultEncoder
from consumer.types import Detected, Detections, Frame, ModelInfo, Receipt, Record, TopicPartition

ROOT = Path(__file__).parents[1]
MARKED = [ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = [ROOT / "README.md", *MARKED]
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<kind>[\w ]+): (?P<mark>.+?) -->\n)?^(?P<indent> *)```sh\n(?P<text>.*?)^ *```$", re.M | re.S
)


class Block(NamedTuple):
    """A block of commands, and how it is marked."""

    page: Path
    line: int
    kind: str
    mark: str
    text: str
    above: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(pages: list[Path]) -> Iterator[Block]:
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            above = text[: found.start()]
            line = text[: found.start("text")].count("\n")
            yield Block(page, line, found["kind"] or "", found["mark"] or "", dedent(found["text"]), above)


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `sluice` in a block: alone, behind variables, or inside a container."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if Path(word).name == "sluice" and not word.endswith("/sluice/") and "deploy/" not in word:
                if place and words[place - 1].startswith("-") and words[place - 1] != "--":
                    continue  # the value of an option: a namespace, a group
                arguments = words[place + 1 :]
                ends = [index for index, each in enumerate(arguments) if each in {"|", "&", "&&", ";", ">"}]
                yield arguments[: ends[0]] if ends else arguments


ALL = list(blocks(PAGES))
each_block = pytest.mark.parametrize("block", ALL, ids=str)


def test_the_commands_of_a_block_are_found() -> None:
    text = (
        "A=b .venv/bin/sluice tail --frames 5 | head  # five\nkubectl -n sluice exec deploy/sluice -- sluice doctor\n"
    )
    assert list(commands(text)) == [["tail", "--frames", "5"], ["doctor"]]
    assert len(ALL) > 30


@pytest.mark.parametrize("block", list(blocks(MARKED)), ids=str)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    """Catches a command that nobody ever ran, and one whose test was removed or no longer runs it."""
    if block.kind == "run by":
        tests = [ROOT / name for name in block.mark.split(", ")]
        assert all(test.is_file() for test in tests), block.mark
        source = "\n".join(test.read_text(encoding="utf-8") for test in tests)
        for arguments in commands(block.text):
            assert re.search(rf"\b{arguments[0]}\b", source), f"{block.mark} does not run {arguments[0]}"
    elif block.kind == "not run":
        assert len(block.mark) > 8, "give the reason"
    else:
        assert block.kind == "", f"unknown mark {block.kind!r}"


@each_block
def test_every_command_and_option_exists(block: Block) -> None:
    """Catches an option that was renamed, in the documentation that a newcomer copies from."""
    for arguments in commands(block.text):
        command: Any = typer.main.get_command(app)
        rest = list(arguments)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        command.make_context(command.name, rest)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets >= set(re.findall(r"^make (\w+)", block.text, re.MULTILINE))


@pytest.mark.parametrize("block", [each for each in blocks(MARKED) if not each.kind], ids=str)
def test_a_block_without_a_mark_runs_as_it_stands(block: Block, tmp_path: Path) -> None:
    """Catches a command that fails when it is pasted."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for written in re.findall(r"^```yaml\n(.*?)^```", block.above, re.MULTILINE | re.DOTALL)[-1:]:
        (tmp_path / "sluice.yaml").write_text(written)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def configurations() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for found in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            text = dedent(found)
            if set(yaml.safe_load(text)) <= set(Config.model_fields):
                yield page.name, text


@pytest.mark.parametrize(("page", "text"), list(configurations()))
def test_every_configuration_is_one(page: str, text: str, tmp_path: Path) -> None:
    """Catches an option of an example that was renamed, or a value that is refused."""
    (tmp_path / "sluice.yaml").write_text(text)
    load_config(tmp_path / "sluice.yaml")


FAKE_CLIENT = '''
"""Stands in for the Kafka client: one result, and the frame that it names."""
from pathlib import Path

class TopicPartition:
    def __init__(self, topic, partition, offset):
        assert (topic, partition, offset) == ("frames", 3, 42)

class Message:
    def __init__(self, name):
        self.name = name
    def error(self):
        return None
    def value(self):
        return Path(self.name).read_bytes()

class Consumer:
    def __init__(self, settings):
        assert settings["bootstrap.servers"]
    def subscribe(self, topics):
        assert topics == ["detections"]
        self.name = "result"
    def assign(self, partitions):
        self.name = "frame"
    def poll(self, timeout):
        return Message(self.name)
    def close(self):
        pass
'''


def test_the_script_of_the_tutorial_draws_the_boxes(tmp_path: Path) -> None:
    """Catches a field of the result, or of the client, that the script no longer finds."""
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    image = images.jpeg(64, 48, 1)
    record = Record(b"cam-1", image, (), 1_700_000_000_000)
    receipt = Receipt(TopicPartition("frames", 3), 42, 1)
    frame = Frame("cam-1", "17", 1_700_000_000_000, image, 0.0, receipt, record)
    box = np.array([[8, 8, 40, 40]], np.float32)
    found = Detections(box, np.array([0.9], np.float32), np.array([2], np.int32))
    encoder = ResultEncoder(format="msgpack", model=ModelInfo("m", "sha256:0", {2: "car"}), source="/s")
    message = encoder.encode(frame, Detected(found, 64, 48), batch_size=1, timings_ms={}, published_at_ms=0)
    assert message.value is not None
    (tmp_path / "result").write_bytes(message.value)
    (tmp_path / "frame").write_bytes(image)
    (tmp_path / "confluent_kafka.py").write_text(FAKE_CLIENT)
    (tmp_path / "draw.py").write_text(script)
    done = subprocess.run([sys.executable, "draw.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cam-1 17 1 boxes in boxes.jpg\n"
    assert (tmp_path / "boxes.jpg").read_bytes() != image
