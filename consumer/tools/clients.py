"""What the tools need of a Kafka client: where and how to connect, a first contact with clear errors, safe text."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import KafkaError as Code
from confluent_kafka.admin import AdminClient

from consumer.config import Config, load_config
from consumer.errors import ConfigError, KafkaError
from consumer.observability.log_filter import Repeats
from consumer.observability.logging import printable

# A broker that is there answers within milliseconds; one that is not should be said soon.
CONTACT_TIMEOUT_S: Final = 10.0

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Sluice's own configuration: brokers, TLS and SASL, topics. Default: $SLUICE_CONFIG, else none.",
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT",
        help="Brokers to ask first, comma-separated. Default: those of the configuration.",
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("-X", metavar="NAME=VALUE", help="Any librdkafka setting. Can be repeated.")
]
# Settings on which it depends whether a client gets to the brokers, and as whom.
_CONNECTS: Final = re.compile(r"(security|ssl|sasl|enable\.ssl|enable\.sasl|https|broker|client\.dns)\.")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to connect to and how: as the program itself would, where the command line (`own`) says nothing else.

    So a secured cluster needs no password on the command line, where everyone on the machine can read it.
    """

    config: Config
    bootstrap_servers: str
    own: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """For a client that is neither of the program's: `kafka.client` and `kafka.secrets`."""
        return {**self.config.kafka.shared, **self.own}

    @property
    def consumer(self) -> dict[str, Any]:
        """As the program's consumer connects."""
        return {**self.config.kafka.shared, **self.config.kafka.consumer, **self.own}

    @property
    def producer(self) -> dict[str, Any]:
        """As the program's producer connects."""
        return {**self.config.kafka.shared, **self.config.kafka.producer, **self.own}

    @property
    def apart(self) -> bool:
        """Whether consumer and producer reach the brokers differently, or as different users."""
        first, second = (
            {n: v for n, v in each.items() if _CONNECTS.match(n)} for each in (self.consumer, self.producer)
        )
        return first != second


def connection(config: Path | None, bootstrap_servers: str | None, pairs: Iterable[str] | None) -> Connection:
    """What the program's configuration says, and over it the options of a tool."""
    own = settings_from(pairs or ())
    program = load_config(config)
    return Connection(program, bootstrap_servers or program.kafka.bootstrap_servers, own)


def settings_from(pairs: Iterable[str]) -> dict[str, str]:
    """`["a=b"]` as a mapping. Raises ConfigError for what is no such pair, or has an option of its own."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise ConfigError(f"-X {printable(pair)}: expected NAME=VALUE")
        if name.strip() in ("bootstrap.servers", "metadata.broker.list"):
            raise ConfigError(f"-X {name.strip()}: use --bootstrap-servers")
        settings[name.strip()] = value
    return settings


def producer(bootstrap_servers: str, settings: Mapping[str, Any]) -> Producer:
    """A producer. Raises ConfigError where librdkafka refuses a setting."""
    client: Producer = _client(Producer, bootstrap_servers, settings)
    return client


def consumer(bootstrap_servers: str, settings: Mapping[str, Any]) -> Consumer:
    """A consumer. Raises ConfigError where librdkafka refuses a setting."""
    client: Consumer = _client(Consumer, bootstrap_servers, settings)
    return client


def admin(bootstrap_servers: str, settings: Mapping[str, Any]) -> AdminClient:
    """An administrator's client. Raises ConfigError where librdkafka refuses a setting."""
    client: AdminClient = _client(AdminClient, bootstrap_servers, settings)
    return client


def _client(kind: Any, bootstrap_servers: str, settings: Mapping[str, Any]) -> Any:
    try:
        return kind({"bootstrap.servers": bootstrap_servers, **settings}, logger=_log_of_a_client())
    except (KafkaException, ValueError, TypeError) as error:
        raise ConfigError(f"the Kafka client refuses its settings: {text_of(error)}") from None


def _log_of_a_client() -> logging.Logger:
    log = logging.Logger("librdkafka", logging.WARNING)  # noqa: LOG001 - of this client alone
    log.parent = logging.getLogger()
    log.addFilter(Repeats())
    return log


def partitions_of(client: Producer | Consumer, topic: str, timeout_s: float = CONTACT_TIMEOUT_S) -> list[int]:
    """The partitions of a topic; waits a while for one that the broker is just creating.

    Raises KafkaError where no broker answers, or none knows the topic.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            known = client.list_topics(topic, timeout=max(0.1, deadline - time.monotonic())).topics[topic]
        except KafkaException as error:
            raise KafkaError(f"no answer from the brokers: {text_of(error)}; check --bootstrap-servers") from None
        if known.error is None and known.partitions:
            return sorted(known.partitions)
        retriable = known.error is None or known.error.retriable()
        if time.monotonic() > deadline - timeout_s / 2 or not retriable:
            reason = known.error.str() if known.error is not None else "no partitions"
            raise KafkaError(f"topic {printable(topic)}: {reason}")
        time.sleep(0.1)


def is_permanent(error: Code) -> bool:
    """Whether no retry mends what a reader was told.

    That its group is refused does not matter to one that joins none; the client looks for its coordinator all the same.
    """
    return error.code() != Code.GROUP_AUTHORIZATION_FAILED and (error.fatal() or not error.retriable())


def text_of(error: BaseException) -> str:
    """The message of an error, without the wrapping of the client."""
    inner = error.args[0] if error.args else error
    return printable(inner.str() if hasattr(inner, "str") else str(inner))
