"""One run of the real program, or of what it is compared with: topics, producer, subject, and what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from consumer.detectors.simulated import SCHEME, ServiceTime
from consumer.tools.bench import analysis
from consumer.tools.bench.analysis import Integrity, Window
from consumer.tools.bench.baseline import Alone
from consumer.tools.bench.broker import Broker
from consumer.tools.bench.figures import Decoding, Run
from consumer.tools.bench.load_generator import Fed, Feed
from consumer.tools.bench.plain_loop import PlainLoop
from consumer.tools.bench.processes import Child, Ending, Meter, Sluice, Subject
from consumer.tools.bench.result_reader import Watch

ZERO_COST = "simulated://0ms@1,0ms@32"
SOURCES, PARTITIONS = 8, 4
_CHILD_S = 600.0  # a child that takes longer hangs


@dataclass(frozen=True, slots=True)
class Lab:
    """Where runs are made. `batch`: the program's largest; `threads`: of decoding; `folder`: for files of the runs."""

    broker: Broker
    folder: Path
    frames: Path
    batch: int
    threads: int
    image_size: int
    device: str
    seconds: float
    warm_up_s: float
    delivery: str = "at_least_once"

    def decode_only(self) -> Decoding:
        """Measure decoding alone, in a fresh process, now."""
        return Decoding(**self._alone("decode", "", max(1.0, min(3.0, self.seconds))))

    def engine_limit(self, engine: str) -> float | None:
        """Frames a second of the engine alone: by its curve where it is simulated, else measured. None: unlimited."""
        if engine.startswith(SCHEME):
            seconds = ServiceTime.parse(engine).seconds(self.batch)
            return self.batch / seconds if seconds > 0 else None
        return self._alone("engine", engine, self.seconds)["frames_per_second"]

    def feed(self, topic: str, count: int, rate: float = 0.0) -> list[Fed]:
        """Run the producer to its end. `rate` in frames a second, 0: as fast as it can."""
        report = self.folder / "fed.msgpack"
        job = Feed(
            bootstrap_servers=self.broker.bootstrap_servers,
            topic=topic,
            frames=str(self.frames),
            count=count,
            rate=rate,
            sources=SOURCES,
            partitions=PARTITIONS,
            report=str(report),
            own_broker=self.broker.is_ours,
        )
        with Child("consumer.tools.bench.load_generator", job.argument()) as child:
            child.wait(_CHILD_S + (count / rate if rate else 0.0))
        return job.acknowledged()

    def sluice(self, topics: tuple[str, str, str], engine: str) -> Sluice:
        """The real program, started."""
        frames, results, dead = topics
        unsecured: dict[str, Any] = {"kafka.client": {}, "kafka.secrets": {}} if self.broker.is_ours else {}
        return Sluice(
            {
                **unsecured,
                "kafka.bootstrap_servers": self.broker.bootstrap_servers,
                "kafka.group_id": frames,
                "kafka.consumer": dict(self.broker.settings),
                "input.topics": [frames],
                "output.topic": results,
                "dead_letter.topic": dead,
                "detector.model": engine,
                "detector.device": self.device,
                "delivery": self.delivery,
            }
        )

    def plain_loop(self, topics: tuple[str, str, str], engine: str, count: int, *, each: bool) -> Ending:
        """The plain loop, started; it ends after `count` frames."""
        job = PlainLoop(
            bootstrap_servers=self.broker.bootstrap_servers,
            group=topics[0],
            consumer_settings=dict(self.broker.settings),
            topic=topics[0],
            output=topics[1],
            model=engine,
            device=self.device,
            count=count,
            each=each,
            own_broker=self.broker.is_ours,
        )
        return Ending(Child("consumer.tools.bench.plain_loop", job.argument()), _CHILD_S)

    @contextlib.contextmanager
    def watched(self, topic: str) -> Iterator[Watch]:
        """A reader of the results, at work while the block lasts."""
        job = Watch(self.broker.bootstrap_servers, topic, str(self.folder / "seen.msgpack"))
        with Child("consumer.tools.bench.result_reader", job.argument()) as child:
            yield job
            child.terminate()

    def _alone(self, part: str, model: str, seconds: float) -> dict[str, float]:
        job = Alone(
            part=part,
            frames=str(self.frames),
            seconds=seconds,
            threads=self.threads,
            batch=self.batch,
            image_size=self.image_size,
            model=model,
            device=self.device,
        )
        with Child("consumer.tools.bench.baseline", job.argument()) as child:
            figures: dict[str, float] = child.result(_CHILD_S)
        return figures


@dataclass(slots=True)
class _Course:
    """What happened in a run, as far as it has come."""

    topics: tuple[str, str, str]
    meter: Meter
    broker_meter: Meter | None
    fed: list[Fed] = field(default_factory=list)


