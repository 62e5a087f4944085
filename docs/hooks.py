"""Adds the message contracts of `schemas/` to the documentation site, and the links to them."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page and the JSON schemas, which lie outside of `docs/`."""
    for path in [ROOT / "schemas/README.md", *sorted(ROOT.glob("schemas/*.schema.json"))]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links such as `../schemas/README.md`, which hold in the repository, to their place in the site."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+schemas/", f"]({up}schemas/", markdown)
