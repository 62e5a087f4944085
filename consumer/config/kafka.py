"""Declares the options of the Kafka clients, checks librdkafka settings, and reads secrets from files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import Field, PrivateAttr, model_validator

from consumer.config.section import Section, Text

# librdkafka accepts every setting as text. YAML also has numbers and booleans (`true` and `false`).
Librdkafka = dict[str, str | int | float | bool]

# The default of transaction.timeout.ms in Sluice. If a member dies, its transaction stays open for this time.
TRANSACTION_TIMEOUT_MS: Final = 15_000
# The brokers check for expired transactions every 10 s (their default), and need some time to abort them.
_ENDING_MS: Final = 15_000
_MAX_POLL_INTERVAL_MS: Final = 300_000  # librdkafka's default

_FETCH_BACKOFF: Final = "fetch.error.backoff.ms"
_LEAST_FETCH_BACKOFF_MS: Final = 500  # librdkafka's default
_SECRET_BYTES: Final = 64 * 1024  # the maximum size; a chain of certificates has a few thousand bytes

# The librdkafka settings that users may not set, because a guarantee depends on them, each with the alternative.
OWN_SETTINGS: Final[dict[str, str]] = {
    "bootstrap.servers": "set kafka.bootstrap_servers",
    "metadata.broker.list": "set kafka.bootstrap_servers",
    "group.id": "set kafka.group_id",
    "enable.auto.commit": "Sluice commits what was acknowledged; set kafka.commit_interval_ms",
    "auto.commit.interval.ms": "set kafka.commit_interval_ms",
    "enable.auto.offset.store": "Sluice stores an offset only after its result was acknowledged",
    "enable.partition.eof": "Sluice needs it to commit the end of a partition",
    "enable.idempotence": "Sluice needs the idempotent producer to keep results in order",
    "acks": "Sluice needs acks=all to keep results",
    "request.required.acks": "Sluice needs acks=all to keep results",
    "delivery.report.only.error": "Sluice commits what was acknowledged, so it needs the reports of success",
    "transactional.id": "set kafka.transactional_id, and delivery: exactly_once",
}


class KafkaConfig(Section):
    bootstrap_servers: Text = Field(
        "localhost:9092", description="Brokers for the first connection: host:port, comma-separated."
    )
    group_id: Text = Field("sluice", description="Consumer group. The pods of one group share the partitions.")
    client: Librdkafka = Field({}, description="Any librdkafka setting, for the consumer and the producer.")
    consumer: Librdkafka = Field({}, description="Any librdkafka setting, only for the consumer.")
    producer: Librdkafka = Field({}, description="Any librdkafka setting, only for the producer.")
    secrets: dict[str, str] = Field(
        {},
        description="librdkafka settings whose values are read from files, for the consumer and the producer: "
        '{"sasl.password": "/run/secrets/kafka-password"}. Read once at the start; a newline at the end is removed.',
    )
    commit_interval_ms: int = Field(
        500,
        ge=10,
        le=60_000,
        description="at_least_once: milliseconds between commits of acknowledged offsets.",
    )
    transactional_id: str = Field(
        "",
        pattern=r"^[\x21-\x7e]{0,249}$",
        description="exactly_once: transactional ID of this process. It must stay the same after a restart, and every "
        "process needs a different one. Empty: sluice-<group_id>-<host name>-0.",
    )
    _from_files: dict[str, str] = PrivateAttr(default_factory=dict)  # private, so that nothing prints the secrets

    @property
    def shared(self) -> dict[str, str | int | float | bool]:
        """The settings of every client: those of `client`, and the contents of the files in `secrets`."""
        return {**self.client, **self._from_files}

    @property
    def longest_transaction_s(self) -> float:
        """The seconds after which the brokers have certainly ended the transaction of a dead member.

        Sluice waits no longer than this.

        Raises:
            ValueError: `transaction.timeout.ms` is not a number.
        """
        return (self._transaction_timeout_ms + _ENDING_MS) / 1000

    @property
    def _transaction_timeout_ms(self) -> float:
        return _milliseconds({**self.shared, **self.producer}, "transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)

    def check_transaction_timeout(self) -> None:
        """Check that a consumer can wait for the longest transaction. Needed for `exactly_once`.

        Raises:
            ValueError: `transaction.timeout.ms` is too long for `max.poll.interval.ms`, or is not a number.
        """
        timeout_ms = self._transaction_timeout_ms
        longest_ms = _milliseconds({**self.shared, **self.consumer}, "max.poll.interval.ms", _MAX_POLL_INTERVAL_MS)
        if timeout_ms > TRANSACTION_TIMEOUT_MS and longest_ms < timeout_ms + _ENDING_MS:
            most_ms = max(TRANSACTION_TIMEOUT_MS, longest_ms - _ENDING_MS)
            raise ValueError(
                f"kafka.producer: transaction.timeout.ms ({timeout_ms:.0f}) is too long for max.poll.interval.ms "
                f"({longest_ms:.0f}). If a member dies, its transaction can stay open for {timeout_ms:.0f} ms and "
                f"{_ENDING_MS} ms more. A consumer that waits longer than max.poll.interval.ms for its end can lose "
                f"its partitions. Set transaction.timeout.ms to {most_ms:.0f} or less, or "
                f"max.poll.interval.ms to {timeout_ms + _ENDING_MS:.0f} or more"
            )

    @model_validator(mode="after")
    def _read_secrets(self) -> KafkaConfig:
        for name, file in self.secrets.items():
            if name in OWN_SETTINGS:
                raise ValueError(f"secrets: {name!r} is not free: {OWN_SETTINGS[name]}")
            if twice := [part for part in ("client", "consumer", "producer") if name in getattr(self, part)]:
                raise ValueError(f"secrets: {name!r} is in kafka.{twice[0]} too; leave one of them")
            self._from_files[name] = _read_secret(name, file)
        return self

    @model_validator(mode="after")
    def _leave_ours_alone(self) -> KafkaConfig:
        for section in ("client", "consumer", "producer"):
            if str(getattr(self, section).get("partitioner", "")) == "random":
                raise ValueError(f"{section}: partitioner 'random' would scatter the results of a source")
            backoff_ms = float(getattr(self, section).get(_FETCH_BACKOFF, _LEAST_FETCH_BACKOFF_MS))
            if section != "producer" and backoff_ms < _LEAST_FETCH_BACKOFF_MS:
                raise ValueError(
                    f"{section}: {_FETCH_BACKOFF} is less than {_LEAST_FETCH_BACKOFF_MS}: Sluice must notice an input "
                    "topic that was created again before the client reads on in it"
                )
            for name in getattr(self, section):
                if name in OWN_SETTINGS:
                    raise ValueError(f"{section}: {name!r} is not free: {OWN_SETTINGS[name]}")
        return self


def _milliseconds(settings: Librdkafka, name: str, default: int) -> float:
    """Return the value of a librdkafka setting. Raises ValueError if it is not a number."""
    value = settings.get(name, default)
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"kafka: {name} is {value!r}; expected a number of milliseconds") from None


def _read_secret(name: str, file: str) -> str:
    """Return the content of a file without one newline at its end. Raises ValueError if the file is unusable."""
    if not file.startswith("/"):  # the error does not show the text, because it may be the secret itself
        raise ValueError(f"secrets: {name}: expected the absolute path of a file, as in /run/secrets/kafka-password")
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        why = (isinstance(error, OSError) and error.strerror) or "no file can have that name"
        if _is_a_path(file):
            raise ValueError(f"secrets: {name}: cannot read {file}: {why}") from None
        raise ValueError(
            f"secrets: {name}: cannot read the file: {why}. Its path is not shown, it may be the secret itself; what "
            "belongs there is the path of a file in a folder that exists, as in /run/secrets/kafka-password"
        ) from None
    if len(content) > _SECRET_BYTES:
        raise ValueError(f"secrets: {name}: {file} has more than {_SECRET_BYTES} bytes; that is no secret")
    try:
        value = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"secrets: {name}: {file} is not UTF-8 text") from None
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise ValueError(f"secrets: {name}: {file} is empty")
    if "\0" in value:  # librdkafka would use only the part before it
        raise ValueError(f"secrets: {name}: {file} holds a NUL byte")
    return value


def _is_a_path(text: str) -> bool:
    """Return whether the text is clearly a path: it or its folder exists. A password may also begin with a slash."""
    folder = os.path.dirname(text)  # noqa: PTH120 - the text may not be a path at all
    try:
        return os.path.lexists(text) or (os.path.isdir(folder) and not os.path.samefile(folder, "/"))  # noqa: PTH112, PTH121
    except (OSError, ValueError):
        return False
