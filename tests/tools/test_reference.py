"""The documentation says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from consumer.tools.reference import reference

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_code_declares() -> None:
    """Catches an option, a metric or an exit code that changed without its documentation."""
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m consumer.tools.reference > docs/reference.md"


def test_every_link_in_the_documentation_leads_to_a_file() -> None:
    """Catches a page that was promised and never written, or moved."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("schemas/*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
