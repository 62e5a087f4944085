"""One run: broker, consumer and cameras together, then the accounts. Ends all that it started, whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from consumer.errors import SluiceError
from consumer.tools import stream as producing
from consumer.tools.demo.audit import Shot, TopicReader, audit, outcome_id
from consumer.tools.demo.broker import PARTITIONS, Broker, broker_with_topics
from consumer.tools.demo.sources import shared_out, shares, street_cameras, video_cameras
from consumer.tools.demo.subject import Metrics, Subject
from consumer.tools.demo.summary import Engine, Summary, summarise
from consumer.tools.images import ImageSource

SIMULATED: Final = "simulated://"
_READY_S: Final = 180.0  # a model may take a minute to load
_DOWNLOAD_S: Final = 900.0
_STALL_S: Final = 60.0  # no outcome for so long: what is still missing is lost
_DRAIN_S: Final = 45.0  # limits.drain_timeout_s and a little more


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `frames`: of all `sources` together; `pictures`: drawn per source; `client`: `-X` settings."""

    model: str
    out: Path
    sources: int
    frames: int
    fps: float
    videos: tuple[Path, ...] = ()
    pictures: int = 4
    download: bool = False
    bootstrap_servers: str | None = None
    client: Mapping[str, str] = field(default_factory=dict)

    def wanted(self, frames: int) -> set[int]:
        """The numbers of the frames to draw, of a source with so many: spread evenly."""
        count = min(self.pictures, frames)
        return {(2 * n + 1) * frames // (2 * count) for n in range(count)}


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that came to its end, with what was wrong with it; `log`: the end of the consumer's."""

    summary: Summary
    shots: Sequence[Shot]
    problems: Sequence[str]
    log: str


class Show(Protocol):
    """Tells a person what goes on."""

    def step(self, text: str) -> None:
        """A new step begins."""

    def detail(self, text: str) -> None:
        """How far the step is; often."""

    def flow(self, sent: int, received: int, total: int, per_second: float) -> None:
        """How the frames flow; often."""


def run(plan: Plan, show: Show, log: Path) -> Ran:
    """Make the run. Raises SluiceError where it could not be made at all."""
    outside = plan.bootstrap_servers
    show.step("starting a broker in memory" if outside is None else f"making topics on {outside}")
    with broker_with_topics(plan.bootstrap_servers, plan.client) as broker:
        show.step(f"starting the consumer: sluice run with {plan.model}")
        with Subject(_options(plan, broker), log) as subject:
            cameras = video_cameras(plan.videos, plan.sources) if plan.videos else street_cameras(plan.sources)
            show.step("waiting for the consumer")
            subject.wait_ready(PARTITIONS, _DOWNLOAD_S if plan.download else _READY_S, show.detail)
            pace = f"{plan.fps:g} a second each" if plan.fps else "as fast as it goes"
            show.step(f"streaming {plan.frames} frames of {_counted(len(cameras), 'camera')}, {pace}")
            before, started = subject.metrics(), time.monotonic()
            acknowledged = _stream(plan, cameras, broker, subject, show)
            after, seconds = subject.metrics(), time.monotonic() - started
            show.step("stopping the consumer and checking the accounts")
            problem = subject.drain(_DRAIN_S)
            found = audit(broker, {name: plan.wanted(n) for name, n in shares(cameras, plan.frames).items()})
            summary = summarise(
                found.inputs,
                found.outcomes,
                acknowledged=acknowledged,
                committed=found.committed,
                engine=_engine(plan, before, after, seconds),
                sources=[camera.name for camera in cameras],
            )
            problems = [problem] * bool(problem) + summary.problems
            if acknowledged < plan.frames and not problem:
                problems.append(f"only {acknowledged} of {plan.frames} frames reached the broker")
            return Ran(summary, found.shots, problems, subject.log_tail())


def _options(plan: Plan, broker: Broker) -> dict[str, Any]:
    topics = broker.topics
    return {
        "kafka.bootstrap_servers": broker.bootstrap_servers,
        "kafka.group_id": topics.group,
        "kafka.client": dict(broker.client),
        "kafka.consumer": dict(broker.consumer),
        "input.topics": [topics.frames],
        "output.topic": topics.detections,
        "dead_letter.topic": topics.dead,
        "detector.model": plan.model,
        "detector.allow_download": plan.download,
    }


def _engine(plan: Plan, before: Metrics | None, after: Metrics | None, seconds: float) -> Engine:
    """Who looked, and how busy it was between two looks at its counter."""
    known = after or before
    busy = after.busy_s - before.busy_s if after is not None and before is not None else 0.0
    return Engine(
        model=known.model if known else plan.model,
        device=known.device if known else "",
        simulated=plan.model.startswith(SIMULATED),
        busy_share=busy / max(seconds, 1e-9),
    )


class _Producer:
    """The cameras at work, in a thread of their own: the main thread reads results, and is free for signals."""

    def __init__(self, plan: Plan, cameras: Sequence[ImageSource], broker: Broker) -> None:
        self.summary = producing.Summary((), 0.0)
        self._stop = threading.Event()
        self._error: SluiceError | None = None
        self._thread = threading.Thread(target=self._work, args=(plan, cameras, broker), name="cameras", daemon=True)
        self._thread.start()

    def _work(self, plan: Plan, cameras: Sequence[ImageSource], broker: Broker) -> None:
        try:
            self._note(
                producing.stream(
                    shared_out(cameras, plan.frames),
                    bootstrap_servers=broker.bootstrap_servers,
                    topic=broker.topics.frames,
                    fps=plan.fps,
                    settings=broker.client,
                    stop=self._stop,
                    on_progress=self._note,
                )
            )
        except SluiceError as error:
            self._error = error

    def _note(self, summary: producing.Summary) -> None:
        self.summary = summary

    @property
    def working(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Send no more, and wait until all that was sent has its report."""
        self._stop.set()
        self._thread.join(60)

    def acknowledged(self) -> int:
        """Frames that the broker has. Raises what went wrong in the thread."""
        if self._error is not None:
            raise self._error
        return self.summary.total("acknowledged")


def _stream(plan: Plan, cameras: Sequence[ImageSource], broker: Broker, subject: Subject, show: Show) -> int:
    """Stream until every frame has its outcome, or none comes any more. Returns the frames acknowledged."""
    seen: set[bytes | None] = set()
    with TopicReader(broker, broker.topics.detections, broker.topics.dead) as reader:
        producer = _Producer(plan, cameras, broker)
        try:
            heard = started = time.monotonic()
            while producer.working or len(seen) < producer.acknowledged():
                if (message := reader.poll(0.1)) is not None:
                    seen.add(outcome_id(message))
                    heard = time.monotonic()
                seconds = time.monotonic() - started
                show.flow(producer.summary.total("sent"), len(seen), plan.frames, len(seen) / max(seconds, 1e-9))
                if not subject.running or time.monotonic() - heard > _STALL_S:
                    break
        finally:
            producer.stop()
        return producer.acknowledged()


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"
