"""What a seeded bug is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple


class Patch(NamedTuple):
    """`owner` is a class or a module."""

    owner: Any
    name: str
    replacement: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Bug:
    """`delivery`: where it does harm. `harm`: of the rig, that brings it to light on real brokers, if one does.

    `protocol`: of the group, where the harm shows it with that one alone; "": with both.
    `virtual`: schedules of the core in virtual time can catch it; the others need a client library, or brokers.
    """

    breaks: str
    delivery: str
    patches: Callable[[], list[Patch]]
    harm: str = ""
    virtual: bool = True
    protocol: Literal["", "classic", "consumer"] = ""


# A bug that no schedule of the core can show.
real_bug = partial(Bug, virtual=False)
