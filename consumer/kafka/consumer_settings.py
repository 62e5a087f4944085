"""Builds the librdkafka settings of the consumer."""

from __future__ import annotations

from typing import Any

from consumer.config import Config


def consumer_settings(config: Config) -> dict[str, Any]:
    """Return the librdkafka settings of the consumer.

    The user's settings override our defaults. The settings on which a delivery guarantee depends override both.
    """
    settings: dict[str, Any] = {
        "client.id": "sluice",
        "partition.assignment.strategy": "cooperative-sticky",
        # Stop instead of skipping deleted records or starting at the end. `assignment.start_offsets` sets the offset of
        # a partition without a commit.
        "auto.offset.reset": "error",
        # With the default of 1000 ms, a consumer of large messages starves after its queue was full.
        "fetch.queue.backoff.ms": 10,
        "queued.max.messages.kbytes": 32 * 1024,
        "fetch.wait.max.ms": 100,
        # The Java client checks too. It costs 1 microsecond for a frame of 16 kB (docs/performance.md).
        "check.crcs": True,
    } | {**config.kafka.shared, **config.kafka.consumer}
    if settings.get("group.protocol") == "consumer":
        settings.pop("partition.assignment.strategy")  # KIP-848: the brokers assign partitions and refuse this setting
    return settings | {
        "bootstrap.servers": config.kafka.bootstrap_servers,
        "group.id": config.kafka.group_id,
        "enable.auto.commit": config.delivery == "at_least_once",  # with exactly_once, transactions commit
        # 0: no commits by a timer, see `Commits.send_due`. Stored offsets are still committed when partitions are
        # unassigned.
        "auto.commit.interval.ms": 0,
        "enable.auto.offset.store": False,
        # The end of a partition may follow markers and aborted records, which no poll returns. See `Source.ends`.
        "enable.partition.eof": True,
    }
