"""Checks the model: its digest, whether it loads on this device, whether the largest batch fits, and its speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from consumer.config import Config
from consumer.errors import EngineError, ModelError
from consumer.inference import BATCHES
from consumer.tools.doctor.findings import Finding, Reporter
from consumer.types import Letterbox, ModelInfo

_TRIALS = 2


@dataclass(frozen=True, slots=True)
class ModelProbe:
    """What loading and running the model showed.

    Attributes:
        batch: the size of the largest batch, in frames.
        batch_s: seconds for that batch after the warm-up.
    """

    info: ModelInfo
    device: str
    batch: int
    batch_s: float


def probe_model(config: Config) -> ModelProbe:
    """Load the model as the program does, warm it up, and run the largest batch of empty images.

    Takes as long as the start of the program, and as much memory.

    Raises:
        ModelError: the model is missing, has another digest, is of the wrong kind, or does not run on this device.
    """
    from consumer.detectors.loader import load_detector

    detector = load_detector(config.detector)
    try:
        batch = min(config.batching.max_batch_size, detector.max_batch_size or config.batching.max_batch_size)
        side = detector.policy.size
        letterboxes = [Letterbox.fit(side, side, detector.policy)] * batch
        try:
            slots = np.zeros((batch, detector.policy.slot_bytes), np.uint8)
            detector.pin(slots)
            detector.warm_up(batch)
            seconds = []
            for _ in range(_TRIALS):
                started = time.perf_counter()
                detector.detect(slots, letterboxes)
                seconds.append(time.perf_counter() - started)
        except EngineError as error:
            raise ModelError(f"the model was loaded, but does not run: {error}") from error
        except Exception as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                raise
            raise ModelError(
                f"a batch of {batch} does not fit into the memory of {detector.device}: lower batching.max_batch_size, "
                "or check which other programs use the device"
            ) from error
        return ModelProbe(detector.info, detector.device, batch, min(seconds))
    finally:
        detector.close()


def model(config: Config, probe: ModelProbe, report: Reporter) -> Iterator[Finding]:
    """Report the model and its device."""
    info = probe.info
    if probe.device == "simulated":
        yield report.warning(
            f"{info.name} is a simulated detector: it detects nothing", "set detector.model to a model file"
        )
        return
    pinned = "as detector.sha256 demands" if config.detector.sha256 else "detector.sha256 is not set"
    names = [info.label(number) for number in sorted(info.labels)]
    classes = (
        f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "no names"
    )
    yield report.ok(f"{info.name}, {info.digest}, {pinned}; {classes}")
    if config.detector.device == "auto" and probe.device == "cpu":
        yield report.warning(
            "detector.device is auto and no GPU is available: the model runs on the CPU",
            "give the pod a GPU, or set detector.device to cpu if that is intended",
        )
    if probe.batch < config.batching.max_batch_size:
        yield report.warning(
            f"the model takes at most {probe.batch} frames, batching.max_batch_size is "
            f"{config.batching.max_batch_size}: larger batches never occur",
            f"set batching.max_batch_size to {probe.batch}, or export the model for more",
        )


def engine(config: Config, probe: ModelProbe, report: Reporter) -> Iterator[Finding]:
    """Compare the duration of a batch with the time limits of the configuration."""
    batch_s, limits = probe.batch_s, config.limits
    rate = f"{probe.batch / batch_s:.0f} frames/s" if batch_s > 0 else "no limit"
    speed = f"{batch_s * 1000:.1f} ms for a batch of {probe.batch} on {probe.device} ({rate})"
    drain = BATCHES * batch_s
    if batch_s >= limits.stall_timeout_s:
        yield report.problem(
            f"{speed}: more than limits.stall_timeout_s ({limits.stall_timeout_s:g} s), so any batch ends the program",
            "lower batching.max_batch_size, or raise limits.stall_timeout_s",
        )
    elif drain > limits.drain_timeout_s / 2:
        yield report.warning(
            f"{speed}: {BATCHES} batches may be in flight, {drain:.1f} s, and a rebalance waits at most "
            f"{limits.drain_timeout_s / 2:g} s (half of limits.drain_timeout_s); the other frames are repeated",
            "lower batching.max_batch_size, or raise limits.drain_timeout_s and the grace period",
        )
    else:
        yield report.ok(speed)
