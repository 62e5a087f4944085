"""One run of a measured program: topics, load, program, and the figures of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from consumer.tools.bench import analysis
from consumer.tools.bench.analysis import Integrity, Window
from consumer.tools.bench.environment import PARTITIONS, BenchEnv
from consumer.tools.bench.figures import Run
from consumer.tools.bench.load_generator import Produced
from consumer.tools.bench.meter import Meter
from consumer.tools.bench.programs import MeasuredProgram

ZERO_COST = "simulated://0ms@1,0ms@32"
Topics = tuple[str, str, str]  # frames, results, dead letters


@dataclass(slots=True)
class _Recording:
    """What a run has recorded so far."""

    topics: Topics
    meter: Meter
    broker_meter: Meter | None
    produced: list[Produced] = field(default_factory=list)


@contextlib.contextmanager
def _measured(env: BenchEnv, program: MeasuredProgram, topics: Topics) -> Iterator[_Recording]:
    """Measure the program until the block ends, then end it in order; end it at once if the block fails."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(program)
        meter = stack.enter_context(Meter(program.pid).running())
        pid = env.broker.pid
        broker_meter = stack.enter_context(Meter(pid).running()) if pid is not None else None
        yield _Recording(topics, meter, broker_meter)
        program.finish()


def preloaded(env: BenchEnv, name: str, engine: str, count: int, *, plain: str = "") -> Run:
    """Write all frames to the topic before the program starts, and measure the middle of the run.

    Args:
        env: The environment.
        name: The name of the run.
        engine: The model, or the URL of a simulated one.
        count: The number of frames.
        plain: Measure the plain loop instead of `sluice run`: "rarely" or "each" is how often it commits.
    """
    with env.broker.topics(PARTITIONS) as topics:
        produced = env.produce(topics[0], count)
        program = (
            env.start_plain_loop(topics, engine, count, commit_each=plain == "each")
            if plain
            else env.start_sluice(topics, engine)
        )
        with _measured(env, program, topics) as recording:
            recording.produced = produced
            program.wait_handled(count)
        results, integrity = _collect(env, recording)
        run = _run(env, recording, analysis.middle(analysis.group_batches(results)), integrity)
        return replace(run, name=name, engine=engine)


def live(env: BenchEnv, name: str, engine: str, rate: float, *, latency: bool = False) -> Run:
    """Produce `rate` frames/s, evenly spaced, while the program is measured.

    The load starts when the first frame of each partition has its result. The figures start `warm_up_s` later.
    """
    with env.broker.topics(PARTITIONS) as topics:
        recording = _play(env, topics, engine, rate)
        results, integrity = _collect(env, recording)
        from_ms, until_ms = _steady(env, recording)
        run = _run(env, recording, analysis.window(analysis.group_batches(results), from_ms, until_ms), integrity)
        run = replace(run, name=name, engine=engine)
        return replace(run, latency_ms=_latencies(recording, results, from_ms, until_ms)) if latency else run


def live_with_reader(env: BenchEnv, name: str, engine: str, rate: float) -> Run:
    """As `live`, with a `read_committed` reader: latency_ms lasts until that reader has the result."""
    with env.broker.topics(PARTITIONS) as topics:
        with env.reader(topics[1]) as reader:
            recording = _play(env, topics, engine, rate)
        results, integrity = _collect(env, recording)
        from_ms, until_ms = _steady(env, recording)
        run = _run(env, recording, analysis.window(analysis.group_batches(results), from_ms, until_ms), integrity)
        visible = reader.visible_at_ms()
        read = [result._replace(produced_ms=visible[result.partition, result.offset]) for result in results]
        return replace(run, name=name, engine=engine, latency_ms=_latencies(recording, read, from_ms, until_ms))


def steady_memory(env: BenchEnv, name: str, count: int, rate: float) -> Run:
    """As `live`, for the memory of the program after `count` frames."""
    seconds = count / rate
    return live(replace(env, warm_up_s=seconds / 10, seconds=seconds * 0.9), name, ZERO_COST, rate)


def _steady(env: BenchEnv, recording: _Recording) -> tuple[float, float]:
    """Start and end of the measured part, Unix milliseconds."""
    stamps = [item.timestamp_ms for item in recording.produced[PARTITIONS:]]
    return stamps[0] + env.warm_up_s * 1000, stamps[-1]


def _latencies(
    recording: _Recording, results: Sequence[analysis.Result], from_ms: float, until_ms: float
) -> dict[str, float]:
    waits = analysis.latencies_ms(recording.produced[PARTITIONS:], results, from_ms, until_ms)
    p50, p95, p99 = np.percentile(waits, [50, 95, 99]).tolist()
    return {"p50": p50, "p95": p95, "p99": p99}


def _play(env: BenchEnv, topics: Topics, engine: str, rate: float) -> _Recording:
    first = env.produce(topics[0], PARTITIONS)
    program = env.start_sluice(topics, engine)
    with _measured(env, program, topics) as recording:
        program.wait_ready()
        program.wait_handled(PARTITIONS)
        # The bench polls no metrics until the load generator has ended: an answer costs the program milliseconds.
        count = PARTITIONS + round(rate * (env.warm_up_s + env.seconds))
        load = env.produce(topics[0], count - PARTITIONS, rate)
        recording.produced = sorted(first, key=_time) + sorted(load, key=_time)
        program.wait_handled(count)
    return recording


def _collect(env: BenchEnv, recording: _Recording) -> tuple[list[analysis.Result], Integrity]:
    settings = {**env.broker.client, **env.broker.settings}
    _, results, dead = (
        analysis.read_topic(env.broker.bootstrap_servers, topic, settings) if number else []
        for number, topic in enumerate(recording.topics)
    )
    parsed = analysis.parse(results)
    return parsed, analysis.check(recording.produced, parsed, len(dead))


def _run(env: BenchEnv, recording: _Recording, steady: Window, integrity: Integrity) -> Run:
    def cpu_ms(meter: Meter | None) -> float | None:
        if meter is None or not meter.has_samples:
            return None
        return meter.cpu_s(steady.from_ms, steady.until_ms) * 1000 / steady.frames

    last, most = recording.meter.resident() if recording.meter.has_samples else (0, 0)
    return Run(
        name="",
        engine="",
        broker=env.broker.name,
        frames=integrity.frames_in,
        seconds=(steady.until_ms - steady.from_ms) / 1000,
        frames_per_second=steady.frames_per_second,
        engine_busy_share=steady.engine_busy_share,
        cpu_ms_per_frame=cpu_ms(recording.meter),
        broker_cpu_ms_per_frame=cpu_ms(recording.broker_meter),
        batch_sizes=steady.sizes,
        resident_mb={"end": last / 2**20, "peak": most / 2**20} if last else None,
        integrity=integrity,
    )


def _time(item: Produced) -> int:
    return item.timestamp_ms
