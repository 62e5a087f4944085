"""The documentation says what the code says."""

from __future__ import annotations

from pathlib import Path

from consumer.tools.reference import reference

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_code_declares() -> None:
    """Catches an option, a metric or an exit code that changed without its documentation."""
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m consumer.tools.reference > docs/reference.md"
