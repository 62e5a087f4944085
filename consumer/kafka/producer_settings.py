"""Builds the librdkafka settings of the producer."""

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
    """Return the librdkafka settings of the producer.

    The user's settings override our defaults. The settings on which a delivery guarantee depends override both.
    """
    return (
        {
            "client.id": "sluice",
            # Java producers choose partitions with murmur2 too, so a reader can join results with other keyed topics.
            "partitioner": "murmur2_random",
            # Long enough to hand over the results of a batch, so that they share requests. A request for each result
            # would cost this process and the brokers a fifth of the CPU at thousands of frames a second.
            "linger.ms": 0.5,
            "message.max.bytes": LADDER[0],
        }
        | {**config.kafka.shared, **config.kafka.producer}
        | {"bootstrap.servers": config.kafka.bootstrap_servers, "enable.idempotence": True, "acks": "all"}
    )


def plain_settings(config: Config) -> dict[str, Any]:
    """Return `producer_settings` for a producer without transactions.

    The delivery timeout of librdkafka is off. If librdkafka dropped a message, it would send the following ones before
    this process is notified. Later results of a source would then arrive without an earlier one. `Publisher` enforces
    the timeout instead.
    """
    settings = {name: value for name, value in producer_settings(config).items() if name not in _DELIVERY_TIMEOUTS}
    return settings | {"message.timeout.ms": 0}


def transactional_settings(config: Config) -> dict[str, Any]:
    """Return `producer_settings` for a producer with transactions."""
    ours = {
        # The transaction of a pod that died stays open for this long, and its readers wait. A restarted pod with the
        # same ID ends it immediately.
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        # A commit that takes longer may have been sent twice.
        "socket.timeout.ms": 5_000,
        # The brokers refuse a new transaction until the markers of the last one are written. With the default of
        # 100 ms, this wait would determine the length of a transaction.
        "retry.backoff.ms": 2,
        # A missing topic must be detected within the time of a transaction. With the default of 30 s, each transaction
        # would time out without a stated reason.
        "topic.metadata.propagation.max.ms": 4_000,
    }
    return ours | producer_settings(config) | {"transactional.id": config.transactional_id}


def delivery_timeout_s(config: Config) -> float:
    """Return how long an outcome may stay unacknowledged: the setting `delivery.timeout.ms` or its alias.

    Returns:
        Seconds. Infinite if the setting is 0, which means no limit.

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
