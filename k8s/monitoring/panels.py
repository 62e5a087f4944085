"""What the dashboard shows: rows of panels, each with its queries in PromQL. write.py makes Grafana's JSON of it.

`{@}` stands for the selector of the namespaces and pods that are chosen at the top of the dashboard.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Query(NamedTuple):
    """One line, or one per series; `legend` names it by its labels."""

    expr: str
    legend: str = ""


class Panel(NamedTuple):
    """`width` of 24 columns. `kind` is Grafana's own name of the panel."""

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    red_above: float | None = None
    most: float | None = None  # the top of the scale


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{@}}[$__rate_interval]))"


def _quantiles(metric: str, *by: str) -> tuple[Query, ...]:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return tuple(
        Query(
            f"histogram_quantile({q}, {_rate(metric + '_bucket', ', '.join(('le', *by)))})",
            f"p{q * 100:g} {legend}".strip(),
        )
        for q in (0.5, 0.99)
    )


_GLANCE: Final = Row(
    "At a glance",
    (
        Panel("Ready pods", "Warm, in the group, and turning.", "short", (Query("sum(sluice_ready{@})"),), "stat", 3),
        Panel(
            "Lag",
            "Age of the oldest last frame of all partitions that have frames waiting.",
            "s",
            (Query("max(sluice_lag_seconds{@})"),),
            "stat",
            3,
            60,
        ),
        Panel(
            "Frames out",
            "Outcomes of every kind.",
            "ops",
            (Query("sum(rate(sluice_outcomes_total{@}[$__rate_interval]))"),),
            "stat",
            3,
        ),
        Panel(
            "Dead letters",
            "Share of the outcomes. Alert: 2 %.",
            "percentunit",
            (
                Query(
                    'sum(rate(sluice_outcomes_total{@, outcome="rejected"}[$__rate_interval]))'
                    " / sum(rate(sluice_outcomes_total{@}[$__rate_interval]))"
                ),
            ),
            "stat",
            3,
            0.02,
        ),
        Panel(
            "Latency p99",
            "From a frame's capture time to its acknowledged outcome.",
            "s",
            (_quantiles("sluice_latency_seconds")[1],),
            "stat",
            3,
        ),
        Panel(
            "Partitions",
            "Assigned, all pods together.",
            "short",
            (Query("sum(sluice_assigned_partitions{@})"),),
            "stat",
            3,
        ),
        Panel(
            "Alerts that ring",
            "Each has a runbook in docs/operations.md.",
            "short",
            (Query('ALERTS{alertname=~"Sluice.*", alertstate="firing"}', "{{alertname}} {{pod}}"),),
            "table",
            6,
        ),
    ),
)

_FLOW: Final = Row(
    "Flow",
    (
        Panel(
            "Frames per second",
            "In, and out by kind. In above out: the lag grows.",
            "ops",
            (
                Query("sum(rate(sluice_frames_received_total{@}[$__rate_interval]))", "in"),
                Query(_rate("sluice_outcomes_total", "outcome"), "{{outcome}}"),
                Query("sum(rate(sluice_stale_outcomes_total{@}[$__rate_interval]))", "dropped, partition gone"),
            ),
        ),
        Panel(
            "Lag in seconds",
            "Age of the last frame read, by topic. Alert: 60 s.",
            "s",
            (Query("max by (topic) (sluice_lag_seconds{@})", "{{topic}}"),),
            red_above=60,
        ),
        Panel(
            "Lag in records",
            "By partition: one that lies apart has a busy camera, or a pod of its own that is slow.",
            "short",
            (Query("sum by (topic, partition) (sluice_lag_records{@})", "{{topic}}[{{partition}}]"),),
        ),
        Panel(
            "Dead letters by reason",
            "schemas/README.md explains each.",
            "ops",
            (Query(_rate("sluice_rejected_total", "stage, reason"), "{{stage}} {{reason}}"),),
        ),
        Panel(
            "In flight",
            "Read, and not acknowledged yet.",
            "short",
            (Query("sum by (pod) (sluice_in_flight_frames{@})", "frames {{pod}}"),),
        ),
        Panel(
            "In flight, bytes",
            "Reading pauses at limits.max_in_flight_bytes. Paused: 1 while it does.",
            "bytes",
            (
                Query("sum by (pod) (sluice_in_flight_bytes{@})", "{{pod}}"),
                Query("sum by (pod) (sluice_paused{@})", "paused {{pod}}"),
            ),
        ),
    ),
)

