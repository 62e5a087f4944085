"""One run of the demo: broker, consumer and cameras, then the check. Ends every process that it started."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from consumer.errors import SluiceError
from consumer.tools import frame_sender as producing
from consumer.tools.demo.audit import DrawnFrame, TopicReader, audit, outcome_id
from consumer.tools.demo.broker import PARTITIONS, DemoBroker, broker_with_topics
from consumer.tools.demo.sources import limited, shares, street_cameras, video_cameras
from consumer.tools.demo.summary import DetectorUse, Summary, summarise
from consumer.tools.images import ImageSource
from consumer.tools.processes import Metrics, ProcessError, SluiceProcess

SIMULATED: Final = "simulated://"
_READY_S: Final = 180.0  # a model may take a minute to load
_DOWNLOAD_S: Final = 900.0
_STALL_S: Final = 60.0  # without an outcome for this long, the missing ones are lost
_DRAIN_S: Final = 45.0  # a little more than limits.drain_timeout_s
# Variables of the shell for these sections are meant for another consumer. All others (batching, detector, decode,
# limits) apply, so that a user can try them out.
_NOT_INHERITED: Final = ("CONFIG", "KAFKA", "INPUT", "OUTPUT", "DEAD_LETTER")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run.

    Attributes:
        model: The model, or the URL of a simulated detector.
        out: The folder for pictures and log.
        sources: The number of cameras.
        frames: The number of frames of all cameras together.
        fps: Frames/s of each camera; 0: as fast as possible.
        videos: Videos to play instead of the clips of the package.
        pictures: The number of pictures per camera.
        download: Whether Ultralytics may download the model.
        bootstrap_servers: Address of an existing broker. None: the embedded broker.
        client: Settings of every client (`-X`).
    """

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
        """The numbers of the frames to draw, evenly spread over the `frames` of a source."""
        count = min(self.pictures, frames)
        return {(2 * n + 1) * frames // (2 * count) for n in range(count)}


@dataclass(frozen=True, slots=True)
class RunReport:
    """A completed run. `problems` has one sentence per fault, `log` the end of the consumer's log."""

    summary: Summary
    drawn: Sequence[DrawnFrame]
    problems: Sequence[str]
    log: str


class Progress(Protocol):
    """Shows the progress of a run."""

    def step(self, text: str) -> None:
        """A new step begins."""

    def detail(self, text: str) -> None:
        """The state within the step; called often."""

    def flow(self, sent: int, received: int, total: int, per_second: float) -> None:
        """The number of frames sent and of outcomes received; called often."""


def run(options: RunOptions, progress: Progress, log: Path) -> RunReport:
    """Make the run.

    Args:
        options: What to run.
        progress: Receives the steps.
        log: The file for the log of the consumer.

    Raises:
        SluiceError: The run could not be completed.
    """
    existing = options.bootstrap_servers
    progress.step("starting a broker in memory" if existing is None else f"creating topics on {existing}")
    with broker_with_topics(options.bootstrap_servers, options.client) as broker:
        progress.step(f"starting the consumer: sluice run with {options.model}")
        with SluiceProcess(_configuration(options, broker), log=log, not_inherited=_NOT_INHERITED) as consumer:
            videos = options.videos
            cameras = video_cameras(videos, options.sources) if videos else street_cameras(options.sources)
            progress.step("waiting for the consumer")
            consumer.wait_ready(PARTITIONS, _DOWNLOAD_S if options.download else _READY_S, progress.detail)
            pace = f"{options.fps:g} a second each" if options.fps else "as fast as possible"
            progress.step(f"streaming {options.frames} frames of {_counted(len(cameras), 'camera')}, {pace}")
            before, started = consumer.metrics(), time.monotonic()
            acknowledged = _stream(options, cameras, broker, consumer, progress)
            after, seconds = consumer.metrics(), time.monotonic() - started
            progress.step("stopping the consumer and checking its results")
            problem = _drain(consumer)
            found = audit(broker, {name: options.wanted(n) for name, n in shares(cameras, options.frames).items()})
            summary = summarise(
                found.inputs,
                found.outcomes,
                acknowledged=acknowledged,
                committed=found.committed,
                detector=_detector_use(options, before, after, seconds),
                sources=[camera.name for camera in cameras],
            )
            problems = [problem] * bool(problem) + summary.problems
            if acknowledged < options.frames and not problem:
                problems.append(f"only {acknowledged} of {options.frames} frames reached the broker")
            return RunReport(summary, found.drawn, problems, consumer.log_tail())


def _drain(consumer: SluiceProcess) -> str:
    """Stop the consumer in order. Returns what went wrong, or an empty string."""
    if not consumer.running:
        return f"the consumer ended {consumer.exit_description()} before the demo stopped it"
    try:
        consumer.terminate(_DRAIN_S)
    except ProcessError:
        if consumer.running:
            return f"the consumer did not drain within {_DRAIN_S:.0f} s"
        return f"the consumer ended {consumer.exit_description()}"
    return ""


def _configuration(options: RunOptions, broker: DemoBroker) -> dict[str, Any]:
    topics = broker.topics
    return {
        "kafka.bootstrap_servers": broker.bootstrap_servers,
        "kafka.group_id": topics.group,
        "kafka.client": dict(broker.client),
        "kafka.consumer": dict(broker.consumer),
        "input.topics": [topics.frames],
        "output.topic": topics.detections,
        "dead_letter.topic": topics.dead,
        "detector.model": options.model,
        "detector.allow_download": options.download,
    }


def _detector_use(options: RunOptions, before: Metrics | None, after: Metrics | None, seconds: float) -> DetectorUse:
    """The detector, and its busy share between two readings of its metrics."""
    known = after or before
    busy = after.busy_s - before.busy_s if after is not None and before is not None else 0.0
    return DetectorUse(
        model=known.model if known else options.model,
        device=known.device if known else "",
        simulated=options.model.startswith(SIMULATED),
        busy_share=busy / max(seconds, 1e-9),
    )


class _Producer:
    """Streams the cameras in a thread of its own, so that the main thread reads results and handles signals."""

    def __init__(self, options: RunOptions, cameras: Sequence[ImageSource], broker: DemoBroker) -> None:
        self.summary = producing.Summary((), 0.0)
        self._stop = threading.Event()
        self._error: SluiceError | None = None
        self._thread = threading.Thread(target=self._run, args=(options, cameras, broker), name="cameras", daemon=True)
        self._thread.start()

    def _run(self, options: RunOptions, cameras: Sequence[ImageSource], broker: DemoBroker) -> None:
        try:
            self._note(
                producing.send_frames(
                    limited(cameras, options.frames),
                    bootstrap_servers=broker.bootstrap_servers,
                    topic=broker.topics.frames,
                    fps=options.fps,
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
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Send no more frames, and wait until all sent frames have their delivery report."""
        self._stop.set()
        self._thread.join(60)

    def acknowledged(self) -> int:
        """The number of acknowledged frames. Raises the error of the thread, if there was one."""
        if self._error is not None:
            raise self._error
        return self.summary.total("acknowledged")


def _stream(
    options: RunOptions, cameras: Sequence[ImageSource], broker: DemoBroker, consumer: SluiceProcess, progress: Progress
) -> int:
    """Stream until every frame has its outcome, or outcomes stop. Returns the number of acknowledged frames."""
    seen: set[bytes | None] = set()
    with TopicReader(broker, broker.topics.detections, broker.topics.dead) as reader:
        producer = _Producer(options, cameras, broker)
        try:
            progress_at = started = time.monotonic()
            while producer.running or len(seen) < producer.acknowledged():
                if (message := reader.poll(0.1)) is not None:
                    seen.add(outcome_id(message))
                    progress_at = time.monotonic()
                seconds = time.monotonic() - started
                progress.flow(producer.summary.total("sent"), len(seen), options.frames, len(seen) / max(seconds, 1e-9))
                if not consumer.running or time.monotonic() - progress_at > _STALL_S:
                    break
        finally:
            producer.stop()
        return producer.acknowledged()


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"
