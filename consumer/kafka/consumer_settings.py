"""Which librdkafka settings the consumer has."""

from __future__ import annotations

from typing import Any

from consumer.config import Config


def consumer_settings(config: Config) -> dict[str, Any]:
    """The librdkafka settings of the consumer: ours, then the user's over them, then those that promises stand on."""
    settings: dict[str, Any] = {
        "client.id": "sluice",
        "partition.assignment.strategy": "cooperative-sticky",
        # Stop, rather than skip what was deleted or start at the end: see `_start_offsets` for the first start.
        "auto.offset.reset": "error",
        # The default of 1000 ms starves a consumer of large messages once its queue was full.
        "fetch.queue.backoff.ms": 10,
        "queued.max.messages.kbytes": 32 * 1024,
        "fetch.wait.max.ms": 100,
        # As the Java client does. It costs 1 microsecond for a frame of 16 kB (docs/performance.md).
        "check.crcs": True,
    } | {**config.kafka.shared, **config.kafka.consumer}
    if settings.get("group.protocol") == "consumer":
        settings.pop("partition.assignment.strategy")  # KIP-848: the brokers assign, and refuse the setting
    return settings | {
        "bootstrap.servers": config.kafka.bootstrap_servers,
        "group.id": config.kafka.group_id,
        "enable.auto.commit": config.delivery == "at_least_once",  # else its transactions commit
        # 0: not by a timer, see `Commits.send_due`; what is stored is still committed when partitions are unassigned.
        "auto.commit.interval.ms": 0,
        "enable.auto.offset.store": False,
        # The end of a partition may lie behind markers and aborted records, which no poll returns; see `Source.ends`.
        "enable.partition.eof": True,
    }
