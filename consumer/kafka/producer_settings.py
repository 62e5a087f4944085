"""Which librdkafka settings the producer has."""

from __future__ import annotations

import math
from typing import Any, Final

from consumer.config import Config
from consumer.config.kafka import TRANSACTION_TIMEOUT_MS
from consumer.errors import RefusedError
from consumer.kafka.topic_limits import LADDER

# librdkafka's own default, and its two names for the setting.
_DELIVERY_TIMEOUT_MS: Final = 300_000.0
_DELIVERY_TIMEOUTS: Final = ("delivery.timeout.ms", "message.timeout.ms")


def producer_settings(config: Config) -> dict[str, Any]:
    """The librdkafka settings of the producer: ours, then the user's over them, then those that promises stand on."""
    return (
        {
            "client.id": "sluice",
            # Murmur2, as Java producers choose partitions; a reader may join results with other keyed topics.
            "partitioner": "murmur2_random",
            # As long as it takes to hand over the results of a batch: they travel together, not each in a request of
            # its own, which costs this process and the brokers a fifth of the CPU at thousands of frames a second.
            "linger.ms": 0.5,
            "message.max.bytes": LADDER[0],
        }
        | {**config.kafka.shared, **config.kafka.producer}
        | {"bootstrap.servers": config.kafka.bootstrap_servers, "enable.idempotence": True, "acks": "all"}
    )


def plain_settings(config: Config) -> dict[str, Any]:
    """As `producer_settings`, for a producer without transactions.

    librdkafka never gives a message up by itself: it would send the messages behind it before we hear of that, and the
    later results of a source would arrive without the earlier ones. `Publisher` watches the time instead.
    """
    settings = {name: value for name, value in producer_settings(config).items() if name not in _DELIVERY_TIMEOUTS}
    return settings | {"message.timeout.ms": 0}


def transactional_settings(config: Config) -> dict[str, Any]:
    """As `producer_settings`, for transactions."""
    ours = {
        # The transaction of a pod that died stays open for so long, and its readers stand still; a restarted pod with
        # the same ID ends it at once.
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        # A commit that takes longer may have been sent twice.
        "socket.timeout.ms": 5_000,
        # The brokers refuse a new transaction until the markers of the last one are written. The default of 100 ms
        # would make that wait the length of a transaction.
        "retry.backoff.ms": 2,
        # A topic that is not there must be known as such within a transaction. With the default of 30 s each one would
        # run out of time, and nobody would hear why.
        "topic.metadata.propagation.max.ms": 4_000,
    }
    return ours | producer_settings(config) | {"transactional.id": config.transactional_id}


def delivery_timeout_s(config: Config) -> float:
    """How long an outcome may stay unacknowledged: `delivery.timeout.ms` or its alias, in seconds. 0 means no limit.

    Raises:
        RefusedError: The setting is not a number.
    """
    chosen = {**config.kafka.shared, **config.kafka.producer}
    name = next((name for name in _DELIVERY_TIMEOUTS if name in chosen), "")
    try:
        timeout_ms = float(chosen[name]) if name else _DELIVERY_TIMEOUT_MS
    except ValueError:
        raise RefusedError(f"kafka.producer: {name} is {chosen[name]!r}, not a number of milliseconds") from None
    return timeout_ms / 1000 or math.inf
