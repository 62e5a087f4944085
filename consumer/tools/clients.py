"""Kafka clients for the tools: connection options and settings, the first metadata request, and error texts."""

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

# A reachable broker answers within milliseconds. An unreachable one should be reported soon.
METADATA_TIMEOUT_S: Final = 10.0

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration file of Sluice: brokers, TLS and SASL, topics. Default: $SLUICE_CONFIG, else none.",
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT",
        help="Brokers to connect to first, comma-separated. Default: those of the configuration.",
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("-X", metavar="NAME=VALUE", help="Any librdkafka setting. Can be repeated.")
]
# Settings that decide whether a client reaches the brokers, and as which user.
_CONNECTION_SETTINGS: Final = re.compile(r"(security|ssl|sasl|enable\.ssl|enable\.sasl|https|broker|client\.dns)\.")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where and how to connect: as `sluice run` does, unless the command line overrides a setting.

    A secured cluster therefore needs no password on the command line, where all users of the machine can read it.

    Attributes:
        config: the configuration of the program.
        bootstrap_servers: brokers to connect to first, comma-separated.
        overrides: librdkafka settings from the command line.
    """

    config: Config
    bootstrap_servers: str
    overrides: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings shared by both clients of the program: `kafka.client` and `kafka.secrets`."""
        return {**self.config.kafka.shared, **self.overrides}

    @property
    def consumer(self) -> dict[str, Any]:
        """Settings of the program's consumer."""
        return {**self.config.kafka.shared, **self.config.kafka.consumer, **self.overrides}

    @property
    def producer(self) -> dict[str, Any]:
        """Settings of the program's producer."""
        return {**self.config.kafka.shared, **self.config.kafka.producer, **self.overrides}

    @property
    def clients_differ(self) -> bool:
        """Whether consumer and producer connect to the brokers differently, or as different users."""
        first, second = (
            {n: v for n, v in each.items() if _CONNECTION_SETTINGS.match(n)} for each in (self.consumer, self.producer)
        )
        return first != second


def connection(config: Path | None, bootstrap_servers: str | None, pairs: Iterable[str] | None) -> Connection:
    """Merge the configuration of the program with the options of a tool.

    Raises:
        ConfigError: the configuration or an option is wrong.
    """
    overrides = settings_from(pairs or ())
    program = load_config(config)
    return Connection(program, bootstrap_servers or program.kafka.bootstrap_servers, overrides)


def settings_from(pairs: Iterable[str]) -> dict[str, str]:
    """Parse `["a=b"]` into a mapping.

    Raises:
        ConfigError: a text is not one of these pairs, or its setting has its own option.
    """
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
    """A producer. Raises ConfigError if librdkafka refuses a setting."""
    client: Producer = _client(Producer, bootstrap_servers, settings)
    return client


def consumer(bootstrap_servers: str, settings: Mapping[str, Any]) -> Consumer:
    """A consumer. Raises ConfigError if librdkafka refuses a setting."""
    client: Consumer = _client(Consumer, bootstrap_servers, settings)
    return client


def admin(bootstrap_servers: str, settings: Mapping[str, Any]) -> AdminClient:
    """An admin client. Raises ConfigError if librdkafka refuses a setting."""
    client: AdminClient = _client(AdminClient, bootstrap_servers, settings)
    return client


def _client(kind: Any, bootstrap_servers: str, settings: Mapping[str, Any]) -> Any:
    try:
        return kind({"bootstrap.servers": bootstrap_servers, **settings}, logger=_new_logger())
    except (KafkaException, ValueError, TypeError) as error:
        raise ConfigError(f"the Kafka client refuses its settings: {text_of(error)}") from None


def _new_logger() -> logging.Logger:
    log = logging.Logger("librdkafka", logging.WARNING)  # noqa: LOG001 - one logger per client
    log.parent = logging.getLogger()
    log.addFilter(Repeats())
    return log


def partitions_of(client: Producer | Consumer, topic: str, timeout_s: float = METADATA_TIMEOUT_S) -> list[int]:
    """The partitions of a topic. Waits for a topic that the broker is creating.

    Raises:
        KafkaError: no broker answers, or the topic does not exist.
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
    """Whether a retry cannot fix an error of a consumer that joins no group.

    The brokers may refuse the group of this consumer: the client looks up its coordinator, but does not need it.
    """
    return error.code() != Code.GROUP_AUTHORIZATION_FAILED and (error.fatal() or not error.retriable())


def text_of(error: BaseException) -> str:
    """The message of an error, without the wrapper of the client library, and safe to print."""
    inner = error.args[0] if error.args else error
    return printable(inner.str() if hasattr(inner, "str") else str(inner))
