"""Records what a group has replayed, across all filters, so that no dead letter is sent twice. Pure.

For each partition of the dead-letter topic, a group stores its replay passes: the selection, and the offset below which
every selected dead letter was sent. The passes are stored as JSON in the metadata of the group's committed offset, so
they change in the same transaction as the records. The committed offset itself is that of the farthest pass, for other
tools to show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final

from consumer.errors import ConfigError
from consumer.tools.dlq.dead_letters import DeadLetterRecord, Filter, Selection

MAX_METADATA: Final = 4000  # bytes; the broker's offset.metadata.max.bytes is 4096 by default
_VERSION: Final = 1
_SETS: Final = {"r": "reasons", "g": "stages", "s": "sources", "t": "topics"}


@dataclass(frozen=True, slots=True)
class ReplayPass:
    """Every dead letter below the offset `done` that `selection` selects has been replayed."""

    selection: Selection
    done: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a group has replayed of one partition.

    Attributes:
        floor: everything below this offset counts as replayed: an operator has set the group's offset by hand.
    """

    passes: tuple[ReplayPass, ...] = ()
    floor: int = 0

    @property
    def offset(self) -> int:
        """The offset to commit."""
        return max([self.floor, *(each.done for each in self.passes)])

    def start_for(self, selection: Selection) -> int:
        """The first offset that may hold a dead letter which `selection` still has to send."""
        return max([self.floor, *(each.done for each in self.passes if each.selection.covers(selection))])

    def is_done(self, letter: DeadLetterRecord, destination: str) -> bool:
        """Whether any pass has sent this dead letter to this topic."""
        return letter.offset < self.floor or any(
            letter.offset < each.done
            and each.selection.destination(letter) == destination
            and each.selection.status_of(letter) == "replay"
            for each in self.passes
        )

    def advanced(self, selection: Selection, done: int, oldest: int = 0) -> Progress:
        """The progress after `selection` was replayed up to `done`.

        Args:
            selection: what was replayed.
            done: every selected dead letter below this offset was replayed.
            oldest: the first offset that the partition still holds. Passes that end before it are dropped, and so are
                passes that the new one covers.
        """
        new = ReplayPass(selection, max(done, self.start_for(selection)))
        kept = [
            each
            for each in self.passes
            if each.done > oldest and not (new.done >= each.done and selection.covers(each.selection))
        ]
        return replace(self, passes=(*kept, new))

    def to_metadata(self) -> str:
        """The metadata to commit.

        Raises:
            ConfigError: the group has replayed more different selections than the metadata of a commit can hold.
        """
        body = {"v": _VERSION, "f": self.floor, "p": [_to_json(each) for each in self.passes]}
        text = json.dumps(body, separators=(",", ":"))
        if len(text) > MAX_METADATA:
            raise ConfigError(
                f"this group has replayed {len(self.passes)} different selections, more than it can record: replay "
                f"with fewer or wider filters, or with another --group, which starts without any progress"
            )
        return text

    @classmethod
    def from_commit(cls, offset: int, metadata: str | None) -> Progress:
        """Parse a committed offset and its metadata.

        Raises:
            ValueError: the metadata was not written by this version of `sluice dlq`.
        """
        if not metadata:
            return cls(floor=max(0, offset))  # a negative offset means that nothing is committed
        try:
            body = json.loads(metadata)
            version, passes, floor = body["v"], tuple(map(_from_json, body["p"])), int(body["f"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not the progress of a replay: {error}") from None
        if version != _VERSION:
            raise ValueError(f"the progress of another version of Sluice: {version}")
        return cls(passes, floor)


def _to_json(each: ReplayPass) -> dict[str, Any]:
    chosen, selection = each.selection.filter, each.selection
    body: dict[str, Any] = {"o": each.done, "m": selection.max_replays}
    body |= {short: sorted(values) for short, name in _SETS.items() if (values := getattr(chosen, name))}
    optional = {"a": chosen.since_ms, "to": selection.to, "x": 1 if selection.truncated else None}
    return body | {name: value for name, value in optional.items() if value is not None}


def _from_json(body: dict[str, Any]) -> ReplayPass:
    sets = {name: frozenset(map(str, body.get(short, ()))) for short, name in _SETS.items()}
    since, to = body.get("a"), body.get("to")
    chosen = Filter(**sets, since_ms=None if since is None else int(since))
    selection = Selection(chosen, None if to is None else str(to), bool(body.get("x")), int(body["m"]))
    return ReplayPass(selection, int(body["o"]))
