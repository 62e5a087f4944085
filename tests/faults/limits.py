"""What the faults of a run explain: repeats under at-least-once, ends of processes, use of memory. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from history import History, InputId, Outcome
from verdict import Violation

_MIB = 2**20


def check_repeats(history: History, first_seen: Mapping[InputId, Outcome]) -> tuple[int, list[Violation]]:
    """The number of repeats that the faults explain at most, and a violation where there are others.

    For at-least-once delivery. A member repeats what it, or the owner before it, had written and not committed. There
    are two explanations:

    1. An unclean end leaves what was acknowledged since the last commit. That is `allowed_repeats`: so many for each
       unclean end, by the constants of `scenario`. Nothing else is needed where no member can lose its partitions
       without knowing it.
    2. A member that is cut off from the coordinator, or whose coordinator is away, goes on writing and cannot commit.
       So each record whose first outcome came in the `exposure` of a strike may be repeated, once for each strike: its
       new owner has an assignment, so it has a coordinator, and commits. The exposure begins `before_s` ahead of the
       strike (the last commit and the reader's own delay) and ends `after_s` behind it (the session, and the requests
       that were under way).

    A repeat that has neither explanation is one too many, whatever the total is.
    """
    again = Counter(outcome.id for outcome in history.outcomes)
    explained, unexplained = history.allowed_repeats, 0
    for each, outcome in first_seen.items():
        strikes = _exposures(history, outcome.arrived_s)
        explained += strikes
        unexplained += max(0, again[each] - 1 - strikes)
    if unexplained <= history.allowed_repeats:
        return explained, []
    exposed = "; no strike exposed these records" if history.exposure else ""
    said = f"{unexplained} repeats, where the faults explain {history.allowed_repeats}{exposed}"
    return explained, [Violation("duplicate", said)]


def _exposures(history: History, arrived_s: float) -> int:
    """How many strikes put an outcome that came at that time at risk of being repeated."""
    if history.exposure is None:
        return 0
    before_s, after_s = history.exposure.before_s, history.exposure.after_s
    return sum(each.began_s - before_s <= arrived_s <= each.ended_s + after_s for each in history.strikes)


def check_ends(history: History) -> Iterator[Violation]:
    """Ends of processes that nobody asked for and no harm explains, and tracebacks: a sound process logs none."""
    for each in history.exits:
        if each.code not in history.may_exit:
            yield Violation("crash", f"a member ended by itself with code {each.code}: {each.last_words[:300]}")
    for found in history.tracebacks:
        yield Violation("crash", f"a member logged a traceback: {found.last_line[:300]}")


def check_memory(history: History) -> Iterator[Violation]:
    """Each member stays within its limit for records in flight, and the constant for all the rest."""
    if not history.in_flight_limit_bytes:
        return
    allowed = history.in_flight_limit_bytes + history.memory_base_bytes
    for writer, used in sorted(history.memory_bytes.items()):
        if used > allowed:
            yield Violation(
                "memory",
                f"{writer} used {used / _MIB:.0f} MiB, where limits.max_in_flight_bytes and the constant allow "
                f"{history.in_flight_limit_bytes / _MIB:.0f} + {history.memory_base_bytes / _MIB:.0f} MiB",
            )
