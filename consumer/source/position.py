"""Where reading of an assigned partition stands."""

from __future__ import annotations

from dataclasses import dataclass

import confluent_kafka


@dataclass(slots=True)
class Position:
    """One partition during one epoch. Offsets; `timestamp_ms` is that of the last record, Unix milliseconds."""

    epoch: int
    start: int = confluent_kafka.OFFSET_INVALID  # where reading begins; invalid: where the client chooses
    first_offset: int | None = None  # of the first frame since the assignment; a rewind keeps it
    next_offset: int | None = None
    timestamp_ms: int | None = None
    floor: int = -1  # what our transactions have committed since the assignment; a rewind keeps it

    def age_s(self, now_ms: int) -> float | None:
        """Seconds since the timestamp of the last record. None: it had none, or there was no record yet."""
        return None if self.timestamp_ms is None else max(0.0, (now_ms - self.timestamp_ms) / 1000)
