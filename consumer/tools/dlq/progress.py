"""What was replayed before, over all filters: nothing that any of them sent is sent again. Pure.

A group remembers, for each partition of the dead-letter topic, its passes: what was selected, and up to which offset
every selected letter was sent. They stand as JSON in the metadata of the group's committed offset, so that they change
in the same transaction as the records. The offset itself is that of the pass that came farthest: other tools show it.
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
    """Every letter below `done` that `selection` means to replay has been replayed."""

    selection: Selection
    done: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a group has replayed of one partition."""

    passes: tuple[ReplayPass, ...] = ()
    floor: int = 0  # all below counts as replayed, whatever it is: where someone set the group's offset by hand

    @property
    def offset(self) -> int:
        """The offset to commit."""
        return max([self.floor, *(each.done for each in self.passes)])

    def start_for(self, selection: Selection) -> int:
        """Below this offset nothing is left to do for `selection`."""
        return max([self.floor, *(each.done for each in self.passes if each.selection.covers(selection))])

    def is_done(self, letter: DeadLetterRecord, destination: str) -> bool:
        """Whether this letter was sent there before, by whichever pass."""
        return letter.offset < self.floor or any(
            letter.offset < each.done
            and each.selection.destination(letter) == destination
            and each.selection.status_of(letter) == "replay"
            for each in self.passes
        )

    def advanced(self, selection: Selection, done: int, oldest: int = 0) -> Progress:
        """With `selection` done up to there. Passes that say nothing any more go: `oldest` is the first offset left."""
        new = ReplayPass(selection, max(done, self.start_for(selection)))
        kept = [
            each
            for each in self.passes
            if each.done > oldest and not (new.done >= each.done and selection.covers(each.selection))
        ]
        return replace(self, passes=(*kept, new))

    def to_metadata(self) -> str:
        """Raises ConfigError where more different selections were replayed than a commit can remember."""
        body = {"v": _VERSION, "f": self.floor, "p": [_to_json(each) for each in self.passes]}
        text = json.dumps(body, separators=(",", ":"))
        if len(text) > MAX_METADATA:
            raise ConfigError(
                f"this group has replayed {len(self.passes)} different selections, more than it can remember: replay "
                f"with fewer or wider filters, or with another --group, which knows nothing of what was replayed"
            )
        return text

    @classmethod
    def from_commit(cls, offset: int, metadata: str | None) -> Progress:
        """Raises ValueError where the metadata is not ours."""
        if not metadata:
            return cls(floor=max(0, offset))  # no commit is a negative offset
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
