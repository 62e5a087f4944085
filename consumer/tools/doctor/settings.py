"""Checks of the configuration that need no cluster: time limits that depend on each other."""

from __future__ import annotations

from collections.abc import Iterator

from consumer.config import Config
from consumer.tools.doctor.findings import Finding, Reporter

# The time that `sluice run` may take after its drain: the last commit, leaving the group, closing the producer, the
# traces and the worker.
CLOSING_S = 5.0 + 5.0 + 2.0 + 1.0 + 2.0
# librdkafka's defaults of max.poll.interval.ms and session.timeout.ms.
_MAX_POLL_MS, _SESSION_MS = 300_000, 45_000


def grace_period(config: Config, grace_s: float | None, report: Reporter) -> Iterator[Finding]:
    """Check that the time between SIGTERM and SIGKILL is enough for the drain and for closing."""
    drain = config.limits.drain_timeout_s
    needed = drain + CLOSING_S
    sum_ = f"{drain:g} s of drain (limits.drain_timeout_s) and {CLOSING_S:g} s of closing"
    if grace_s is None:
        yield report.skipped(f"use --grace-period SECONDS to compare it with {sum_}, {needed:g} s in total")
    elif grace_s < needed:
        yield report.problem(
            f"a stop may take {needed:g} s ({sum_}), the grace period is {grace_s:g} s: another pod repeats the work "
            "that SIGKILL interrupts",
            f"set terminationGracePeriodSeconds to {needed + 10:g}, or limits.drain_timeout_s to "
            f"{max(1.0, grace_s - CLOSING_S - 2):g}",
        )
    else:
        yield report.ok(f"{grace_s:g} s of grace for {sum_}")


def poll_interval(config: Config, report: Reporter) -> Iterator[Finding]:
    """Check that the program detects a stall before the brokers do: they move the partitions without an error."""
    settings = {**config.kafka.client, **config.kafka.consumer}
    longest = float(settings.get("max.poll.interval.ms", _MAX_POLL_MS)) / 1000
    stall, drain = config.limits.stall_timeout_s, config.limits.drain_timeout_s / 2
    summary = f"max.poll.interval.ms is {longest:g} s, limits.stall_timeout_s {stall:g} s"
    if longest <= drain:
        yield report.problem(
            f"{summary}; a rebalance may wait {drain:g} s for in-flight work (half of limits.drain_timeout_s), and the "
            "brokers revoke the partitions before that",
            "raise max.poll.interval.ms, or lower limits.drain_timeout_s",
        )
    elif longest <= stall:
        yield report.warning(
            f"{summary}: a loop that hangs loses its partitions before the program exits",
            f"set max.poll.interval.ms above {stall:g} s, its default is {_MAX_POLL_MS // 1000} s",
        )
    else:
        yield report.ok(summary)


def session(config: Config, report: Reporter) -> Iterator[Finding]:
    """Report how long the frames of a crashed pod wait until another pod takes over."""
    settings = {**config.kafka.client, **config.kafka.consumer}
    if settings.get("group.protocol") == "consumer":
        yield report.ok("the brokers set the session timeout (KIP-848)")
        return
    seconds = float(settings.get("session.timeout.ms", _SESSION_MS)) / 1000
    static = settings.get("group.instance.id")
    summary = f"a crashed pod is detected after {seconds:g} s (session.timeout.ms)"
    if static:
        yield report.warning(
            f"{summary}; group.instance.id is {static!r} for every pod with this configuration, and a second pod with "
            "the same ID fences the first",
            "give each pod its own ID, by a variable from the pod's name, or leave it out",
        )
    else:
        yield report.ok(summary)
