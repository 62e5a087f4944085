"""Maps the errors of the producer to advice, and builds the exceptions for refused messages.

librdkafka retries temporary errors itself. A refusal that it reports is final for the record. Either another record
replaces it (a smaller dead letter, one with a key, or a dead letter instead of a result), or the process ends. In the
second case the message names what a person must change, because a restart would get the same refusal.
"""

from __future__ import annotations

from typing import Final

import confluent_kafka

from consumer.errors import PublishError, UnwritableError

_Code = confluent_kafka.KafkaError

# The message or its batch is larger than the topic accepts.
TOO_LARGE: Final = frozenset((_Code.MSG_SIZE_TOO_LARGE, _Code.RECORD_LIST_TOO_LARGE))

# Errors that a retry does not resolve, but a person can.
ADVICE: Final = {
    _Code.MSG_SIZE_TOO_LARGE: "raise max.message.bytes of the topic, or lower batch.size in kafka.producer",
    _Code.RECORD_LIST_TOO_LARGE: "raise segment.bytes of the topic, or lower batch.size in kafka.producer",
    _Code.TOPIC_AUTHORIZATION_FAILED: "grant this user WRITE on topic {topic}",
    _Code.CLUSTER_AUTHORIZATION_FAILED: "grant this user IDEMPOTENT_WRITE on the cluster, or WRITE on topic {topic}",
    _Code.UNKNOWN_TOPIC_OR_PART: "create it",
    _Code._UNKNOWN_TOPIC: "create it",  # noqa: SLF001 - the library's own name
    _Code._UNKNOWN_PARTITION: "create it again: it has lost partitions",  # noqa: SLF001
    _Code.TOPIC_EXCEPTION: "its name is not one that the brokers take: correct output.topic or dead_letter.topic",
    _Code.INVALID_TIMESTAMP: "the clocks of this machine and of the brokers differ by more than "
    "message.timestamp.before.max.ms or message.timestamp.after.max.ms of the topic allow: set the clocks, "
    "or raise those",
    _Code.INVALID_RECORD: "the topic does not take such a record: look at its cleanup.policy, which must not be "
    "compact alone, and at any validation of schemas on the brokers",
    _Code.POLICY_VIOLATION: "a policy of the brokers forbids it: ask who runs them",
    _Code.UNSUPPORTED_COMPRESSION_TYPE: "choose another compression.type in kafka.producer, or for the topic",
    _Code.UNSUPPORTED_FOR_MESSAGE_FORMAT: "the topic keeps records in an old format without headers: upgrade it",
    _Code.INVALID_REQUIRED_ACKS: "these brokers do not take acks=all",
}

# Permanent errors of the error callback. A handshake may fail temporarily; an untrusted certificate is permanent.
LASTING: Final = {_Code._AUTHENTICATION, _Code.SASL_AUTHENTICATION_FAILED, _Code.UNSUPPORTED_SASL_MECHANISM}  # noqa: SLF001
UNTRUSTED: Final = "certificate verify failed"

# Errors of transactions.
FENCED: Final = {_Code._FENCED, _Code.PRODUCER_FENCED, _Code.INVALID_PRODUCER_EPOCH}  # noqa: SLF001 - the library's names
# The group has removed this process. An outdated generation is not in this set, because it is renewed without a poll.
EXPELLED: Final = {_Code.UNKNOWN_MEMBER_ID, _Code.FENCED_MEMBER_EPOCH, _Code.FENCED_INSTANCE_ID}
NO_TRANSACTIONS: Final = "these brokers have no transactions; use delivery: at_least_once"
TRANSACTION_ADVICE: Final = {
    _Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "grant this user WRITE on the transactional ID {id}",
    _Code.GROUP_AUTHORIZATION_FAILED: "grant this user READ on the consumer group {group}",
    _Code.TOPIC_AUTHORIZATION_FAILED: "grant this user WRITE on the topics {topics}",
    _Code.CLUSTER_AUTHORIZATION_FAILED: "the cluster refuses this client",
    _Code._AUTHENTICATION: "check the SASL and TLS settings in kafka.client",  # noqa: SLF001
    _Code.SASL_AUTHENTICATION_FAILED: "check the SASL settings in kafka.client",
    _Code.UNSUPPORTED_SASL_MECHANISM: "the brokers do not offer this sasl.mechanism",
    _Code.INVALID_TRANSACTION_TIMEOUT: "lower transaction.timeout.ms in kafka.producer to what the brokers allow",
    _Code._UNSUPPORTED_FEATURE: NO_TRANSACTIONS,  # noqa: SLF001
    _Code.UNSUPPORTED_VERSION: NO_TRANSACTIONS,
}


def refusal(what: str, topic: str, record: str, error: confluent_kafka.KafkaError) -> PublishError:
    """Return the error to raise if the brokers do not accept a message.

    Args:
        what: The kind of the message: "result" or "dead letter".
        topic: Its topic.
        record: The ID of its input record.
        error: The refusal.
    """
    advice = ADVICE.get(error.code(), "nothing unacknowledged was committed; a restart repeats it")
    kind = UnwritableError if error.code() in ADVICE else PublishError
    return kind(f"cannot write the {what} of {record} to {topic}: {error.str()}; {advice.format(topic=topic)}")


def lowered_limit(what: str, topic: str, error: confluent_kafka.KafkaError) -> PublishError:
    """Return the error to raise if the brokers refuse a message that fitted the limit of its topic.

    The arguments are those of `refusal`.
    """
    setting = "max.message.bytes" if error.code() == _Code.MSG_SIZE_TOO_LARGE else "segment.bytes"
    return PublishError(
        f"cannot write a {what} to {topic}: {error.str()}; {setting} of the topic was lowered, and a restart "
        "learns the new limit; nothing unacknowledged was committed, a restart repeats it"
    )


def became_compacted(what: str, topic: str, error: confluent_kafka.KafkaError) -> PublishError:
    """Return the error to raise if a topic became compacted, and so requires keys.

    The arguments are those of `refusal`.
    """
    return PublishError(
        f"cannot write a {what} to {topic}: {error.str()}; the topic became compacted and needs a key in each record, "
        "and a restart adds the keys; nothing unacknowledged was committed, a restart repeats it"
    )


def text_of(error: BaseException) -> str:
    """Return librdkafka's text for an exception, without the names of its classes."""
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, confluent_kafka.KafkaError) else str(inner)
