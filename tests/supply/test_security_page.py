"""docs/security.md claims nothing that no test proves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_the_page_names_exists(file: str, test: str) -> None:
    """Catches a control whose proof was renamed or removed."""
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^ *def {test}\(", source, re.MULTILINE), f"{file} has no {test}"


def test_every_threat_names_a_test() -> None:
    """Catches a row that promises and proves nothing."""
    threats = PAGE.partition("## Threats")[2].partition("\n## ")[0]
    rows = [
        line.split(" | ") for line in threats.splitlines() if line.startswith("| ") and not line.startswith("| ---")
    ]
    assert len(rows) > 15
    for threat, *_, proof in rows[1:]:
        assert "::test_" in proof, threat
