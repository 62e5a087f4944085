"""Asks the group coordinator for committed offsets and membership, and interprets the answers."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from typing import Final

import confluent_kafka
import structlog
from confluent_kafka import KafkaException

from consumer.config import Config
from consumer.errors import KafkaError, RefusedError

_log = structlog.get_logger(__name__)

# The time limit and number of lookups of committed offsets, so that a rebalance cannot hang on a missing coordinator.
# There are more lookups if a transaction may stay open longer, see `start_tries`.
LOOKUP_S, LOOKUP_TRIES = 5.0, 6
# How librdkafka (2.0 to 2.16) encodes the group metadata of a member: this prefix, the generation (int32, native byte
# order), then two zero-terminated strings: group and member.
_METADATA: Final = b"CGMDv2:"
_GENERATION: Final = struct.Struct("=i")


def start_tries(config: Config) -> int:
    """Return how often to look up the committed offsets of new partitions, with `LOOKUP_S` for each lookup.

    With exactly_once, these offsets are not available while a member that died has an open transaction.
    """
    if config.delivery != "exactly_once":
        return LOOKUP_TRIES
    return max(LOOKUP_TRIES, int(config.kafka.longest_transaction_s // LOOKUP_S))


def committed(
    client: confluent_kafka.Consumer,
    partitions: Sequence[confluent_kafka.TopicPartition],
    go_on: Callable[[], bool],
    verdict: Callable[[confluent_kafka.KafkaError], None],
    tries: int = LOOKUP_TRIES,
) -> list[confluent_kafka.TopicPartition]:
    """Look up the committed offsets of these partitions.

    If a transaction is still open, this waits for its end, because a `read_committed` consumer asks for stable offsets.

    Args:
        client: The consumer client.
        partitions: The partitions.
        go_on: Called before each try. If it returns False before a retry, the lookup ends with a KafkaError. The return
            value before the first try is ignored.
        verdict: Called for each error of the coordinator. It raises if the error is permanent.
        tries: The number of tries. Each blocks up to `LOOKUP_S`.

    Returns:
        The partitions with their committed offsets; negative if the group has none.

    Raises:
        KafkaError: The coordinator did not answer in time, or `verdict` raised it.
    """
    go_on()
    waits_told = False
    while True:
        tries -= 1
        try:
            found = client.committed(list(partitions), timeout=LOOKUP_S)
        except KafkaException as error:
            verdict(error.args[0])
            if not tries or not go_on():
                raise KafkaError(f"cannot read the committed offsets of the group: {text_of(error)}") from error
            if not waits_told:
                waits_told = True
                _log.warning(
                    "waiting for the committed offsets: the group's coordinator is away, or a member that died has a "
                    "transaction open",
                    at_most_s=tries * LOOKUP_S,
                )
        else:
            break
    for item in found:
        if item.error is not None:
            verdict(item.error)
            raise KafkaError(f"cannot read the committed offset of {item.topic}[{item.partition}]: {item.error}")
    return list(found)


def is_member(metadata: bytes) -> bool:
    """Return whether the group metadata belongs to a member.

    Brokers do not check metadata of a process that is not a member, and would accept its commits.

    Args:
        metadata: The group metadata, as encoded by librdkafka.

    Raises:
        RefusedError: This version does not know the encoding.
    """
    if not metadata.startswith(_METADATA):
        raise RefusedError(
            f"librdkafka {confluent_kafka.libversion()[0]} writes group metadata in a way that this version cannot "
            "check; use delivery: at_least_once, or a confluent-kafka of the locked version"
        )
    body = metadata[len(_METADATA) :]
    (generation,) = _GENERATION.unpack_from(body)
    _group, member, *_ = body[_GENERATION.size :].split(b"\0")
    return generation >= 0 and bool(member)


def is_expelled(client: confluent_kafka.Consumer) -> bool:
    """Return whether this client knows that it is not a member. False if its group metadata cannot be read."""
    with contextlib.suppress(Exception):
        return not is_member(client.consumer_group_metadata())
    return False


def text_of(error: BaseException) -> str:
    """Return the client library's text for one of its exceptions."""
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, confluent_kafka.KafkaError) else str(inner)
