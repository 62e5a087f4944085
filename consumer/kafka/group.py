"""What `source` asks the group's coordinator, and what the answers mean."""

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

# No committed offset is looked up for longer than this, so that a rebalance cannot hang on a missing coordinator;
# unless a transaction may stay open longer, see `start_tries`.
LOOKUP_S, LOOKUP_TRIES = 5.0, 6
# How librdkafka (2.0 to 2.16) writes the metadata of a member: this, the generation (int32, native), then strings that
# end with a zero: group, member.
_METADATA: Final = b"CGMDv2:"
_GENERATION: Final = struct.Struct("=i")


def start_tries(config: Config) -> int:
    """How often the committed offsets of new partitions are asked for, `LOOKUP_S` each.

    With exactly_once they are not known while a member that died has a transaction open.
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
    """What the group has committed of these partitions, a negative offset where it has nothing.

    Offsets of a transaction that is still open are waited for (a `read_committed` consumer asks for stable ones).
    Raises KafkaError where the coordinator does not say within `LOOKUP_S` for each try, and what `verdict` raises of an
    answer. `go_on` is told of the first try and asked before another; it says no where nobody needs to know any more.
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
    """Whether the group metadata is that of a member: brokers check nothing where it is not, and would commit anyway.

    Raises RefusedError where librdkafka writes it in a way that is not known here.
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
    """Whether this client knows that it is no member. Metadata that cannot be read say nothing."""
    with contextlib.suppress(Exception):
        return not is_member(client.consumer_group_metadata())
    return False


def text_of(error: BaseException) -> str:
    """The words of the library for an exception of it."""
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, confluent_kafka.KafkaError) else str(inner)
