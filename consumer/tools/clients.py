"""What the tools need of a Kafka client: settings from `-X`, a first contact with clear errors, safe text."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import typer
from confluent_kafka import Consumer, KafkaException, Producer

from consumer.errors import ConfigError, KafkaError

# A broker that is there answers within milliseconds; one that is not should be said soon.
CONTACT_TIMEOUT_S: Final = 10.0

BootstrapServers = Annotated[
    str, typer.Option("--bootstrap-servers", metavar="HOST:PORT", help="Brokers to ask first, comma-separated.")
]
Settings = Annotated[
    list[str] | None, typer.Option("-X", metavar="NAME=VALUE", help="Any librdkafka setting. Can be repeated.")
]


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


def _client(kind: Any, bootstrap_servers: str, settings: Mapping[str, Any]) -> Any:
    try:
        return kind({"bootstrap.servers": bootstrap_servers, **settings}, logger=logging.getLogger("librdkafka"))
    except (KafkaException, ValueError, TypeError) as error:
        raise ConfigError(f"the Kafka client refuses its settings: {text_of(error)}") from None


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


def text_of(error: BaseException) -> str:
    """The message of an error, without the wrapping of the client."""
    inner = error.args[0] if error.args else error
    return printable(inner.str() if hasattr(inner, "str") else str(inner))


def printable(text: str) -> str:
    """The text with everything escaped that could steer a terminal or forge a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
