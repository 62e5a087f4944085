"""What the pages name is there: links, headings, tests, log lines, options."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "schemas/README.md"]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """Catches a page that was promised and never written, or moved, and a runbook that was renamed."""
    for name, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {name}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {name}#{anchor}"


def test_the_check_of_links_sees_them() -> None:
    assert "offsets-out-of-range" in anchors(ROOT / "docs/operations.md")
    assert "exit-codes" in anchors(ROOT / "docs/reference.md")


@each_page
def test_every_test_and_file_that_a_page_names_exists(page: Path) -> None:
    """Catches a promise whose proof was renamed or removed. A name that ends with … is the beginning of one."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|consumer|k8s|docs|schemas)/[\w./*-]+)`", text):
        assert list(ROOT.glob(name.rstrip("/"))), f"{page.name} names {name}"
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list(ROOT.glob(f"tests/**/{name}")), f"{page.name} names {name}"
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    for name, cut in re.findall(r"`(test_\w+?)(_?…)?`", text):
        rest = r"\w*" if cut else ""
        assert re.search(rf"def {name}{rest}\(", tests), f"{page.name} names {name}"


def log_events() -> Iterator[str]:
    """The first words of everything that the program logs by itself."""
    for path in ROOT.glob("consumer/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                yield from (str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant))
    yield from ("assigned", "revoked", "lost")  # the name of a rebalance is its event


def test_every_log_line_of_the_runbook_is_one_that_the_program_writes() -> None:
    """Catches an operator who searches for words that nobody says."""
    table = (ROOT / "docs/operations.md").read_text(encoding="utf-8").partition("## Reading the log")[2]
    rows = [line for line in table.partition("```")[0].splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(named) > 12
    events = set(log_events())
    for name in named:
        assert any(event.startswith(name) for event in events), f"nothing logs {name!r}"


def test_the_configuration_in_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "sluice.yaml"
    path.write_text(block)
    assert load_config(path).detector.model == "yolo26n.pt"


def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    """Catches a page without a place in the navigation, a broken anchor, and a font or a script of another host."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("install the extra docs: mkdocs, mkdocs-material, mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8")):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"
