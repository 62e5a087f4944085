"""Simulates detector faults from a script in the address of the simulated detector.

Example: `simulated://5ms@1?fault=oom>16@100+&fault=hang@500`. The faults are:

- `error@CALLS`: the call raises RuntimeError.
- `error:black@CALLS`: the call raises RuntimeError if one of its images has a black centre (a poison frame).
- `oom>FRAMES@CALLS`: a batch of more than FRAMES frames runs out of memory.
- `hang@CALLS`: the call never returns.
- `lost@CALLS`: the device is lost. The call raises EngineError, as a backend does for a lost device.
- `slow:MSms@CALLS`: the call takes MS milliseconds longer.
- `load:MSms`: loading the model takes MS milliseconds longer. It has no CALLS.

CALLS counts the calls of `detect` from 1, with retries and probes. `7` is the seventh call, `7+` the seventh and all
later ones, `7-9` three calls, `*/7` every seventh one. Without `@CALLS` a fault applies to every call, and an `oom`
fault to the warm-up too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consumer.errors import EngineError, ModelError
from consumer.types import Letterbox

MAX_SLOW_MS = 600_000
_FORMS = "error@7, error@7+, error@7-9, error@*/7, error:black, oom>16, hang@7, lost@7, slow:200ms@*/7, load:60000ms"
_FAULT = re.compile(
    r"(?:(?P<kind>error|hang|lost)|error:(?P<black>black)|oom>(?P<above>\d{1,4})|(?P<late>slow|load):(?P<ms>\d{1,6})ms)"
    r"(?P<calls>@(?:\*/(?P<every>\d{1,9})|(?P<first>\d{1,9})(?P<on>\+|-(?P<last>\d{1,9}))?))?"
)
_BLACK = 16  # the maximum of each colour of a black pixel; JPEG does not keep 0 exactly
_HANG_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Calls:
    """The calls to which a fault applies: from `first` to `last` (None: no end), if divisible by `every`."""

    first: int = 1
    last: int | None = None
    every: int = 1

    def __contains__(self, call: int) -> bool:
        return self.first <= call and (self.last is None or call <= self.last) and call % self.every == 0


@dataclass(frozen=True, slots=True)
class _Fault:
    text: str
    kind: str
    calls: _Calls
    above: int = 0  # frames, for oom
    ms: int = 0  # for slow and load


class Script:
    """The faults of one detector. It counts the calls, so each detector needs its own."""

    def __init__(self, faults: Sequence[_Fault], sleep: Callable[[float], None]) -> None:
        self._faults = faults
        self._sleep = sleep
        self._call = 0

    @classmethod
    def parse(cls, query: str, sleep: Callable[[float], None]) -> Script:
        """Parse the faults of an address.

        Args:
            query: The part of the address after the `?`; may be empty.
            sleep: Sleeps for a number of seconds.

        Raises:
            ModelError: A fault is malformed. The message quotes it and lists the valid forms.
        """
        return cls([_parse(text) for text in query.split("&")] if query else [], sleep)

    def load(self) -> None:
        """Sleep for the time of the `load` faults."""
        for fault in self._faults:
            if fault.kind == "load":
                self._sleep(fault.ms / 1000)

    def warm_up(self, frames: int) -> None:
        """Simulate the faults of the warm-up.

        Raises:
            MemoryError: An `oom` fault applies to every call, and `frames` is above its limit.
        """
        for fault in self._faults:
            if fault.kind == "oom" and fault.calls == _Calls() and frames > fault.above:
                raise MemoryError(_said(fault))

    def play(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> None:
        """Count one call of `detect` and simulate its faults, before any frame is processed.

        Raises:
            EngineError: A `lost` fault applies.
            MemoryError: An `oom` fault applies.
            RuntimeError: An `error` fault applies.
        """
        self._call += 1
        for fault in self._faults:
            if self._call in fault.calls and fault.kind != "load":
                self._strike(fault, slots, letterboxes)

    def _strike(self, fault: _Fault, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> None:
        match fault.kind:
            case "slow":
                self._sleep(fault.ms / 1000)
            case "hang":
                while True:
                    self._sleep(_HANG_S)
            case "lost":
                raise EngineError(f"{_said(fault)}: the device is lost; nothing of this batch was committed")
            case "oom":
                if len(letterboxes) > fault.above:
                    raise MemoryError(_said(fault))
            case "black":
                if any(map(_is_black, slots, letterboxes)):
                    raise RuntimeError(_said(fault))
            case _:
                raise RuntimeError(_said(fault))


def _parse(text: str) -> _Fault:
    name, _, script = text.partition("=")
    found = _FAULT.fullmatch(script)
    if name != "fault" or found is None:
        raise ModelError(f"detector.model: {text!r} is not a fault of a simulated detector. The forms: {_FORMS}")
    calls = _Calls()
    if found["every"]:
        calls = _Calls(every=int(found["every"]))
    elif found["first"]:
        first = int(found["first"])
        last = int(found["last"]) if found["last"] else None if found["on"] else first
        calls = _Calls(first, last)
    if not calls.every or not calls.first or (calls.last is not None and calls.last < calls.first):
        raise ModelError(f"detector.model: {text!r} names no call: they are counted from 1, as in {_FORMS}")
    if found["calls"] and found["late"] == "load":
        raise ModelError(f"detector.model: {text!r}: a model is loaded once, before any call. The forms: {_FORMS}")
    ms = int(found["ms"] or 0)
    if ms > MAX_SLOW_MS:
        raise ModelError(f"detector.model: {text!r}: {ms} ms is above {MAX_SLOW_MS} ms")
    kind = found["kind"] or found["black"] or found["late"] or "oom"
    return _Fault(script, kind, calls, int(found["above"] or 0), ms)


def _said(fault: _Fault) -> str:
    return f"simulated fault {fault.text}"


def _is_black(slot: NDArray[np.uint8], letterbox: Letterbox) -> bool:
    middle = letterbox.canvas_height // 2 * letterbox.canvas_width + letterbox.canvas_width // 2
    return bool((slot[3 * middle : 3 * middle + 3] <= _BLACK).all())
