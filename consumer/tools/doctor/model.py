"""The model: is it the one that was meant, does it load on this device, does the largest batch fit, how long is one?"""

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
    """A model that was loaded and run. `batch_s`: seconds for the largest batch, once warm."""

    info: ModelInfo
    device: str
    batch: int
    batch_s: float


def probe_model(config: Config) -> ModelProbe:
    """Load the model as the program will, warm it up, and run the largest batch of empty pictures.

    Raises ModelError, with what to do, where it is missing, not the one that was meant, of the wrong kind, or does not
    run here. Takes as long as the program's own start, and as much memory.
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
                "or see who else uses the device"
            ) from error
        return ModelProbe(detector.info, detector.device, batch, min(seconds))
    finally:
        detector.close()


def model(config: Config, tried: ModelProbe, report: Reporter) -> Iterator[Finding]:
    """What was found out by trying."""
    info = tried.info
    if tried.device == "simulated":
        yield report.warning(
            f"{info.name} is a simulated engine: it sees nothing", "set detector.model to a model file"
        )
        return
    pinned = "as detector.sha256 demands" if config.detector.sha256 else "detector.sha256 is not set"
    names = [info.label(number) for number in sorted(info.labels)]
    told = f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "no names"
    yield report.ok(f"{info.name}, {info.digest}, {pinned}; {told}")
    if config.detector.device == "auto" and tried.device == "cpu":
        yield report.warning(
            "detector.device is auto and there is no GPU for it here: it runs on the CPU",
            "give the pod a GPU; or set detector.device to cpu, where that is meant",
        )
    if tried.batch < config.batching.max_batch_size:
        yield report.warning(
            f"the model takes {tried.batch} frames at once, batching.max_batch_size is "
            f"{config.batching.max_batch_size}: larger batches are never made",
            f"set batching.max_batch_size to {tried.batch}, or export the model for more",
        )


def engine(config: Config, tried: ModelProbe, report: Reporter) -> Iterator[Finding]:
    """Its speed against the times that the configuration gives it."""
    batch_s, limits = tried.batch_s, config.limits
    rate = f"{tried.batch / batch_s:.0f} frames/s" if batch_s > 0 else "no limit"
    told = f"{batch_s * 1000:.1f} ms for a batch of {tried.batch} on {tried.device} ({rate})"
    drain = BATCHES * batch_s
    if batch_s >= limits.stall_timeout_s:
        yield report.problem(
            f"{told}: longer than limits.stall_timeout_s ({limits.stall_timeout_s:g} s), so any batch ends the program",
            "lower batching.max_batch_size, or raise limits.stall_timeout_s",
        )
    elif drain > limits.drain_timeout_s / 2:
        yield report.warning(
            f"{told}: {BATCHES} batches may be in flight, {drain:.1f} s, and a rebalance waits for "
            f"{limits.drain_timeout_s / 2:g} s at most (half of limits.drain_timeout_s); what is left is repeated",
            "lower batching.max_batch_size, or raise limits.drain_timeout_s and the grace period",
        )
    else:
        yield report.ok(told)
