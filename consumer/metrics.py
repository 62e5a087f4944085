"""Every metric, declared once: name, meaning, unit, labels. Base units, `_total` for counters, no label per source.

Label values come from closed sets (stages, reasons, outcomes) or from the assignment (partitions), so that the
cardinality is bounded whatever the input says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumer.types import Acknowledged, BatchResult, Lag, Rejected, Skipped

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
        self.lag_records = gauge(
            "lag_records", "Records between the position and the end of a partition.", "topic", "partition"
        )
        self.lag_seconds = gauge(
            "lag_seconds", "Age of the last frame read from a partition; 0 at its end.", "topic", "partition"
        )
        self.rebalances = counter("rebalances_total", "Partitions assigned, revoked and lost.", "event")
        self.assigned = gauge("assigned_partitions", "Partitions assigned to this process.")
        self.stored = counter("offsets_stored_total", "Watermarks handed to the commit.")
        self.loop_age = gauge("loop_age_seconds", "Time since the main loop last turned.")
        self.ready = gauge("ready", "1 when /readyz answers 200.")
        self.build = gauge("build_info", "1, labelled with version and model.", "version", "model", "device")

        # Looked up once: a lookup a frame costs more than the observation.
        self._queue, self._acknowledge = self.stage.labels("queue"), self.stage.labels("acknowledge")
        self._decode_wait, self._infer = self.stage.labels("decode_wait"), self.stage.labels("infer")

    def batch(self, result: BatchResult) -> None:
        """A batch has come out of the engine."""
        frames = result.batch.frames
        self.batches.labels(result.batch.closed_by).inc()
        self.batch_size.observe(len(frames))
        self._decode_wait.observe(result.timings.decode_wait_ms / 1000)
        self._infer.observe(result.timings.infer_ms / 1000)
        self.engine_busy.inc(result.timings.infer_ms / 1000)
        for frame in frames:
            self._queue.observe(max(0.0, result.taken_at - frame.received_at))

    def acknowledged(self, done: Sequence[Acknowledged], *, now_s: float, now_ms: int) -> None:
        """The brokers have these outcomes. `now_s` is on the clock of `published_at`, `now_ms` Unix time."""
        kinds = {"detected": 0, "skipped": 0, "rejected": 0}
        for item in done:
            self._acknowledge.observe(now_s - item.published_at)
            if item.frame.captured_at_ms is not None:
                self.latency.observe(max(0.0, (now_ms - item.frame.captured_at_ms) / 1000))
            if isinstance(item.outcome, Rejected):
                kinds["rejected"] += 1
                self.rejected.labels(item.outcome.stage, item.outcome.reason).inc()
            else:
                kinds["skipped" if isinstance(item.outcome, Skipped) else "detected"] += 1
        for kind, count in kinds.items():
            if count:
                self.outcomes.labels(kind).inc(count)

    def lag(self, behind: Iterable[Lag]) -> None:
        """Set the lag of the assigned partitions; those that went away are removed."""
        self.lag_records.clear()
        self.lag_seconds.clear()
        for partition, records, seconds in behind:
            labels = partition.topic, str(partition.partition)
            self.lag_records.labels(*labels).set(records)
            self.lag_seconds.labels(*labels).set(seconds)
