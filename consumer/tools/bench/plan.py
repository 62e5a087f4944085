"""Which runs there are, and in which order."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

from consumer.tools.bench import frames as images
from consumer.tools.bench.figures import Decoding, Run, median
from consumer.tools.bench.trials import (
    SOURCES,
    ZERO_COST,
    Lab,
    live,
    preloaded,
    steady_memory,
    watched,
)

DEFAULT_ENGINE: Final = "simulated://6.667ms@1,40ms@32"
LOADS: Final = (0.1, 0.5, 0.8)  # of the engine's limit: 80, 400 and 640 frames a second of 800
OVERLOAD: Final = 1.125  # 900 of 800
SEEN_RATE: Final = 400.0  # frames a second, until a reader has the result
MEMORY_FRAMES: Final = (20_000, 200_000)
MEMORY_RATE: Final = 1000.0  # frames a second: well below what two cores do, so that no backlog counts


class Plan:
    """The runs that `only` names by the beginnings of their names; without any, all but memory, which takes minutes.

    `repeat`: how often zero_cost and the latency runs are made; the median counts. `say` is told what begins.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        engine: str = DEFAULT_ENGINE,
        repeat: int = 5,
        only: Sequence[str] = (),
        memory_frames: Sequence[int] = MEMORY_FRAMES,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._lab = lab
        self._engine = engine
        self._repeat = repeat
        self._only = only
        self._memory_frames = memory_frames
        self._say = say

    def runs(self) -> Iterator[Run]:
        """Make the runs, one after the other."""
        for name, make in self._offered():
            if name.startswith(tuple(self._only)) if self._only else not name.startswith("memory"):
                self._say(name)
                yield make()

    def _offered(self) -> Iterator[tuple[str, Callable[[], Run]]]:
        yield "decode_only", self._decode_only
        yield "saturated", lambda: self._against_limit(partial(live, rate=self._limit * OVERLOAD), "saturated")
        yield "preloaded", lambda: self._against_limit(partial(preloaded, count=self._frames(self._limit)), "preloaded")
        for name, each in (("plain_loop", "rarely"), ("plain_loop_each", "each")):
            yield name, partial(self._plain_loop, name, each)
        yield "zero_cost", lambda: median([self._zero_cost() for _ in range(self._repeat)])
        for load in LOADS:
            yield self._latency_name(load), partial(self._latency, load)
        if self._lab.broker.transactions:
            yield from self._both_deliveries()
        for count in self._memory_frames:
            yield f"memory_{count}", partial(self._memory, count)

    def _both_deliveries(self) -> Iterator[tuple[str, Callable[[], Run]]]:
        """What exactly-once delivery costs, beside the same run without it."""
        lab = replace(self._lab, delivery="exactly_once")
        saturated = partial(live, rate=self._limit * OVERLOAD)
        yield "saturated_exactly_once", lambda: self._against_limit(saturated, "saturated_exactly_once", lab)
        for name, each in (("seen_400", self._lab), ("seen_400_exactly_once", lab)):
            yield name, partial(self._seen, name, each)

    @cached_property
    def decoding(self) -> Decoding:
        """Decoding alone, measured once: what the runs without a measurement of their own stand beside."""
        return self._lab.decode_only()

    @cached_property
    def _limit(self) -> float:
        """Frames a second. Where the engine costs nothing, that is what decoding alone reaches."""
        return self._lab.engine_limit(self._engine) or self.decoding.frames_per_second

    def _frames(self, rate: float) -> int:
        """Enough for `seconds` between 10% and 90% of them, in whole rounds of the sources."""
        return max(1, round(rate * self._lab.seconds / 0.8 / SOURCES)) * SOURCES

    def _decode_only(self) -> Run:
        figures = self.decoding
        return Run(
            name="decode_only",
            engine="none",
            broker="none",
            frames=0,
            seconds=0.0,
            frames_per_second=figures.frames_per_second,
            cpu_ms_per_frame=figures.cpu_ms_per_frame,
            decode_only=figures,
        )

    def _against_limit(self, trial: Callable[[Lab, str, str], Run], name: str, lab: Lab | None = None) -> Run:
        run = trial(lab or self._lab, name, self._engine)
        return replace(
            run,
            engine_limit=self._limit,
            share_of_engine_limit=run.frames_per_second / self._limit,
            decode_only=self.decoding,
        )

    def _plain_loop(self, name: str, each: str) -> Run:
        # One frame at a time: about what the engine does with batches of one, if it is simulated as by default.
        count = self._frames(min(self._limit, 128.0 if each == "rarely" else 64.0))
        return self._against_limit(partial(preloaded, count=count, plain=each), name)

    def _zero_cost(self) -> Run:
        before = self._lab.decode_only()
        run = preloaded(self._lab, "zero_cost", ZERO_COST, self._frames(before.frames_per_second))
        after = self._lab.decode_only()
        mean = Decoding(
            statistics.fmean([before.frames_per_second, after.frames_per_second]),
            statistics.fmean([before.cpu_ms_per_frame, after.cpu_ms_per_frame]),
        )
        return replace(run, decode_only=mean)

    def _latency_name(self, load: float) -> str:
        return f"latency_{load * self._limit:.0f}"

    def _latency(self, load: float) -> Run:
        trial = partial(live, rate=load * self._limit, latency=True)
        return median([self._against_limit(trial, self._latency_name(load)) for _ in range(self._repeat)])

    def _seen(self, name: str, lab: Lab) -> Run:
        trial = partial(watched, rate=SEEN_RATE)
        return median([self._against_limit(trial, name, lab) for _ in range(self._repeat)])

    def _memory(self, count: int) -> Run:
        tiny = images.save(images.tiny_frames(), Path(self._lab.folder) / "tiny.msgpack")
        run = steady_memory(replace(self._lab, frames=tiny), f"memory_{count}", count, MEMORY_RATE)
        return replace(run, decode_only=self.decoding)
