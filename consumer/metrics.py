"""Every metric, declared once: name, meaning, unit, labels. Base units, `_total` for counters, no label per source.

Label values come from closed sets (stages, reasons, outcomes) or from the assignment (partitions), so that the
cardinality is bounded whatever the input says.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class Metrics:
    """One set per process, in a registry of its own, so that tests can have many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"sluice_{name}", meaning, labels, registry=self.registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"sluice_{name}", meaning, labels, registry=self.registry)

        def histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"sluice_{name}", meaning, labels, registry=self.registry, buckets=buckets)

        self.received = counter("frames_received_total", "Records read from the input topics.")
        self.outcomes = counter("outcomes_total", "Outcomes acknowledged by the brokers, by kind.", "outcome")
        self.rejected = counter("rejected_total", "Frames sent to the dead-letter topic, by reason.", "stage", "reason")
        self.stale_outcomes = counter(
            "stale_outcomes_total", "Outcomes dropped because their partition had gone to another consumer."
        )
        self.batches = counter("batches_total", "Batches taken by the engine, by what closed them.", "closed_by")
        self.batch_size = histogram("batch_size_frames", "Frames in a batch.", buckets=_BATCH_SIZES)
        self.stage = histogram(
            "stage_seconds",
            "Time per stage. queue (per frame): from the consumer to the engine. decode_wait (per batch): the engine "
            "waiting for its last decode. infer (per batch): the engine. acknowledge (per frame): until the broker "
            "had the outcome.",
            "stage",
        )
        self.latency = histogram("latency_seconds", "From a frame's capture time to its acknowledged outcome.")
        self.engine_busy = counter("engine_busy_seconds_total", "Time that the engine spent on batches.")
        self.engine_retries = counter("engine_retries_total", "Calls of the engine repeated after a failure.")
        self.in_flight = gauge("in_flight_frames", "Frames read whose outcome is not acknowledged yet.")
        self.in_flight_bytes = gauge("in_flight_bytes", "Encoded bytes of those frames.")
        self.paused = gauge("paused", "1 while reading is paused because the engine or the output is behind.")
        self.lag_records = gauge("lag_records", "Records between the position and the end of a partition.", "topic", "partition")
        self.lag_seconds = gauge(
            "lag_seconds", "Age of the last frame read from a partition; 0 at its end.", "topic", "partition"
        )
        self.rebalances = counter("rebalances_total", "Partitions assigned, revoked and lost.", "event")
        self.assigned = gauge("assigned_partitions", "Partitions assigned to this process.")
        self.committed = counter("commits_total", "Offsets handed to the commit, by partition and turn.")
        self.loop_age = gauge("loop_age_seconds", "Time since the main loop last turned.")
        self.ready = gauge("ready", "1 when /readyz answers 200.")
        self.build = gauge("build_info", "1, labelled with version and model.", "version", "model", "device")
