"""The documentation says what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from consumer.tools.reference import reference

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_code_declares() -> None:
    """Catches an option, a metric or an exit code that changed without its documentation."""
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference(), "run: make reference"


def test_the_page_of_the_command_line_is_what_the_commands_declare() -> None:
    """Catches a command, an option or a help text that changed without its documentation."""
    command = [sys.executable, "-m", "typer", "consumer.cli", "utils", "docs", "--name", "sluice"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written.strip() == shown.stdout.strip(), "run: make reference"
