"""Sorts the errors of the consumer into temporary and permanent ones, and adds advice to the permanent ones."""

from __future__ import annotations

from collections.abc import Sequence

import confluent_kafka
import structlog

from consumer.errors import KafkaError, OffsetsLostError, RefusedError, TopicReplacedError
from consumer.kafka.topic_ids import Replaced
from consumer.types import TopicPartition

_log = structlog.get_logger(__name__)
_Code = confluent_kafka.KafkaError
# A retry does not help against these errors: a person must change a permission, a setting or a topic.
_FATAL = {
    _Code.TOPIC_AUTHORIZATION_FAILED: "grant this user READ on every input topic: {topics}",
    _Code.GROUP_AUTHORIZATION_FAILED: "grant this user READ on the consumer group {group}",
    _Code.CLUSTER_AUTHORIZATION_FAILED: "the cluster refuses this client",
    _Code._AUTHENTICATION: "check the SASL and TLS settings in kafka.client",  # noqa: SLF001 - the library's own name
    _Code.SASL_AUTHENTICATION_FAILED: "check the SASL settings in kafka.client",
    _Code.UNSUPPORTED_SASL_MECHANISM: "the brokers do not offer this sasl.mechanism",
    _Code.INVALID_GROUP_ID: "kafka.group_id is not valid",
    _Code.FENCED_INSTANCE_ID: "another process runs with the same group.instance.id",
    _Code.UNSUPPORTED_VERSION: "the brokers are too old for this setting",
}


# A handshake may fail temporarily when a broker restarts. An untrusted certificate is permanent.
_UNTRUSTED = "certificate verify failed"


def verdict(error: confluent_kafka.KafkaError, *, topics: Sequence[str], group: str) -> None:
    """Log a temporary error, or raise a permanent one.

    Args:
        error: The error of the client library.
        topics: The input topics, for the advice in the message.
        group: The consumer group, for the advice in the message.

    Raises:
        RefusedError: A person must change something. The message contains the advice.
        KafkaError: The client died for another reason, and a restart may help.
    """
    code = error.code()
    if code == _Code._FATAL:  # noqa: SLF001 - the client does nothing more after this
        # Only the text of the error contains its cause.
        cause = next((cause for cause in _FATAL if _Code(cause).str() in error.str()), code)
        kind = RefusedError if cause in _FATAL else KafkaError
        raise kind(f"the consumer died: {error.str()}; {_advice(cause, topics, group)}")
    if code == _Code._SSL and _UNTRUSTED in error.str():  # noqa: SLF001
        raise RefusedError(
            f"{error.str()}; this process does not trust the certificate of the brokers: check ssl.ca.location in "
            "kafka.client, and that kafka.bootstrap_servers are the names in the certificate"
        )
    if error.fatal() or code in _FATAL:
        kind = RefusedError if code in _FATAL else KafkaError
        raise kind(f"{error.name()}: {error.str()}; {_advice(code, topics, group)}")
    _log.warning("kafka", error=error.name(), text=error.str())


def topic_replaced(replaced: Replaced) -> TopicReplacedError:
    """Return the error to raise if a topic was deleted and created again while its frames were read."""
    return TopicReplacedError(
        f"the input topic {replaced.topic} was deleted and created again: its topic ID was {replaced.before} and is "
        f"{replaced.now}. Nothing more is committed for the old topic. A restart reads the new one from its beginning",
        replaced.topic,
    )


def offset_reset(
    partition: TopicPartition, offset: int | None, log: tuple[int, int] | None, text: str
) -> OffsetsLostError:
    """Return the error to raise if the next offset to read is not in the log.

    Args:
        partition: The partition.
        offset: The next offset. None if the client compared leader epochs (KIP-320) and found that the log was cut.
        log: The first offset of the log and the one after its last, if known.
        text: The text of the client library. If the log was cut, it contains the position.
    """
    if offset is None:
        said = f"the log of {partition} was cut: {text}"
    elif log is not None and offset > log[1]:
        said = (
            f"offset {offset} of {partition} is beyond the end of the log, {log[1]}: the log was cut, or the offset "
            "was set by hand"
        )
    elif log is not None and offset < log[0]:
        said = (
            f"records {offset} to {log[0] - 1} of {partition} were deleted before this group committed them. They were "
            "frames, or only transaction markers"
        )
    elif log is not None:
        said = f"the log of {partition} was cut below offset {offset} and written again: {text}"
    else:
        said = f"the next offset of {partition}, {offset}, is not in the log: {text}"
    return OffsetsLostError(
        f"{said}. Choose where to read on and reset the offsets of the group: docs/operations.md, Offsets out of range",
        partition.topic,
    )


def _advice(code: int, topics: Sequence[str], group: str) -> str:
    return _FATAL.get(code, "restart this process").format(topics=", ".join(topics), group=group)
