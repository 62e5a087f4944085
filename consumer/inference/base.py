"""What the main loop needs of the decoding and inference stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from consumer.types import BatchResult, DeviceMemory, Frame, TopicPartition


class WorkerLike(Protocol):
    """The decoding and inference stage, as the loop uses it: `consumer.inference.worker.Worker`, or a fake in tests.

    All methods are for the main thread.
    """

    @property
    def room(self) -> int:
        """Number of frames that `admit` accepts now."""
        ...

    @property
    def in_flight(self) -> int:
        """Number of admitted frames that `results` or `discard` has not returned yet."""
        ...

    @property
    def expecting(self) -> bool:
        """Whether a result may arrive without another frame or a batching delay: the detector works, or soon will."""
        ...

    @property
    def busy_since(self) -> float | None:
        """Time of the last progress on the current batch, in seconds on the injected clock. None if idle."""
        ...

    @property
    def device(self) -> str:
        """The device on which the detector runs."""
        ...

    @property
    def device_memory(self) -> DeviceMemory | None:
        """Recent memory usage of the device. None if the device has no memory of its own."""
        ...

    def admit(self, frames: Sequence[Frame]) -> None:
        """Accept up to `room` frames for decoding and inference. Does not block."""
        ...

    def results(self, timeout_s: float = 0.0, gather_s: float = 0.0) -> list[BatchResult]:
        """Return the finished batches, oldest first.

        Args:
            timeout_s: Seconds to wait for the first batch.
            gather_s: Seconds to wait for more, counted from the first. The wait ends early if no batch is in progress,
                or if the next one would probably not finish in time.

        Raises:
            Exception: The error that ended the inference thread, after all finished batches were returned. Every later
                call raises it again.
        """
        ...

    def discard(self, partitions: Sequence[TopicPartition], *, overtaken: bool) -> list[Frame]:
        """Drop the frames of these partitions that wait for a batch, and return them. Batches continue unchanged.

        Args:
            partitions: Their frames are dropped.
            overtaken: Whether to drop also the frames that a later offset of their partition has overtaken. If those
                are finished instead, the watermark can rise over the later offsets.
        """
        ...

    def drain(self, *, draining: bool) -> None:
        """Set whether open batches go to the detector without waiting for more frames."""
        ...
