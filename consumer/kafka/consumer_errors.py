"""What the consumer's errors mean, and what a person can do about those that no retry mends."""

from __future__ import annotations

from collections.abc import Sequence

import confluent_kafka
import structlog

from consumer.errors import KafkaError, OffsetsLostError, RefusedError, TopicReplacedError
from consumer.kafka.topic_ids import Replaced
from consumer.types import TopicPartition

_log = structlog.get_logger(__name__)
_Code = confluent_kafka.KafkaError
# No retry of the client mends these: a person must change a right, a setting or a topic.
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


# A handshake may fail in passing, when a broker restarts. A certificate that is not trusted stays so.
_UNTRUSTED = "certificate verify failed"


def verdict(error: confluent_kafka.KafkaError, *, topics: Sequence[str], group: str) -> None:
    """Log an error that passes by itself. Raises KafkaError for any other, with what to do."""
    code = error.code()
    if code == _Code._FATAL:  # noqa: SLF001 - after this the client is silent for ever
        # Why it died is only in the text.
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
    """A topic was deleted and created again while its frames were read."""
    return TopicReplacedError(
        f"the input topic {replaced.topic} was deleted and created again: its topic ID was {replaced.before} and is "
        f"{replaced.now}. Nothing more is committed for the old topic. A restart reads the new one from its beginning",
        replaced.topic,
    )


def offset_reset(
    partition: TopicPartition, offset: int | None, log: tuple[int, int] | None, text: str
) -> OffsetsLostError:
    """The next offset to read is not in the log. `log`: its first offset and the one behind its end, if known.

    `offset` is None if the client compared leader epochs (KIP-320) and found that the log was cut: `text` says where.
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
