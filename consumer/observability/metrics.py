"""Declares every metric once, with its name, meaning, unit and labels, and records values.

Metrics use base units. The names of counters end in `_total`.

Label values come from closed sets (stages, reasons, outcomes) or from the assignment (partitions); no label has one
value per source. So the input cannot increase the cardinality.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import ProcessCollector

from consumer.observability.metric_families import Families
from consumer.types import CLOSED_BY, Acknowledged, BatchResult, Detected, DeviceMemory, Lag, Skipped

_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class Metrics:
    """The metrics of one process, in a registry of their own, so that tests can create several.

    Attributes:
        registry: The registry.
        labels: The label names of each metric that has labels, by the full name of the metric.
    """

    def __init__(self) -> None:
        make = Families()
        self.registry = make.registry
        self.labels = make.labels
        self._declare_frames(make)
        self._declare_engine(make)
        self._declare_group(make)
        self._declare_process(make)
        ProcessCollector(registry=self.registry)
        self._lagging: set[tuple[str, str]] = set()
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Create all series with the value 0: otherwise `rate` in Prometheus would miss the first event of a series."""
        for outcome in ("detected", "skipped", "rejected"):
            self.outcomes.labels(outcome)
        for closed_by in CLOSED_BY:
            self.batches.labels(closed_by)
        for result in ("ok", "failed"):
            self.commits.labels(result)
        for result in ("committed", "failed"):
            self.transactions.labels(result)
        for event in ("assigned", "revoked", "lost"):
            self.rebalances.labels(event)
            self.rebalance.labels(event)

    def batch(self, result: BatchResult) -> None:
        """Record a batch that the detector has processed."""
        frames = result.batch.frames
        self.batches.labels(result.batch.closed_by).inc()
        self.batch_size.observe(len(frames))
        self.stage["decode_wait"].observe([result.timings.decode_wait_ms / 1000])
        self.stage["infer"].observe([result.timings.infer_ms / 1000])
        self.engine_busy.inc(result.timings.infer_ms / 1000)
        self.stage["decode"].observe([result.timings.decode_ms / 1000])
        self.decode_busy.inc(result.timings.decode_ms / 1000)
        self.stage["queue"].observe([max(0.0, result.taken_at - frame.received_at) for frame in frames])

    def acknowledged(self, done: Sequence[Acknowledged], *, now_s: float, now_ms: int) -> None:
        """Record outcomes that the brokers acknowledged.

        Args:
            done: The outcomes.
            now_s: The current time in seconds, on the clock of `Acknowledged.published_at`.
            now_ms: The current Unix time in milliseconds.
        """
        kinds = {"detected": 0, "skipped": 0, "rejected": 0}
        captured: list[int] = []
        for frame, outcome, _ in done:
            if frame.captured_at_ms is not None:
                captured.append(frame.captured_at_ms)
            if isinstance(outcome, Detected):
                kinds["detected"] += 1
            elif isinstance(outcome, Skipped):
                kinds["skipped"] += 1
            else:
                kinds["rejected"] += 1
                self.rejected.labels(outcome.stage, outcome.reason).inc()
        self.stage["acknowledge"].observe([now_s - item.published_at for item in done])
        self.latency.observe([max(0.0, (now_ms - at_ms) / 1000) for at_ms in captured])
        for kind, count in kinds.items():
            if count:
                self.outcomes.labels(kind).inc(count)

    def lag(self, behind: Iterable[Lag]) -> None:
        """Set the lag of the assigned partitions, and remove the series of all others."""
        lagging = set()
        for partition, records, seconds in behind:
            labels = partition.topic, str(partition.partition)
            lagging.add(labels)
            self.lag_records.labels(*labels).set(records)
            if seconds is not None:
                self.lag_seconds.labels(*labels).set(seconds)
            elif labels in self._lagging:
                self.lag_seconds.remove(*labels)
        for labels in self._lagging - lagging:
            self.lag_records.remove(*labels)
            self.lag_seconds.remove(*labels)
        self._lagging = lagging

    def published(self, seconds: float) -> None:
        """Record the time in which the outcomes of all finished batches were handed to the producer."""
        self.stage["publish"].observe([seconds])

    def committed(self, seconds: float | None) -> None:
        """Record a commit that the coordinator answered.

        Args:
            seconds: The time from when the first of these offsets was stored until it was committed. None if the
                commit failed.
        """
        if seconds is None:
            self.commits.labels("failed").inc()
        else:
            self.commits.labels("ok").inc()
            self.stage["commit"].observe([seconds])

    def rebalanced(self, event: str, *, partitions: int, assigned: int, seconds: float) -> None:
        """Record a rebalance.

        Args:
            event: `assigned`, `revoked` or `lost`.
            partitions: The number of partitions that this event concerns.
            assigned: The number of partitions that are assigned now.
            seconds: The time that the event blocked the main loop.
        """
        self.rebalances.labels(event).inc(partitions)
        self.rebalance.labels(event).observe(seconds)
        self.assigned.set(assigned)

    def device(self, name: str, memory: DeviceMemory | None) -> None:
        """Set the memory of the device. With None (no memory of its own) the metrics stay absent."""
        if memory is not None:
            self.gpu_memory_used.labels(name).set(memory.used_bytes)
            self.gpu_memory_total.labels(name).set(memory.total_bytes)

    # Declarations

    def _declare_frames(self, make: Families) -> None:
        self.received = make.counter("frames_received_total", "Records read from the input topics.")
        self.outcomes = make.counter("outcomes_total", "Outcomes acknowledged by the brokers, by kind.", "outcome")
        self.rejected = make.counter(
            "rejected_total", "Frames sent to the dead-letter topic, by reason.", "stage", "reason"
        )
        self.stale_outcomes = make.counter(
            "stale_outcomes_total",
            "Outcomes dropped because their partition had gone to another consumer, or is read again (exactly_once).",
        )
        self.in_flight = make.gauge("in_flight_frames", "Frames read whose outcome is not acknowledged yet.")
        self.in_flight_bytes = make.gauge(
            "in_flight_bytes", "Bytes of those frames, and of messages not yet acknowledged."
        )
        self.latency = make.distributions(
            "latency_seconds", "From a frame's capture time to its acknowledged outcome."
        )[""]
        self.stage = make.distributions(
            "stage_seconds",
            "Time per stage. queue (per frame): from the consumer to the engine. decode (per batch): decoding it, all "
            "threads together. decode_wait (per batch): the engine waiting for its last decode. infer (per batch): the "
            "engine. publish (per write): writing the outcomes of all batches that were through. acknowledge (per "
            "frame): until the broker had the outcome. commit (per commit): from the first offset handed over until "
            "the broker had committed it.",
            "stage",
            ("queue", "decode", "decode_wait", "infer", "publish", "acknowledge", "commit"),
        )

    def _declare_engine(self, make: Families) -> None:
        self.batches = make.counter("batches_total", "Batches taken by the engine, by what closed them.", "closed_by")
        self.batch_size = make.histogram("batch_size_frames", "Frames in a batch.", buckets=_BATCH_SIZES)
        self.engine_busy = make.counter("engine_busy_seconds_total", "Time that the engine spent on batches.")
        self.engine_retries = make.counter("engine_retries_total", "Calls of the engine repeated after a failure.")
        self.gpu_memory_used = make.gauge(
            "gpu_memory_used_bytes", "Memory in use on the GPU, by anyone. No GPU: absent.", "device"
        )
        self.gpu_memory_total = make.gauge("gpu_memory_total_bytes", "Memory of the GPU. No GPU: absent.", "device")
        self.decode_busy = make.counter(
            "decode_busy_seconds_total", "Time that the decode threads spent, all together."
        )
        self.decode_threads = make.gauge(
            "decode_threads", "Decode threads; their busy seconds in a second are at most this."
        )
        self.decoders_replaced = make.counter(
            "decoders_replaced_total",
            "Decoding processes that a frame ended, and that were replaced (decode.workers).",
        )

    def _declare_group(self, make: Families) -> None:
        self.rebalances = make.counter("rebalances_total", "Partitions assigned, revoked and lost.", "event")
        self.rebalance = make.histogram(
            "rebalance_seconds", "Time that a rebalance held the loop up; revoked includes finishing work.", "event"
        )
        self.assigned = make.gauge("assigned_partitions", "Partitions assigned to this process.")
        self.paused = make.gauge(
            "paused", "1 while reading is paused: engine or output is behind, or a failed transaction is not resolved."
        )
        self.lag_records = make.gauge(
            "lag_records", "Records between the position and the end of a partition.", "topic", "partition"
        )
        self.lag_seconds = make.gauge(
            "lag_seconds",
            "Age of the last frame read from a partition; 0 at its end. None read yet: absent.",
            "topic",
            "partition",
        )
        self.stored = make.counter("offsets_stored_total", "Watermarks handed to the commit.")
        self.commits = make.counter("commits_total", "Commits that the group's coordinator answered.", "result")
        self.transactions = make.counter(
            "transactions_total", "Transactions (exactly_once): committed, or failed.", "result"
        )
        self.transaction = make.histogram("transaction_seconds", "Time that a committed transaction held the loop up.")

    def _declare_process(self, make: Families) -> None:
        self.build = make.gauge("build_info", "1, labelled with version and model.", "version", "model", "device")
        self.state = make.gauge("state", "0 starting, 1 running, 2 draining, 3 failed.")
        self.ready = make.gauge("ready", "1 when /readyz answers 200.")
        self.loop_age = make.gauge("loop_age_seconds", "Time since the main loop last turned.")
