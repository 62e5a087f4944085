"""Checks the prose of pages, docstrings and comments with the rules in `.vale/Sluice`.

It reads the same rule files as Vale, whose binary is not on every machine. Run it with paths to see the findings:

    .venv/bin/python tests/support/prose.py [--long] [PATH...]

`--long` also reports sentences that are too long. Without paths it checks `DEFAULT_PATHS` and prints a summary.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
STYLE = ROOT / ".vale/Sluice"
DEFAULT_PATHS = ("README.md", "CHANGELOG.md", "docs", "consumer")

_FENCE = re.compile(r"^ *(```|~~~)")
# Not prose: code, links, HTML comments, and what the linters read.
_NOT_PROSE = re.compile(r"`+[^`]*`+|<!--.*?-->|\]\([^)]*\)|https?://\S+|#? ?(?:noqa|type: ignore|pragma)\b.*")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.) |^\s*[*\w]+: |^\s*#+ ")
_SENTENCE_END = re.compile(r"(?<=[.!?])[)\"']?(?:\s+|$)|\|")


class Finding(NamedTuple):
    """One violation. `rule` is the name of the rule file."""

    path: Path
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.message} [{self.rule}]"


class Text(NamedTuple):
    """A piece of prose, and the line of the file where it begins."""

    line: int
    text: str


@cache
def _rule(name: str) -> dict[str, Any]:
    rule: dict[str, Any] = yaml.safe_load((STYLE / f"{name}.yml").read_text(encoding="utf-8"))
    return rule


@cache
def words() -> list[tuple[re.Pattern[str], str]]:
    """Return the patterns of banned words, each with what to write instead."""
    rule = _rule("Words")
    swap: dict[str, str] = rule["swap"]
    # The words may be at the end of one line and the start of the next.
    patterns = {words.replace(" ", r"\s+"): instead for words, instead in swap.items()}
    return [(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), instead) for words, instead in patterns.items()]


def find(paths: Iterable[Path], *, long: bool = False) -> Iterator[Finding]:
    """Yield the findings in files, and in the files of folders.

    Args:
        paths: Markdown and Python files, and folders that are searched for them.
        long: Whether to report sentences that are too long.
    """
    for path in _files(paths):
        texts = _comments_and_docstrings(path) if path.suffix == ".py" else _markdown(path)
        for text in texts:
            yield from _banned(path, text)
            if long:
                yield from _too_long(path, text)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.suffix in {".md", ".py"})
        else:
            yield path


def _markdown(path: Path) -> Iterator[Text]:
    """Yield paragraphs, list items, headings and table rows, without code blocks."""
    fenced = False
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line) is not None
        lines.append("" if fenced or fence else line)
        fenced ^= fence
    yield from _paragraphs(1, lines)


def _comments_and_docstrings(path: Path) -> Iterator[Text]:
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield from _paragraphs(node.body[0].lineno, docstring.splitlines())
    comments: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        alone = token.line.lstrip().startswith("#")
        if not (alone and comments and token.start[0] == first + len(comments)):
            yield from _paragraphs(first, comments)
            comments, first = [], token.start[0]
        comments.append(token.string.lstrip("# "))
    yield from _paragraphs(first, comments)


def _paragraphs(first: int, lines: list[str]) -> Iterator[Text]:
    """Join lines up to a blank line, a list item, a heading, a table row or an entry of a docstring section."""
    start, held = first, ""
    for number, line in enumerate(lines, first):
        if not line.strip() or _ITEM.match(line) or line.lstrip().startswith("|"):
            if held:
                yield Text(start, held)
            start, held = number, line.strip()
        else:
            start = start if held else number
            held += ("\n" if held else "") + line.strip()
    if held:
        yield Text(start, held)


def _banned(path: Path, text: Text) -> Iterator[Finding]:
    # Same length, so that the lines of the findings are right.
    prose = _NOT_PROSE.sub(lambda found: re.sub(r"[^\n]", "`", found[0]), text.text)
    for pattern, instead in words():
        for found in pattern.finditer(prose):
            line = text.line + prose.count("\n", 0, found.start())
            yield Finding(path, line, "Words", _rule("Words")["message"] % (instead, found[0].replace("\n", " ")))


def _too_long(path: Path, text: Text) -> Iterator[Finding]:
    rule = _rule("SentenceLength")
    token = re.compile(rule["token"])
    start = 0
    for end in [*(found.end() for found in _SENTENCE_END.finditer(text.text)), len(text.text)]:
        sentence = _NOT_PROSE.sub("code", text.text[start:end])
        if (count := len(token.findall(sentence))) > rule["max"]:
            line = text.line + text.text.count("\n", 0, start)
            yield Finding(path, line, "SentenceLength", f"{rule['message']} ({count})")
        start = end


def _folder(path: Path) -> str:
    """Return `consumer/<package>`, `docs`, or the file itself."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2] if parts[0] == "consumer" else parts[:1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--long", action="store_true", help="also report sentences that are too long")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.paths] or [ROOT / name for name in DEFAULT_PATHS]
    findings = list(find(paths, long=arguments.long))
    for finding in findings if arguments.paths else ():
        sys.stdout.write(f"{finding}\n")
    if not arguments.paths:
        for (folder, rule), count in sorted(Counter((_folder(each.path), each.rule) for each in findings).items()):
            sys.stdout.write(f"{count:5} {rule:15} {folder}\n")
    return int(any(each.rule == "Words" for each in findings))


if __name__ == "__main__":
    sys.exit(main())
