"""What to check: topics, group, delivery guarantee and range. Parses `--from` and `--to`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from consumer.errors import ConfigError
from consumer.observability.logging import printable
from consumer.tools.dlq.dead_letters import parse_since
from consumer.tools.verify.types import Role

_NUMBER: Final = re.compile(r"[0-9]{1,15}")
# Numbers from here on are times: no partition has 10^11 records, and Unix milliseconds since 1973 are larger.
_FIRST_TIME: Final = 10**11
_EXPECTED: Final = "expected an offset, 30m, 2h or 7d (ago), 2026-01-31T22:00, or Unix milliseconds"


class Bound(NamedTuple):
    """An offset that applies to every partition, or a time in Unix milliseconds."""

    value: int
    is_time: bool

    def __str__(self) -> str:
        return f"{self.value} ms" if self.is_time else f"offset {self.value}"


def parse_bound(option: str, text: str | None, now_ms: int) -> Bound | None:
    """Parse the value of an option; None if the option is not given.

    Raises:
        ConfigError: the value is neither an offset nor a time.
    """
    if text is None:
        return None
    if _NUMBER.fullmatch(text):
        return Bound(int(text), int(text) >= _FIRST_TIME)
    try:
        ms = parse_since(text, now_ms)
    except ConfigError:
        raise ConfigError(f"{option} {printable(text)}: {_EXPECTED}") from None
    assert ms is not None
    return Bound(ms, is_time=True)


def check_order(start: Bound | None, end: Bound | None) -> None:
    """Raises ConfigError if the range ends before it starts. An offset and a time cannot be compared here."""
    if start is not None and end is not None and start.is_time == end.is_time and end.value <= start.value:
        raise ConfigError(f"--to {end} is not after --from {start}: the range is empty")


@dataclass(frozen=True, slots=True)
class Request:
    """What to check.

    Attributes:
        isolation: the isolation level with which Sluice reads the input.
        keep: list so many violations of each kind.
    """

    inputs: tuple[str, ...]
    output: str
    dead_letter: str
    group: str
    exactly_once: bool
    isolation: str
    start: Bound | None = None
    end: Bound | None = None
    outcomes_from: Bound | None = None
    keep: int = 20

    @property
    def roles(self) -> dict[Role, str]:
        """The output topics by role."""
        return {"result": self.output, "dead_letter": self.dead_letter}
