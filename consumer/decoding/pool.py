"""The decode pool: chunks of frames in, their slots and verdicts filled. It keeps no state of its own.

Each of its threads decodes, or waits for a process that does: `decode.workers`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.decoding.processes.memory import SharedMemory
from consumer.decoding.processes.pool import ProcessDecoder
from consumer.errors import ConfigError, EngineError
from consumer.types import Clock, Frame, Letterbox, LetterboxPolicy, Outcome, Rejected

_log = structlog.get_logger(__name__)

Verdict = Outcome | Letterbox


class SlotDecoder(Protocol):
    """`Decoder` or `ProcessDecoder`."""

    def decode_into(
        self, payloads: Sequence[bytes], slots: NDArray[np.uint8], places: Sequence[int]
    ) -> Iterator[tuple[int, Letterbox | Rejected]]:
        """(place, outcome) for each payload, in any order; its canvas is in that row of `slots` then."""

    def close(self) -> None:
        """Nothing is decoded any more."""


def make_decoder(
    config: DecodeConfig,
    policy: LetterboxPolicy,
    shape: tuple[int, ...],
    *,
    on_replaced: Callable[[], None],
) -> tuple[SlotDecoder, NDArray[np.uint8]]:
    """What `decode.workers` and `decode.isolation` ask for, and zeroed memory of `shape` that it can decode into.

    `on_replaced` is called on a decoding thread, for each process that was. Raises EngineError where processes were
    asked for by name and cannot be started; by `auto`, threads do their work then.
    """
    if config.in_processes and not hasattr(os, "memfd_create"):
        raise ConfigError("decode.workers: processes and decode.isolation: process need Linux")
    if not config.in_processes:
        return Decoder(config, policy), np.zeros(shape, np.uint8)
    if config.isolation == "process":
        isolated = ProcessDecoder(config, policy, None, processes=config.thread_count, on_replaced=on_replaced)
        return isolated, np.zeros(shape, np.uint8)
    try:
        ring = SharedMemory("sluice-ring", shape)
        return ProcessDecoder(config, policy, ring, processes=config.thread_count, on_replaced=on_replaced), ring.array
    except (EngineError, OSError) as error:
        if config.workers == "processes":
            raise EngineError(f"decode.workers: processes cannot be had here: {error}") from error
        _log.warning("frames are decoded by threads: processes cannot be started here", detail=str(error))
        return Decoder(config, policy), np.zeros(shape, np.uint8)


class DecodePool:
    """Threads that decode straight into the slots of the ring, several chunks at once."""

    def __init__(self, decoder: SlotDecoder, threads: int, *, clock: Clock) -> None:
        self._decoder = decoder
        self._clock = clock
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def submit(
        self, frames: Sequence[Frame], slots: NDArray[np.uint8], verdicts: list[Verdict | None], first: int
    ) -> Future[float]:
        """Decode `frames` into `slots[first:]`, and write a verdict for each into `verdicts`, at the same places.

        Nobody else may touch these slots until the job is done; it returns the seconds that it took. A frame that
        cannot be decoded is a `Rejected` among the verdicts; only MemoryError and EngineError fail the job.
        """
        return self._executor.submit(self._decode, frames, slots, verdicts, first)

    def close(self) -> None:
        """Drop what has not begun. Does not wait for what has."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._decoder.close()

    def _decode(
        self, frames: Sequence[Frame], slots: NDArray[np.uint8], verdicts: list[Verdict | None], first: int
    ) -> float:
        began = self._clock()
        payloads: list[bytes] = []
        places: list[int] = []
        for place, frame in enumerate(frames, first):
            if frame.verdict is None:
                payloads.append(frame.payload)
                places.append(place)
            else:
                verdicts[place] = frame.verdict
        for place, verdict in self._decoder.decode_into(payloads, slots, places):
            verdicts[place] = verdict
        return self._clock() - began
