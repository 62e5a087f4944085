"""Child process: measures one part of the program by itself, decoding or the detector.

python -m consumer.tools.bench.baseline JSON     (the fields of `BaselineJob`)
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consumer.config import DecodeConfig, DetectorConfig
from consumer.decoding import Decoder
from consumer.tools.bench import frames as images
from consumer.types import Letterbox, LetterboxPolicy

_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class BaselineJob:
    """What to measure.

    Attributes:
        part: "decode" or "engine".
        frames: A file of `frames.save`.
        seconds: Duration of the measurement.
        threads: Threads that decode at the same time.
        batch: Frames in one call of the detector, or in the buffer of one decoding thread.
        image_size: Side of the letterboxed image in pixels.
        report: The JSON file to write the figures to.
        model: The model, if the part is "engine".
        device: The device of the model.
    """

    part: str
    frames: str
    seconds: float
    threads: int
    batch: int
    image_size: int
    report: str
    model: str = ""
    device: str = "auto"

    def argument(self) -> str:
        """The job as the command line argument of the child process."""
        return json.dumps(asdict(self))


def measure_decoding(job: BaselineJob) -> dict[str, float]:
    """Frames/s and CPU ms per frame of threads that each decode into a batch buffer of their own."""
    payloads = images.load(Path(job.frames))
    decoder = Decoder(DecodeConfig(), LetterboxPolicy(size=job.image_size))
    buffers = np.zeros((job.threads, job.batch, decoder.slot_bytes), np.uint8)
    counts = [0] * job.threads
    stop = threading.Event()

    def decode(thread: int) -> None:
        number = thread
        while not stop.is_set():
            for slot in buffers[thread]:
                if not isinstance(decoder.decode(payloads[number % len(payloads)], slot), Letterbox):
                    raise TypeError(f"frame {number % len(payloads)} cannot be decoded")
                number += job.threads
                counts[thread] += 1

    threads = [threading.Thread(target=decode, args=(number,), daemon=True) for number in range(job.threads)]
    for thread in threads:
        thread.start()
    time.sleep(_WARM_UP_S)
    before, cpu, started = sum(counts), time.process_time(), time.perf_counter()
    time.sleep(job.seconds)
    frames, cpu, seconds = sum(counts) - before, time.process_time() - cpu, time.perf_counter() - started
    stop.set()
    return {"frames_per_second": frames / seconds, "cpu_ms_per_frame": cpu * 1000 / frames}


def measure_detector(job: BaselineJob) -> dict[str, float]:
    """Frames/s of the detector on full batches, one after the other: the highest rate that it reaches."""
    from consumer.detectors.loader import load_detector

    detector = load_detector(DetectorConfig(model=job.model, device=job.device, image_size=job.image_size))
    batch = min(job.batch, detector.max_batch_size or job.batch)
    detector.warm_up(batch)
    decoder = Decoder(DecodeConfig(), detector.policy)
    slots = np.zeros((batch, decoder.slot_bytes), np.uint8)
    detector.pin(slots)
    payloads = images.load(Path(job.frames))
    letterboxes = [_decoded(decoder, payloads[n % len(payloads)], slot) for n, slot in enumerate(slots)]
    calls: list[float] = []
    until = time.perf_counter() + _WARM_UP_S + job.seconds
    measured_from = time.perf_counter() + _WARM_UP_S
    while (started := time.perf_counter()) < until or not calls:
        detector.detect(slots, letterboxes)
        if started >= measured_from:
            calls.append(time.perf_counter() - started)
    return {"frames_per_second": batch * len(calls) / sum(calls), "cpu_ms_per_frame": 0.0}


def _decoded(decoder: Decoder, payload: bytes, slot: Any) -> Letterbox:
    decoded = decoder.decode(payload, slot)
    if not isinstance(decoded, Letterbox):
        raise TypeError(f"a frame of the bench cannot be decoded: {decoded.detail}")
    return decoded


def main() -> None:
    """Entry point of the child process."""
    sys.setswitchinterval(0.0001)  # as `sluice run` does
    job = BaselineJob(**json.loads(sys.argv[1]))
    figures = measure_decoding(job) if job.part == "decode" else measure_detector(job)
    Path(job.report).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
