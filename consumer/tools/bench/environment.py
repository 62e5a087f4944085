"""Where the runs of a bench are made: the broker, the frames, the settings, and the processes that they need."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from consumer.detectors.simulated import SCHEME, ServiceTime
from consumer.tools.bench.baseline import BaselineJob
from consumer.tools.bench.broker import BenchBroker
from consumer.tools.bench.figures import DecodeOnly
from consumer.tools.bench.load_generator import LoadJob, Produced
from consumer.tools.bench.plain_loop import PlainLoopJob
from consumer.tools.bench.programs import MeasuredSluice, PlainLoopProcess
from consumer.tools.bench.result_reader import ReadJob
from consumer.tools.processes import ChildProcess

SOURCES, PARTITIONS = 8, 4
_CHILD_S: Final = 600.0  # time limit of a child process
_END_READER_S: Final = 40.0


@dataclass(frozen=True, slots=True)
class BenchEnv:
    """The environment of the runs.

    Attributes:
        broker: The broker of all runs.
        folder: The folder for files of the runs.
        frames: The file of the frames (`frames.save`).
        batch: `batching.max_batch_size` of the program.
        threads: Decoding threads of the program.
        image_size: `detector.image_size` of the program.
        device: `detector.device` of the program.
        seconds: Duration of the measured part of a run.
        warm_up_s: Duration of the load before the measured part.
        delivery: `delivery` of the program.
    """

    broker: BenchBroker
    folder: Path
    frames: Path
    batch: int
    threads: int
    image_size: int
    device: str
    seconds: float
    warm_up_s: float
    delivery: str = "at_least_once"

    def decode_only(self) -> DecodeOnly:
        """Measure decoding by itself, in a new process."""
        return DecodeOnly(**self._baseline("decode", "", max(1.0, min(3.0, self.seconds))))

    def engine_limit(self, engine: str) -> float | None:
        """Frames/s of the detector by itself: computed for a simulated one, else measured. None: unlimited."""
        if engine.startswith(SCHEME):
            seconds = ServiceTime.parse(engine).seconds(self.batch)
            return self.batch / seconds if seconds > 0 else None
        return self._baseline("engine", engine, self.seconds)["frames_per_second"]

    def produce(self, topic: str, count: int, rate: float = 0.0) -> list[Produced]:
        """Run the load generator until it ends.

        Args:
            topic: The topic to write to.
            count: The number of frames.
            rate: Frames/s; 0: as fast as the broker accepts them.

        Returns:
            The acknowledged frames.
        """
        report = self.folder / "produced.msgpack"
        job = LoadJob(
            bootstrap_servers=self.broker.bootstrap_servers,
            topic=topic,
            frames=str(self.frames),
            count=count,
            rate=rate,
            sources=SOURCES,
            partitions=PARTITIONS,
            report=str(report),
            embedded=self.broker.is_embedded,
        )
        with ChildProcess("consumer.tools.bench.load_generator", job.argument()) as child:
            child.wait(_CHILD_S + (count / rate if rate else 0.0))
        return job.acknowledged()

    def start_sluice(self, topics: tuple[str, str, str], engine: str) -> MeasuredSluice:
        """Start `sluice run` on topics for frames, results and dead letters."""
        frames, results, dead = topics
        unsecured: dict[str, Any] = {"kafka.client": {}, "kafka.secrets": {}} if self.broker.is_embedded else {}
        return MeasuredSluice(
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

    def start_plain_loop(
        self, topics: tuple[str, str, str], engine: str, count: int, *, commit_each: bool
    ) -> PlainLoopProcess:
        """Start the plain loop, which ends after `count` frames."""
        job = PlainLoopJob(
            bootstrap_servers=self.broker.bootstrap_servers,
            group=topics[0],
            consumer_settings=dict(self.broker.settings),
            topic=topics[0],
            output=topics[1],
            model=engine,
            device=self.device,
            count=count,
            commit_each=commit_each,
            embedded=self.broker.is_embedded,
        )
        return PlainLoopProcess(job.argument(), _CHILD_S)

    @contextlib.contextmanager
    def reader(self, topic: str) -> Iterator[ReadJob]:
        """Run the result reader on a topic until the block ends. Its report is complete after the block."""
        job = ReadJob(self.broker.bootstrap_servers, topic, str(self.folder / "visible.msgpack"))
        with ChildProcess("consumer.tools.bench.result_reader", job.argument()) as child:
            yield job
            child.terminate(_END_READER_S)

    def _baseline(self, part: str, model: str, seconds: float) -> dict[str, float]:
        report = self.folder / "baseline.json"
        job = BaselineJob(
            part=part,
            frames=str(self.frames),
            seconds=seconds,
            threads=self.threads,
            batch=self.batch,
            image_size=self.image_size,
            report=str(report),
            model=model,
            device=self.device,
        )
        with ChildProcess("consumer.tools.bench.baseline", job.argument()) as child:
            child.wait(_CHILD_S)
        figures: dict[str, float] = json.loads(report.read_text())
        return figures
