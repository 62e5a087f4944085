"""Writes replayed records, and with them how far the replay has come."""

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
"""A replay that is killed leaves a transaction open for at most so long, and what the broker takes to look (10 s). As
long as it is open, `read_committed` readers of the topic stand still."""
_ANSWER_S: Final = 30.0
_SOCKET_S: Final = 10.0
_DEFAULTS: Final = {
    "partitioner": "murmur2_random",  # as Java clients and `sluice produce` place keys
    "linger.ms": "0",
    "message.max.bytes": str(64 * 2**20),  # the broker's own limit decides
}
_OURS: Final = {"enable.idempotence": "true", "acks": "all"}
_FENCED: Final = (Code._FENCED, Code.PRODUCER_FENCED, Code.INVALID_PRODUCER_EPOCH)  # noqa: SLF001
_UNSUPPORTED: Final = (Code._UNSUPPORTED_FEATURE, Code.UNSUPPORTED_VERSION, Code.INVALID_REQUEST)  # noqa: SLF001

_TAKEN_OVER: Final = (
    "another replay of this group has started and goes on from here (or the brokers have waited for this one for more "
    f"than {TRANSACTION_MS // 1000} s); what this one had not finished was not written"
)


class Item(NamedTuple):
    """One record to write."""

    topic: str
    message: Message


class RecordRefused(Exception):  # noqa: N818 - the caller turns it into an error that names the letter
    """The brokers do not want one record of a chunk. Which one, they do not say: they refuse what came with it, too.

    Nothing of the chunk was written.
    """


class ReplayWriter(Protocol):
    """Where chunks of records go."""

    def refresh(self) -> bool:
        """Make ready for a chunk. True: another replay may have written since the last one; look at progress anew."""
        ...

    def send(self, items: Sequence[Item], offsets: list[TopicPartition]) -> None:
        """Write all of them and commit the offsets. Raises RecordRefused, or a SluiceError that ends the replay."""
        ...


class TransactionalWriter:
    """Records and progress in one transaction: both or neither, so a `read_committed` reader sees each record once.

    Made before progress is read: from then on an older replay under the same `name` can change nothing.
    """

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any], name: str, consumer: Consumer) -> None:
        limits = {"transaction.timeout.ms": str(TRANSACTION_MS), "socket.timeout.ms": str(int(_SOCKET_S * 1000))}
        self._settings = {**_DEFAULTS, **limits, **settings, **_OURS, "transactional.id": name}
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
        # The request to end this transaction may have been sent twice, and the second may still be on its way: it would
        # end the next one early. A new producer has a new epoch, under which it is void.
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
                f"command again, it goes on where it stopped and repeats nothing"
            ) from None
        self._suspect = True  # also because librdkafka goes on with a gap in its sequence numbers
        if reports.refused:
            raise RecordRefused(reports.refused) from None
        raise KafkaError(
            f"{clients.text_of(failure)}; run the same command again, it goes on where it stopped"
        ) from None

    def _connect(self) -> Producer:
        client = clients.producer(self._bootstrap_servers, self._settings | {"error_cb": self._on_error})
        try:
            client.init_transactions(_ANSWER_S)
        except KafkaException as failure:
            error = failure.args[0]
            hint = "grant WRITE and DESCRIBE on the transactional ID " + printable(self._settings["transactional.id"])
            if error.code() in _UNSUPPORTED:
                hint = "a broker without transactions needs --at-least-once"
            elif error.retriable():
                hint = "run the same command again"
            raise KafkaError(f"cannot begin transactions: {clients.text_of(failure)}; {hint}") from None
        return client

    def _on_error(self, _error: Code) -> None:
        self._suspect = True


class AtLeastOnceWriter:
    """Records, then progress: after a crash in between, one chunk of records is written again."""

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any], consumer: Consumer) -> None:
        limits = {"delivery.timeout.ms": "30000"}
        self._client = clients.producer(bootstrap_servers, {**_DEFAULTS, **limits, **settings, **_OURS})
        self._consumer = consumer

    def refresh(self) -> bool:
        return False

    def send(self, items: Sequence[Item], offsets: list[TopicPartition]) -> None:
        reports = _DeliveryReports()
        for item in items:
            try:
                _produce(self._client, item, reports)
            except KafkaException:
                break  # in the reports
        self._client.flush(_ANSWER_S + 5)
        if reports.arrived < len(items):
            reason = reports.reason or "no answer in time"
            raise PublishError(f"a record was not written: {reason}; what was sent beside it will be sent again")
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as failure:
            raise KafkaError(f"progress was not committed: {clients.text_of(failure)}; some will repeat") from None


class _DeliveryReports:
    """What became of the records of one chunk."""

    def __init__(self) -> None:
        self.arrived = 0
        self.fenced = False
        self.reason = ""  # why one of them did not arrive
        self.refused = ""  # the same, where it is the brokers' answer to this record

    def fail(self, error: Code) -> None:
        self.reason = printable(error.str())
        self.fenced = self.fenced or _is_fenced(error)
        # Below 0 are the client's own: out of time, or thrown out as the transaction failed. No fault of this record.
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
    except KafkaException as failure:  # refused on the spot, for its size
        reports.fail(failure.args[0])
        raise


def _is_fenced(error: Code) -> bool:
    return error.code() in _FENCED or "fenced" in error.str().lower()