@contextlib.contextmanager
def _measured(lab: Lab, subject: Subject, topics: tuple[str, str, str]) -> Iterator[_Course]:
    """The subject, measured while the block lasts, then ended in order; killed where the block fails."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(subject.child)
        meter = stack.enter_context(Meter(subject.child.pid).running())
        pid = lab.broker.pid
        broker_meter = stack.enter_context(Meter(pid).running()) if pid is not None else None
        yield _Course(topics, meter, broker_meter)
        subject.finish()


def preloaded(lab: Lab, name: str, engine: str, count: int, *, plain: str = "") -> Run:
    """All frames are in the topic before the subject starts. `plain`: the plain loop, committing "rarely" or "each"."""
    with lab.broker.topics(PARTITIONS) as topics:
        fed = lab.feed(topics[0], count)
        subject = lab.plain_loop(topics, engine, count, each=plain == "each") if plain else lab.sluice(topics, engine)
        with _measured(lab, subject, topics) as course:
            course.fed = fed
            subject.wait_handled(count)
        results, integrity = _collect(lab, course)
        run = _run(lab, course, analysis.middle(analysis.batches(results)), integrity)
        return replace(run, name=name, engine=engine)


def live(lab: Lab, name: str, engine: str, rate: float, *, latency: bool = False) -> Run:
    """The producer is at work for as long as is measured, evenly paced at `rate` frames a second.

    It begins once a first frame of each partition has come through, and the figures after `warm_up_s` more.
    """
    with lab.broker.topics(PARTITIONS) as topics:
        course = _play(lab, topics, engine, rate)
        results, integrity = _collect(lab, course)
        from_ms, until_ms = _steady(lab, course)
        run = _run(lab, course, analysis.window(analysis.batches(results), from_ms, until_ms), integrity)
        run = replace(run, name=name, engine=engine)
        return replace(run, latency_ms=_latencies(course, results, from_ms, until_ms)) if latency else run


def watched(lab: Lab, name: str, engine: str, rate: float) -> Run:
    """As `live`, beside a `read_committed` reader: latency_ms is until that one has the result."""
    with lab.broker.topics(PARTITIONS) as topics:
        with lab.watched(topics[1]) as watch:
            course = _play(lab, topics, engine, rate)
        results, integrity = _collect(lab, course)
        from_ms, until_ms = _steady(lab, course)
        run = _run(lab, course, analysis.window(analysis.batches(results), from_ms, until_ms), integrity)
        seen = watch.seen()
        arrived = [result._replace(produced_ms=seen[result.partition, result.offset]) for result in results]
        return replace(run, name=name, engine=engine, latency_ms=_latencies(course, arrived, from_ms, until_ms))


def steady_memory(lab: Lab, name: str, count: int, rate: float) -> Run:
    """As `live`, for what the program holds after so many frames."""
    seconds = count / rate
    return live(replace(lab, warm_up_s=seconds / 10, seconds=seconds * 0.9), name, ZERO_COST, rate)


def _steady(lab: Lab, course: _Course) -> tuple[float, float]:
    """From when to when is measured, Unix milliseconds."""
    stamps = [item.timestamp_ms for item in course.fed[PARTITIONS:]]
    return stamps[0] + lab.warm_up_s * 1000, stamps[-1]


def _latencies(
    course: _Course, results: Sequence[analysis.Result], from_ms: float, until_ms: float
) -> dict[str, float]:
    waits = analysis.latencies_ms(course.fed[PARTITIONS:], results, from_ms, until_ms)
    p50, p95, p99 = np.percentile(waits, [50, 95, 99]).tolist()
    return {"p50": p50, "p95": p95, "p99": p99}


def _play(lab: Lab, topics: tuple[str, str, str], engine: str, rate: float) -> _Course:
    first = lab.feed(topics[0], PARTITIONS)
    subject = lab.sluice(topics, engine)
    with _measured(lab, subject, topics) as course:
        subject.wait_ready()
        subject.wait_handled(PARTITIONS)
        # Nobody asks the program anything until the producer has ended: an answer costs it milliseconds.
        count = PARTITIONS + round(rate * (lab.warm_up_s + lab.seconds))
        course.fed = sorted(first, key=_time) + sorted(lab.feed(topics[0], count - PARTITIONS, rate), key=_time)
        subject.wait_handled(count)
    return course


def _collect(lab: Lab, course: _Course) -> tuple[list[analysis.Result], Integrity]:
    settings = {**lab.broker.client, **lab.broker.settings}
    _, results, dead = (
        analysis.read_topic(lab.broker.bootstrap_servers, topic, settings) if number else []
        for number, topic in enumerate(course.topics)
    )
    parsed = analysis.parse(results)
    return parsed, analysis.check(course.fed, parsed, len(dead))


def _run(lab: Lab, course: _Course, steady: Window, integrity: Integrity) -> Run:
    def cpu_ms(meter: Meter | None) -> float | None:
        known = meter is not None and meter.known
        return meter.cpu_s(steady.from_ms, steady.until_ms) * 1000 / steady.frames if known and meter else None

    last, most = course.meter.resident() if course.meter.known else (0, 0)
    return Run(
        name="",
        engine="",
        broker=lab.broker.name,
        frames=integrity.frames_in,
        seconds=(steady.until_ms - steady.from_ms) / 1000,
        frames_per_second=steady.frames_per_second,
        engine_busy_share=steady.engine_busy_share,
        cpu_ms_per_frame=cpu_ms(course.meter),
        broker_cpu_ms_per_frame=cpu_ms(course.broker_meter),
        batch_sizes=steady.sizes,
        resident_mb={"end": last / 2**20, "peak": most / 2**20} if last else None,
        integrity=integrity,
    )


def _time(item: Fed) -> int:
    return item.timestamp_ms
