"""Which frames an object keeps in memory."""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType

from consumer.config import Config
from consumer.types import Frame
from made_frames import P0, P1
from pipeline_group import Log
from transaction_world import ExactlyOnceWorld


def frames_kept_by(of: object) -> list[Frame]:
    """Every frame that can be reached from `of`."""
    seen: set[int] = set()
    found, left = [], [of]
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, type | ModuleType | FunctionType):
            continue
        seen.add(id(item))
        if isinstance(item, Frame):
            found.append(item)
        left.extend(gc.get_referents(item))
    return found


def kept_beside_held() -> tuple[int, int]:
    """One late frame of a source that overtakes another in batches of four.

    Returns the most outcomes that were held at once, and the most frames that they kept in memory beside their own.
    """
    made = ExactlyOnceWorld(Log({P0: [], P1: []}), Config(batching={"max_batch_size": 4}))  # type: ignore[arg-type]
    made.source.subscribe()
    made.source.rebalances.append((0, lambda: made.source.assign([P0, P1])))
    for n in range(12):
        made.log.append(P0, "cam-b" if n == 11 else "cam-a", b"good")
    held = beside = 0
    while made.log.committed.get(P0) != 12:
        made.pipeline.step()
        count = len(made.delivery._held)
        held, beside = max(held, count), max(beside, len(frames_kept_by(made.delivery._held._held)) - count)
    return held, beside
