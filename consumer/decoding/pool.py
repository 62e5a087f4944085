"""Decodes chunks of frames into slots on a pool of threads.

Each thread decodes itself, or waits for a process that decodes, depending on `decode.workers`. The pool keeps no state
between chunks.
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

# The result of decoding: the placement of the image in its canvas, or the final outcome of the frame.
Verdict = Outcome | Letterbox


class SlotDecoder(Protocol):
    """Decodes images into slots: `Decoder` in this process, or `ProcessDecoder` in others. Any thread may call it."""

    def decode_into(
        self, payloads: Sequence[bytes], slots: NDArray[np.uint8], places: Sequence[int]
    ) -> Iterator[tuple[int, Letterbox | Rejected]]:
        """Decode several images, each into its row of `slots`.

        Args:
            payloads: The encoded images.
            slots: uint8 (n, slot_bytes), contiguous.
            places: For each payload, the row of `slots` for its canvas.

        Yields:
            (place, outcome) for each payload, in any order. The canvas is complete when its outcome is yielded.

        Raises:
            MemoryError: The machine has too little memory.
            EngineError: The decoder cannot continue.
        """

    def close(self) -> None:
        """Stop decoding and free all resources."""


def make_decoder(
    config: DecodeConfig,
    policy: LetterboxPolicy,
    shape: tuple[int, ...],
    *,
    on_replaced: Callable[[], None],
) -> tuple[SlotDecoder, NDArray[np.uint8]]:
    """Create the decoder for `decode.workers` and `decode.isolation`, and the memory that it decodes into.

    With `decode.workers: auto`, it falls back to threads if processes cannot be started.

    Args:
        config: The `decode` options.
        policy: The canvas layout that the detector requires.
        shape: The shape of the memory: (slots, slot_bytes).
        on_replaced: Called on a decode thread for each decoding process that was replaced.

    Returns:
        The decoder, and zeroed uint8 memory of `shape`.

    Raises:
        ConfigError: The options require processes, and the system is not Linux.
        EngineError: The options require processes, and they cannot be started.
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
    """Threads that decode directly into the slots of the ring buffer, several chunks at the same time."""

    def __init__(self, decoder: SlotDecoder, threads: int, *, clock: Clock) -> None:
        self._decoder = decoder
        self._clock = clock
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def submit(
        self, frames: Sequence[Frame], slots: NDArray[np.uint8], verdicts: list[Verdict | None], first: int
    ) -> Future[float]:
        """Start a job that decodes frames into consecutive slots.

        Until the job is done, no other code may use these slots.

        Args:
            frames: The frames. One whose outcome is already known is not decoded.
            slots: uint8 (n, slot_bytes), contiguous.
            verdicts: One entry per slot. The job writes the result of each frame here; a frame that cannot be decoded
                gets a `Rejected`.
            first: The index of the slot and of the entry for the first frame.

        Returns:
            A future of the time that the job took, in seconds. It fails only with MemoryError or EngineError.
        """
        return self._executor.submit(self._decode, frames, slots, verdicts, first)

    def close(self) -> None:
        """Cancel the jobs that have not started, and close the decoder. Does not wait for running jobs."""
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
