"""The runs of a bench, and their order."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

from consumer.tools.bench import frames as images
from consumer.tools.bench.environment import SOURCES, BenchEnv
from consumer.tools.bench.figures import DecodeOnly, Run, median
from consumer.tools.bench.trials import ZERO_COST, live, live_with_reader, preloaded, steady_memory

DEFAULT_ENGINE: Final = "simulated://6.667ms@1,40ms@32"
LOADS: Final = (0.1, 0.5, 0.8)  # shares of the detector's limit: 80, 400 and 640 of 800 frames/s
OVERLOAD: Final = 1.125  # 900 of 800 frames/s
SEEN_RATE: Final = 400.0  # frames/s of the runs with a result reader
MEMORY_FRAMES: Final = (20_000, 200_000)
MEMORY_RATE: Final = 1000.0  # frames/s: low enough for two cores, so that no backlog counts


class RunPlan:
    """Selects the runs and makes them."""

    def __init__(
        self,
        env: BenchEnv,
        *,
        engine: str = DEFAULT_ENGINE,
        repeat: int = 5,
        only: Sequence[str] = (),
        memory_frames: Sequence[int] = MEMORY_FRAMES,
        on_start: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Plan the runs.

        Args:
            env: The environment of the runs.
            engine: The model, or the URL of a simulated one.
            repeat: Repeats of zero_cost and of the latency runs; their figures are medians.
            only: Prefixes of the names of the runs to make. Default: all runs but memory, which takes minutes.
            memory_frames: Numbers of frames of the memory runs.
            on_start: Called with the name of each run before it starts.
        """
        self._env = env
        self._engine = engine
        self._repeat = repeat
        self._only = only
        self._memory_frames = memory_frames
        self._on_start = on_start

    def runs(self) -> Iterator[Run]:
        """Make the selected runs, one after the other."""
        for name, make in self._offered():
            if name.startswith(tuple(self._only)) if self._only else not name.startswith("memory"):
                self._on_start(name)
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
        if self._env.broker.transactions:
            yield from self._both_deliveries()
        for count in self._memory_frames:
            yield f"memory_{count}", partial(self._memory, count)

    def _both_deliveries(self) -> Iterator[tuple[str, Callable[[], Run]]]:
        """The runs that compare exactly-once delivery with at-least-once delivery."""
        exactly_once = replace(self._env, delivery="exactly_once")
        saturated = partial(live, rate=self._limit * OVERLOAD)
        yield "saturated_exactly_once", lambda: self._against_limit(saturated, "saturated_exactly_once", exactly_once)
        for name, env in (("seen_400", self._env), ("seen_400_exactly_once", exactly_once)):
            yield name, partial(self._seen, name, env)

    @cached_property
    def decoding(self) -> DecodeOnly:
        """The figures of decoding by itself, measured once, for runs that do not measure it themselves."""
        return self._env.decode_only()

    @cached_property
    def _limit(self) -> float:
        """The highest rate in frames/s: that of the detector, or that of decoding if the detector costs nothing."""
        return self._env.engine_limit(self._engine) or self.decoding.frames_per_second

    def _frames(self, rate: float) -> int:
        """Frames for `seconds` between 10% and 90% of them, a multiple of the number of sources."""
        return max(1, round(rate * self._env.seconds / 0.8 / SOURCES)) * SOURCES

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

    def _against_limit(self, trial: Callable[[BenchEnv, str, str], Run], name: str, env: BenchEnv | None = None) -> Run:
        run = trial(env or self._env, name, self._engine)
        return replace(
            run,
            engine_limit=self._limit,
            share_of_engine_limit=run.frames_per_second / self._limit,
            decode_only=self.decoding,
        )

    def _plain_loop(self, name: str, each: str) -> Run:
        # One frame at a time: about the rate of the default simulated detector with batches of one.
        count = self._frames(min(self._limit, 128.0 if each == "rarely" else 64.0))
        return self._against_limit(partial(preloaded, count=count, plain=each), name)

    def _zero_cost(self) -> Run:
        before = self._env.decode_only()
        run = preloaded(self._env, "zero_cost", ZERO_COST, self._frames(before.frames_per_second))
        after = self._env.decode_only()
        mean = DecodeOnly(
            statistics.fmean([before.frames_per_second, after.frames_per_second]),
            statistics.fmean([before.cpu_ms_per_frame, after.cpu_ms_per_frame]),
        )
        return replace(run, decode_only=mean)

    def _latency_name(self, load: float) -> str:
        return f"latency_{load * self._limit:.0f}"

    def _latency(self, load: float) -> Run:
        trial = partial(live, rate=load * self._limit, latency=True)
        return median([self._against_limit(trial, self._latency_name(load)) for _ in range(self._repeat)])

    def _seen(self, name: str, env: BenchEnv) -> Run:
        trial = partial(live_with_reader, rate=SEEN_RATE)
        return median([self._against_limit(trial, name, env) for _ in range(self._repeat)])

    def _memory(self, count: int) -> Run:
        tiny = images.save(images.tiny_frames(), Path(self._env.folder) / "tiny.msgpack")
        run = steady_memory(replace(self._env, frames=tiny), f"memory_{count}", count, MEMORY_RATE)
        return replace(run, decode_only=self.decoding)
