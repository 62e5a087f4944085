"""Child process: one part alone, as the measure for the whole: decoding without anything else, or the engine.

python -m consumer.tools.bench.baseline JSON     (the fields of `Alone`)
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
class Alone:
    """`part`: decode or engine. `threads` decode at once; `batch`: frames in one call of the engine, or in a buffer."""

    part: str
    frames: str
    seconds: float
    threads: int
    batch: int
    image_size: int
    model: str = ""
    device: str = "auto"

    def argument(self) -> str:
        """For the command line of the child process."""
        return json.dumps(asdict(self))


def decode_alone(job: Alone) -> dict[str, float]:
    """Frames a second and CPU milliseconds a frame of threads that decode into one batch buffer each."""
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


def engine_alone(job: Alone) -> dict[str, float]:
    """Frames a second of the detector on full batches, one after the other: its limit."""
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
    verdict = decoder.decode(payload, slot)
    if not isinstance(verdict, Letterbox):
        raise TypeError(f"a frame of the bench cannot be decoded: {verdict.detail}")
    return verdict


def main() -> None:
    """Entry point of the child process. The result is the last line that it prints."""
    sys.setswitchinterval(0.0001)  # as `sluice run` does
    job = Alone(**json.loads(sys.argv[1]))
    print(json.dumps(decode_alone(job) if job.part == "decode" else engine_alone(job)))


if __name__ == "__main__":
    main()
