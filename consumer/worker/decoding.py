"""The decode pool: chunks of frames in, their slots and verdicts filled. It keeps no state of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from consumer.decoder import Decoder
from consumer.errors import SluiceError
from consumer.isolation import IsolatedDecoder
from consumer.types import Clock, Frame, Letterbox, Outcome, Rejected

Verdict = Outcome | Letterbox


class DecodePool:
    """Threads that decode straight into the slots of the batch buffers, several chunks at once."""

    def __init__(self, decoder: Decoder | IsolatedDecoder, threads: int, *, clock: Clock) -> None:
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
        decode = self._decoder.decode
        for slot, frame in enumerate(frames, first):
            try:
                verdicts[slot] = frame.verdict or decode(frame.payload, slots[slot])
            except (MemoryError, SluiceError):  # the machine's fault, and no frame's
                raise
            except Exception as error:  # noqa: BLE001 - decoding is deterministic: a restart would meet it again
                verdicts[slot] = Rejected("decode", "damaged", f"{type(error).__name__}: {error}")
        return self._clock() - began
