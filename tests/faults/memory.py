"""How much memory the members use, and how much they may.

A run is within its limits while the peak of each member, its decoding processes included, stays below
`limits.max_in_flight_bytes` plus `base_bytes`: the idle processes, the ring of decoded pictures, the shared memory for
encoded frames (`decode.max_bytes` for each process), what the client library has fetched ahead, and a margin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from consumer.config import DecodeConfig, DetectorConfig
from consumer.inference.slots import BATCHES
from consumer.types import LetterboxPolicy
from fleet import Fleet
from history import History
from recorder import Loop

SAMPLE_EVERY_S = 0.25
IN_FLIGHT_BYTES = 16 * 2**20  # limits.max_in_flight_bytes of a run, unless its harm says otherwise
_MIB = 2**20
# What a member may use beside the limit for its records. The first two are measured: an idle member that is ready, with
# the simulated engine, peaked at 88 MiB (VmHWM), and each of its decoding processes at 46 MiB without shared memory.
IDLE_BYTES = 96 * _MIB
IDLE_CHILD_BYTES = 48 * _MIB
# Records that librdkafka has fetched and the program has not polled: queued.max.messages.kbytes in `source.settings`.
PREFETCH_BYTES = 32 * _MIB
# What the client library, the allocators and Python hold under load beyond these. Two members that worked off 26,000
# frames at full speed used 45 and 50 MiB beyond idle and ring, of which 16 + 32 MiB are records.
MARGIN_BYTES = 64 * _MIB


def base_bytes(options: Mapping[str, Any]) -> int:
    """What a member and its decoding processes may use beside `limits.max_in_flight_bytes`, for these options."""
    prefix = "decode."
    decode = DecodeConfig(**{key.removeprefix(prefix): options[key] for key in options if key.startswith(prefix)})
    processes = decode.thread_count if decode.in_processes else 0
    size = int(options.get("detector.image_size", DetectorConfig().image_size))
    ring = BATCHES * int(options["batching.max_batch_size"]) * LetterboxPolicy(size).slot_bytes
    return IDLE_BYTES + processes * (IDLE_CHILD_BYTES + decode.max_bytes) + ring + PREFETCH_BYTES + MARGIN_BYTES


def peak_bytes(pid: int) -> int:
    """The peak (VmHWM) of a process, and those of its children without what they share with it; 0 where it is gone."""
    try:
        parent = psutil.Process(pid)
        command = parent.cmdline()
        # A child that is about to run its program still has the memory, and the command, of its parent.
        children = [child.pid for child in parent.children(recursive=True) if child.cmdline() != command]
        peak = _status(pid)["VmHWM"]
    except (psutil.Error, OSError, KeyError):  # one of them has ended meanwhile: the next sample knows the rest
        return 0
    for child in children:
        with contextlib.suppress(OSError, KeyError):
            said = _status(child)
            peak += said["VmHWM"] - said["RssShmem"]
    return peak


def _status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes. A zombie has none."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(size.split()[0]) * 1024 for name, size in pairs}


class MemorySampler(Loop):
    """Writes the peak of each member into the history.

    The kernel keeps the peak, so that one between two samples counts. Only what is new in the last `SAMPLE_EVERY_S` of
    a member can be missed.
    """

    def __init__(self, history: History, fleet: Fleet) -> None:
        super().__init__()
        self._history = history
        self._fleet = fleet

    def turn(self) -> None:
        peaks = self._history.memory_bytes
        for member in list(self._fleet.members):
            if member.sluice.running:
                peaks[member.writer] = max(peaks.get(member.writer, 0), peak_bytes(member.sluice.pid))
        self._stopped.wait(SAMPLE_EVERY_S)
