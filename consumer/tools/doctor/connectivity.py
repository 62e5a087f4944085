"""Checks whether each broker answers, at which step a connection fails, and which requests the brokers support."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError as Code
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumer.errors import ConfigError
from consumer.tools.clients import text_of
from consumer.tools.doctor.findings import Finding, Reporter

# librdkafka has no call for the requests that the brokers support, but logs them when it connects, before any login.
_API: Final = re.compile(r"ApiKey \S+ \((\d+)\) Versions (\d+)\.\.(\d+)")
_PARALLEL_CONNECTIONS: Final = 16
_BROKER_TIMEOUT_S: Final = 5.0
FIRST_TRY_S: Final = 3.0  # after this time, a reported error counts as the cause
_NO_ANSWER: Final = "first answer"
# How librdkafka names a broker that it knows from another one: host:port/ID. A bootstrap server has no number.
_DISCOVERED: Final = re.compile(r"(\S+:\d+)/(\d+): ")
# Numbers of requests in Kafka's protocol.
_INIT_PRODUCER_ID, _ADD_OFFSETS_TO_TXN, _END_TXN, _TXN_OFFSET_COMMIT, _CONSUMER_GROUP_HEARTBEAT = 22, 25, 26, 28, 68


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """Why no broker could be reached.

    Attributes:
        step: the step that failed, such as "login" or "TLS".
        error: the error text of the client.
        fix: what to do about it.
    """

    step: str
    error: str
    fix: str


@dataclass(frozen=True, slots=True)
class Connectivity:
    """What one client found out.

    Attributes:
        brokers: the advertised address of each broker, by broker ID. Empty if no broker answered.
        apis: the supported versions of each request, as (lowest, highest) by request number.
        failure: why no broker answered; None if one did.
    """

    brokers: Mapping[int, str]
    apis: Mapping[int, tuple[int, int]]
    failure: ConnectionFailure | None = None


class LogCapture(logging.Handler):
    """Collects the supported requests and the connection failures from the log of a client.

    The client does not report all of these failures as errors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.apis: dict[int, tuple[int, int]] = {}
        self.failures: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if (found := _API.search(line)) is not None:
            self.apis[int(found[1])] = int(found[2]), int(found[3])
        elif line.startswith("FAIL "):
            self.failures.append(line.rpartition("]: ")[2])


def connect(bootstrap_servers: str, settings: Mapping[str, Any], timeout_s: float) -> Connectivity:
    """Request the list of brokers once.

    Raises:
        ConfigError: the client refuses its settings.
    """
    errors: list[Code] = []
    capture = LogCapture()
    log = logging.Logger("librdkafka.doctor", logging.DEBUG)  # noqa: LOG001 - only `capture` receives its lines
    log.addHandler(capture)
    fixed: dict[str, Any] = {
        "bootstrap.servers": bootstrap_servers,
        "error_cb": errors.append,
        "debug": "feature,protocol",
    }
    try:
        client = AdminClient({**settings, **fixed, "log_level": 7}, logger=log)
    except (KafkaException, ValueError, TypeError) as error:
        raise ConfigError(f"the Kafka client refuses its settings: {text_of(error)}") from None
    deadline = time.monotonic() + timeout_s
    try_s = min(timeout_s, FIRST_TRY_S)
    while True:
        try:
            known = client.list_topics(timeout=try_s)
        except KafkaException as error:
            _drain_events(client)
            reported = [(each.code(), each.str()) for each in errors]
            reported += [(Code._TRANSPORT, line) for line in capture.failures]  # noqa: SLF001
            failure = classify_failure([*reported, (error.args[0].code(), error.args[0].str())])
            try_s = deadline - time.monotonic()
            # A refusal does not change with time, so only silence is worth the rest of the time.
            if failure.step != _NO_ANSWER or try_s <= 0:
                return Connectivity({}, capture.apis, failure)
        else:
            _drain_events(client)
            return Connectivity({each.id: f"{each.host}:{each.port}" for each in known.brokers.values()}, capture.apis)


def _drain_events(client: AdminClient) -> None:
    """Serve the log lines and errors of the client: it delivers them only during a poll."""
    until = time.monotonic() + 0.5
    while client.poll(0.05) and time.monotonic() < until:
        pass


_PROTOCOL_FIX: Final = (
    "check that security.protocol (kafka.client) is that of the port: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
)
_CERTIFICATE_FIX: Final = (
    "check ssl.ca.location (the authority that signed the brokers' certificates), that the certificates contain the "
    "host names of the brokers, and ssl.certificate.location and ssl.key.location if the brokers require a certificate"
)
_LOGIN_FIX: Final = "check sasl.mechanism, sasl.username and sasl.password (kafka.client, kafka.secrets)"
_NAME_FIX: Final = "correct the host name, or the DNS of this machine"
_NETWORK_FIX: Final = "check host and port, that the broker runs, and the firewalls and network policies in between"


