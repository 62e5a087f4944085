"""Adds the message contracts of `schemas/` to the documentation site, and the links to them."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

SCHEMAS = Path(__file__).parents[1] / "schemas"
PAGE = "messages.md"  # the place of schemas/README.md in the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page and the JSON schemas, which lie outside of `docs/`."""
    files.append(File.generated(config, PAGE, abs_src_path=str(SCHEMAS / "README.md")))
    for path in sorted(SCHEMAS.glob("*.schema.json")):
        files.append(File.generated(config, f"schemas/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links such as `../schemas/README.md`, which hold in the repository, to their place in the site."""
    if page.file.src_uri == PAGE:
        return re.sub(r"\]\(([\w-]+\.schema\.json)\)", r"](schemas/\1)", markdown)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+schemas/README\.md", f"]({up}{PAGE}", markdown)
