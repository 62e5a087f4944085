"""Pages, docstrings and comments use plain words: no word of `.vale/Sluice/Words.yml`."""

from __future__ import annotations

from pathlib import Path

import pytest

import prose

ROOT = Path(__file__).parents[1]
# These pages quote what a program or a checker printed.
GENERATED = {"docs/faults.md", "docs/seeded-bugs.md"}
PLACES = sorted(
    ["README.md", "CHANGELOG.md", "docs"]
    + [f"consumer/{each.name}" for each in (ROOT / "consumer").iterdir() if each.name != "__pycache__"]
)


def found_in(path: Path, text: str, *, long: bool = False) -> list[tuple[int, str]]:
    """Line and rule of each finding."""
    path.write_text(text, encoding="utf-8")
    return [(finding.line, finding.rule) for finding in prose.find([path], long=long)]


@pytest.mark.parametrize("place", PLACES)
def test_no_banned_word_is_used(place: str) -> None:
    """Catches an old or vague word in a page, a docstring or a comment."""
    written = {str(ROOT / each) for each in GENERATED}
    findings = [each for each in prose.find([ROOT / place]) if str(each.path) not in written]
    assert not findings, "\n".join(map(str, findings))


def test_docstrings_and_comments_are_checked(tmp_path: Path) -> None:
    """Catches a check that sees only module docstrings, or that counts lines wrongly."""
    source = '''"""Mends nothing.

It works anew.
"""


def f() -> str:
    """Return text for
    ever."""  # whoever reads it
    # One line,
    # told twice.
    return "anew"
'''
    assert sorted(line for line, _ in found_in(tmp_path / "a.py", source)) == [1, 3, 8, 9, 11]


def test_code_and_links_are_not_prose(tmp_path: Path) -> None:
    """Catches findings in names that nobody can change."""
    page = "Use `look at` as in\n[this](anew.md).\n\n```\nmend\n```\n\n`such` is such, such as this.\n"
    assert found_in(tmp_path / "a.md", page) == [(8, "Words")]


def test_long_sentences_are_found_where_they_begin(tmp_path: Path) -> None:
    """Catches a list, a table or a section of a docstring that counts as one sentence."""
    entry = " ".join(["word"] * 20)
    page = f"- {entry}\n- {entry}\n\n| {entry} | {entry} |\n\nShort one. {entry}\n{entry}.\n"
    assert found_in(tmp_path / "a.md", page, long=True) == [(6, "SentenceLength")]
    source = f'"""Does it.\n\nArgs:\n    a: {entry}\n    b: {entry}\n"""\n'
    assert found_in(tmp_path / "a.py", source, long=True) == []