class _ErrorPattern(NamedTuple):
    """An error and its meaning. librdkafka distinguishes some errors only by their texts."""

    code: int
    words: str
    step: str
    fix: str


# The most specific first: a client whose login is refused also reports that it has no connection.
_ERROR_PATTERNS: Final = (
    _ErrorPattern(Code._AUTHENTICATION, "", "login", _LOGIN_FIX),  # noqa: SLF001 - the library's names, also below
    _ErrorPattern(Code._RESOLVE, "", "name", _NAME_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "PLAINTEXT broker listener", "protocol", _PROTOCOL_FIX),  # noqa: SLF001
    _ErrorPattern(Code._SSL, "", "TLS", _CERTIFICATE_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "SSL alert", "TLS", _CERTIFICATE_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "onnection closed by peer", "protocol", _PROTOCOL_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "APIVERSION_QUERY", "protocol", _PROTOCOL_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "Connect", "connection", _NETWORK_FIX),  # noqa: SLF001
)


def classify_failure(errors: Sequence[tuple[int, str]]) -> ConnectionFailure:
    """Choose the most specific of the errors (code, text), or the last one if none of them is known."""
    for pattern in _ERROR_PATTERNS:
        for code, text in errors:
            if code == pattern.code and pattern.words in text:
                return ConnectionFailure(pattern.step, text, pattern.fix)
    return ConnectionFailure(_NO_ANSWER, errors[-1][1], _NETWORK_FIX)


def unreachable_brokers(first: Connectivity, settings: Mapping[str, Any]) -> dict[int, ConnectionFailure]:
    """Connect to every broker at its advertised address. Returns the failures by broker ID."""
    with ThreadPoolExecutor(_PARALLEL_CONNECTIONS, thread_name_prefix="doctor-connect") as pool:
        answers = pool.map(lambda address: connect(address, settings, _BROKER_TIMEOUT_S), first.brokers.values())
        return {number: each.failure for number, each in zip(first.brokers, answers, strict=True) if each.failure}


def brokers(
    bootstrap_servers: str, first: Connectivity, unreachable: Mapping[int, ConnectionFailure], report: Reporter
) -> Iterator[Finding]:
    """Report which brokers answer.

    Args:
        bootstrap_servers: the configured addresses.
        first: what the bootstrap servers answered.
        unreachable: the brokers that do not answer at their advertised addresses.
        report: makes the findings.
    """
    if first.failure is not None:
        # The client may connect to an advertised address before it reports the answer of the bootstrap server.
        discovered = _DISCOVERED.match(first.failure.error)
        what = _wrong_address(discovered[2], discovered[1]) if discovered else f"no answer from {bootstrap_servers}"
        yield _connection_problem(what, first.failure, report)
        return
    for number, failure in unreachable.items():
        yield _connection_problem(_wrong_address(number, first.brokers[number]), failure, report)
    if not unreachable:
        yield report.ok(f"{len(first.brokers)} answer, each at its own address: {_some(first.brokers.values())}")


def features(apis: Mapping[int, tuple[int, int]], protocol: str, delivery: str, report: Reporter) -> Iterator[Finding]:
    """Report whether the brokers support what the configuration needs.

    Args:
        apis: the supported versions of each request, as (lowest, highest) by request number.
        protocol: `group.protocol` of the consumer.
        delivery: at_least_once or exactly_once.
        report: makes the findings.
    """
    if not apis:
        yield report.skipped("the brokers did not report which requests they support")
        return
    new_groups = apis.get(_CONSUMER_GROUP_HEARTBEAT, (0, -1))[1] >= 0
    transactions = {_INIT_PRODUCER_ID, _ADD_OFFSETS_TO_TXN, _END_TXN, _TXN_OFFSET_COMMIT} <= apis.keys()
    supported = [name for name, there in (("KIP-848 groups", new_groups), ("transactions", transactions)) if there]
    if protocol == "consumer" and not new_groups:
        yield report.problem(
            "kafka.consumer has group.protocol: consumer, which these brokers do not support (KIP-848)",
            "leave group.protocol out, or use Apache Kafka 4.0 or newer",
        )
    elif _INIT_PRODUCER_ID not in apis:
        yield report.problem(
            "the brokers do not support the idempotent producer, which keeps results in order",
            "use Apache Kafka 0.11 or newer",
        )
    elif delivery == "exactly_once" and not transactions:
        yield report.problem(
            "delivery is exactly_once, and these brokers do not support transactions",
            "use at_least_once, or other brokers",
        )
    else:
        names = " and ".join(supported) if supported else "neither KIP-848 groups nor transactions"
        yield report.ok(f"the brokers support {names}")


def _wrong_address(number: int | str, address: str) -> str:
    return f"broker {number} announces itself as {address} (its advertised.listeners), but gives no answer there"


def _connection_problem(what: str, failure: ConnectionFailure, report: Reporter) -> Finding:
    return report.problem(f"{what}; it failed at the {failure.step}: {failure.error}", failure.fix)


def _some(addresses: Iterable[str]) -> str:
    listed = list(addresses)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