_ENGINE: Final = Row(
    "Engine",
    (
        Panel(
            "Engine share",
            "Share of the time that the engine works. Alert: 90 %.",
            "percentunit",
            (Query(_rate("sluice_engine_busy_seconds_total", "pod"), "{{pod}}"),),
            red_above=0.9,
            most=1,
        ),
        Panel(
            "Decode share",
            "Share of what the decode threads can do. Alert: 90 %.",
            "percentunit",
            (
                Query(
                    _rate("sluice_decode_busy_seconds_total", "pod") + " / sum by (pod) (sluice_decode_threads{@})",
                    "{{pod}}",
                ),
            ),
            red_above=0.9,
            most=1,
        ),
        Panel(
            "GPU memory",
            "Share in use, by anyone. Empty without a GPU.",
            "percentunit",
            (Query("sluice_gpu_memory_used_bytes{@} / sluice_gpu_memory_total_bytes{@}", "{{pod}} {{device}}"),),
            red_above=0.95,
            most=1,
        ),
        Panel(
            "Batch size",
            "Frames in a batch: mean and median.",
            "short",
            (
                Query(
                    "sum(rate(sluice_batch_size_frames_sum{@}[$__rate_interval]))"
                    " / sum(rate(sluice_batch_size_frames_count{@}[$__rate_interval]))",
                    "mean",
                ),
                _quantiles("sluice_batch_size_frames")[0],
            ),
        ),
        Panel(
            "What closes batches",
            "idle_engine: there is room. size: the engine is the limit.",
            "ops",
            (Query(_rate("sluice_batches_total", "closed_by"), "{{closed_by}}"),),
        ),
        Panel(
            "Engine retries, decoders replaced",
            "Calls repeated after a failure, and decode processes (decode.workers) that were killed and replaced.",
            "ops",
            (
                Query(_rate("sluice_engine_retries_total", "pod"), "engine {{pod}}"),
                Query(_rate("sluice_decoders_replaced_total", "pod"), "decoder {{pod}}"),
            ),
        ),
    ),
)

_TIME: Final = Row(
    "Where the time goes",
    (
        Panel(
            "Stages, median",
            "queue and acknowledge are per frame; commit is per commit; the others per batch.",
            "s",
            (_quantiles("sluice_stage_seconds", "stage")[0],),
        ),
        Panel("Stages, p99", "The same.", "s", (_quantiles("sluice_stage_seconds", "stage")[1],)),
        Panel(
            "Latency",
            "From a frame's capture time to its acknowledged outcome. Needs clocks that agree.",
            "s",
            _quantiles("sluice_latency_seconds"),
        ),
    ),
)

_GROUP: Final = Row(
    "Group and offsets",
    (
        Panel(
            "Partitions by pod",
            "A pod with none holds its GPU for nothing.",
            "short",
            (Query("sum by (pod) (sluice_assigned_partitions{@})", "{{pod}}"),),
            width=6,
        ),
        Panel(
            "Partitions that moved",
            "In a quarter of an hour. lost is never good.",
            "short",
            (Query("sum by (event) (increase(sluice_rebalances_total{@}[15m]))", "{{event}}"),),
            width=6,
        ),
        Panel(
            "Held up by rebalances",
            "Share of the time. revoked includes finishing what was in flight.",
            "percentunit",
            (Query(_rate("sluice_rebalance_seconds_sum", "pod, event"), "{{pod}} {{event}}"),),
            width=6,
        ),
        Panel(
            "Commits",
            "Answered by the coordinator. failed: a restart would repeat.",
            "ops",
            (
                Query(_rate("sluice_commits_total", "result"), "{{result}}"),
                Query("sum(rate(sluice_offsets_stored_total{@}[$__rate_interval]))", "watermarks stored"),
            ),
            width=6,
        ),
        Panel(
            "Transactions",
            "With delivery: exactly_once. failed ones are tried again; nothing is lost.",
            "ops",
            (Query(_rate("sluice_transactions_total", "pod, result"), "{{pod}} {{result}}"),),
            width=12,
        ),
        Panel(
            "Time of a transaction",
            "From begin to commit; the loop waits for it. A tenth of a second is much.",
            "s",
            _quantiles("sluice_transaction_seconds"),
            width=12,
        ),
    ),
)

_PROCESS: Final = Row(
    "Process",
    (
        Panel(
            "Loop age",
            "Time since the main loop last turned. At limits.stall_timeout_s the process ends itself.",
            "s",
            (Query("max by (pod) (sluice_loop_age_seconds{@})", "{{pod}}"),),
            red_above=15,
        ),
        Panel(
            "State",
            "0 starting, 1 running, 2 draining, 3 failed.",
            "short",
            (Query("max by (pod) (sluice_state{@})", "{{pod}}"),),
            most=3,
        ),
        Panel(
            "Memory",
            "Resident.",
            "bytes",
            (Query('process_resident_memory_bytes{@, job=~"(.+/)?sluice"}', "{{pod}}"),),
        ),
        Panel(
            "Processors",
            "Busy, in cores.",
            "short",
            (Query('rate(process_cpu_seconds_total{@, job=~"(.+/)?sluice"}[$__rate_interval])', "{{pod}}"),),
        ),
        Panel(
            "Open files",
            "Connections to brokers count.",
            "short",
            (Query('process_open_fds{@, job=~"(.+/)?sluice"}', "{{pod}}"),),
        ),
        Panel(
            "What runs",
            "Version, model and device of every pod.",
            "short",
            (Query("sluice_build_info{@}", "{{pod}} {{version}} {{model}} {{device}}"),),
            "table",
        ),
    ),
)

ROWS: Final = (_GLANCE, _FLOW, _ENGINE, _TIME, _GROUP, _PROCESS)
