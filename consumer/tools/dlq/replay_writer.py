"""Writes replayed records together with the progress of the replay."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka import KafkaError as Code

from consumer.errors import KafkaError, PublishError
from consumer.messages import Message
from consumer.observability.logging import printable
from consumer.tools import clients

TRANSACTION_MS: Final = 10_000
"""Timeout of a transaction. A replay that is killed leaves its transaction open for this time, plus up to 10 s until
the broker checks. While it is open, `read_committed` readers of the topic do not advance."""
_ANSWER_S: Final = 30.0
_SOCKET_S: Final = 10.0
_DEFAULTS: Final = {
    "partitioner": "murmur2_random",  # as Java clients and `sluice produce` place keys
    "linger.ms": "0",
    "message.max.bytes": str(64 * 2**20),  # the broker's own limit decides
}
_FIXED: Final = {"enable.idempotence": "true", "acks": "all"}
_FENCED: Final = (Code._FENCED, Code.PRODUCER_FENCED, Code.INVALID_PRODUCER_EPOCH)  # noqa: SLF001
_UNSUPPORTED: Final = (Code._UNSUPPORTED_FEATURE, Code.UNSUPPORTED_VERSION, Code.INVALID_REQUEST)  # noqa: SLF001

_TAKEN_OVER: Final = (
    "another replay of this group has started and continues from here (or a transaction of this replay took more than "
    f"{TRANSACTION_MS // 1000} s); the unfinished transaction of this replay was not written"
)


class Item(NamedTuple):
    """One record to write."""

    topic: str
    message: Message


class RecordRefused(Exception):  # noqa: N818 - the caller turns it into an error that names the dead letter
    """The brokers refused one record of a chunk, and with it the other ones. They do not report which one it was.

    Nothing of the chunk was written.
    """


class ReplayWriter(Protocol):
    """Writes chunks of records."""

    def refresh(self) -> bool:
        """Prepare for a chunk. True: another replay may have written since the last one, so read the progress again."""
        ...

    def send(self, items: Sequence[Item], offsets: list[TopicPartition]) -> None:
        """Write all records and commit the offsets.

        Raises:
            RecordRefused: the brokers refused a record, and nothing was written.
            SluiceError: the replay cannot continue.
        """
        ...


class TransactionalWriter:
    """Writes records and progress in one transaction, so a `read_committed` reader sees each record once.

    Create it before progress is read. From then on, an older replay with the same `name` can no longer write.
    """

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any], name: str, consumer: Consumer) -> None:
        limits = {"transaction.timeout.ms": str(TRANSACTION_MS), "socket.timeout.ms": str(int(_SOCKET_S * 1000))}
        self._settings = {**_DEFAULTS, **limits, **settings, **_FIXED, "transactional.id": name}
        self._bootstrap_servers = bootstrap_servers
        self._consumer = consumer
        self._suspect = False
        self._client = self._connect()

    def refresh(self) -> bool:
        if not self._suspect:
            return False
        self._suspect = False
        self._client = self._connect()
        return True

    def send(self, items: Sequence[Item], offsets: list[TopicPartition]) -> None:
        reports = _DeliveryReports()
        started = time.monotonic()
        try:
            self._client.begin_transaction()
            for item in items:
                _produce(self._client, item, reports)
            self._client.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), _ANSWER_S)
            self._client.commit_transaction(_ANSWER_S)
        except KafkaException as error:
            self._failed(error, reports)
        # The request to end this transaction may have been sent twice. If the second one is still in transit, it would
        # end the next transaction early. A new producer has a new epoch, so the brokers reject that request.
        self._suspect = self._suspect or time.monotonic() - started >= _SOCKET_S

    def _failed(self, failure: KafkaException, reports: _DeliveryReports) -> None:
        if _is_fenced(failure.args[0]) or reports.fenced:
            raise KafkaError(_TAKEN_OVER) from None
        try:
            self._client.abort_transaction(_ANSWER_S)
        except KafkaException as second:
            if _is_fenced(second.args[0]):
                raise KafkaError(_TAKEN_OVER) from None
            raise KafkaError(
                f"{clients.text_of(failure)}; it is not known whether the last records were written: run the same "
                f"command again, it continues where it stopped and repeats nothing"
            ) from None
        self._suspect = True  # also because librdkafka continues with a gap in its sequence numbers
        if reports.refused:
            raise RecordRefused(reports.refused) from None
        raise KafkaError(
            f"{clients.text_of(failure)}; run the same command again, it continues where it stopped"
        ) from None

    def _connect(self) -> Producer:
        client = clients.producer(self._bootstrap_servers, self._settings | {"error_cb": self._on_error})
        try:
            client.init_transactions(_ANSWER_S)
        except KafkaException as failure:
            error = failure.args[0]
            hint = "grant WRITE and DESCRIBE on the transactional ID " + printable(self._settings["transactional.id"])
            if error.code() in _UNSUPPORTED:
                hint = "for a broker without transactions use --at-least-once"
            elif error.retriable():
                hint = "run the same command again"
            raise KafkaError(f"cannot begin transactions: {clients.text_of(failure)}; {hint}") from None
        return client

    def _on_error(self, _error: Code) -> None:
        self._suspect = True


class AtLeastOnceWriter:
    """Writes records, then progress. After a crash in between, one chunk of records is written again."""

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any], consumer: Consumer) -> None:
        limits = {"delivery.timeout.ms": "30000"}
        self._client = clients.producer(bootstrap_servers, {**_DEFAULTS, **limits, **settings, **_FIXED})
        self._consumer = consumer

    def refresh(self) -> bool:
        return False

    def send(self, items: Sequence[Item], offsets: list[TopicPartition]) -> None:
        reports = _DeliveryReports()
        for item in items:
            try:
                _produce(self._client, item, reports)
            except KafkaException:
                break  # the reports have the error
        self._client.flush(_ANSWER_S + 5)
        if reports.arrived < len(items):
            reason = reports.reason or "no answer in time"
            raise PublishError(f"a record was not written: {reason}; the next run repeats its batch")
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as failure:
            raise KafkaError(
                f"progress was not committed: {clients.text_of(failure)}; the next run repeats some records"
            ) from None


class _DeliveryReports:
    """The delivery reports of one chunk.

    Attributes:
        arrived: records that were acknowledged.
        fenced: another producer with the same transactional ID has taken over.
        reason: why a record was not delivered.
        refused: the same, if the brokers refused this record.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self.fenced = False
        self.reason = ""
        self.refused = ""

    def fail(self, error: Code) -> None:
        self.reason = printable(error.str())
        self.fenced = self.fenced or _is_fenced(error)
        # Negative codes are the client's own, for a timeout or a failed transaction. The record is not their cause.
        if error.code() > 0:
            self.refused = self.refused or self.reason


def _produce(client: Producer, item: Item, reports: _DeliveryReports) -> None:
    def report(error: Code | None, _message: Any) -> None:
        if error is None:
            reports.arrived += 1
        else:
            reports.fail(error)

    message = item.message
    try:
        client.produce(
            item.topic,
            message.value,
            message.key,
            headers=message.headers,  # type: ignore[arg-type] # the stubs' list is invariant
            timestamp=message.timestamp_ms or 0,
            on_delivery=report,
        )
    except KafkaException as failure:  # the client refuses a record that is too large
        reports.fail(failure.args[0])
        raise


def _is_fenced(error: Code) -> bool:
    return error.code() in _FENCED or "fenced" in error.str().lower()
