"""The first contact: does each broker answer, and if not, at which step did it fail? And what can the brokers do?"""

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

# librdkafka does not tell what the brokers can do, but logs it when it connects, before any login.
_API: Final = re.compile(r"ApiKey \S+ \((\d+)\) Versions (\d+)\.\.(\d+)")
_ASKED_AT_ONCE: Final = 16
_REACH_S: Final = 5.0
FIRST_TRY_S: Final = 3.0  # after so long an error that was heard is taken at its word
_SILENCE: Final = "first answer"
# How the client names a broker that another one told it of: host:port/ID. A bootstrap server has no number.
_TOLD_OF: Final = re.compile(r"(\S+:\d+)/(\d+): ")
# Numbers of requests in Kafka's protocol.
_INIT_PRODUCER_ID, _ADD_OFFSETS_TO_TXN, _END_TXN, _TXN_OFFSET_COMMIT, _CONSUMER_GROUP_HEARTBEAT = 22, 25, 26, 28, 68


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """Why there was no contact, in the client's words, and what to do about it."""

    step: str
    said: str
    fix: str


@dataclass(frozen=True, slots=True)
class Connectivity:
    """What one client learned. `brokers`: address by ID, as they announce themselves; none where nobody answered."""

    brokers: Mapping[int, str]
    apis: Mapping[int, tuple[int, int]]
    failure: ConnectionFailure | None = None


class LogCapture(logging.Handler):
    """Keeps from the client's log what the brokers can do, and why connections failed: not all of it is an error."""

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


def reach(bootstrap_servers: str, settings: Mapping[str, Any], timeout_s: float) -> Connectivity:
    """Ask for the list of brokers, once. Raises ConfigError where the client refuses its settings."""
    errors: list[Code] = []
    capture = LogCapture()
    log = logging.Logger("librdkafka.doctor", logging.DEBUG)  # noqa: LOG001 - what it hears is for nobody else
    log.addHandler(capture)
    ours: dict[str, Any] = {
        "bootstrap.servers": bootstrap_servers,
        "error_cb": errors.append,
        "debug": "feature,protocol",
    }
    try:
        client = AdminClient({**settings, **ours, "log_level": 7}, logger=log)
    except (KafkaException, ValueError, TypeError) as error:
        raise ConfigError(f"the Kafka client refuses its settings: {text_of(error)}") from None
    deadline = time.monotonic() + timeout_s
    patience_s = min(timeout_s, FIRST_TRY_S)
    while True:
        try:
            known = client.list_topics(timeout=patience_s)
        except KafkaException as error:
            _drain_events(client)
            said = [(each.code(), each.str()) for each in errors]
            said += [(Code._TRANSPORT, line) for line in capture.failures]  # noqa: SLF001
            failure = classify_failure([*said, (error.args[0].code(), error.args[0].str())])
            patience_s = deadline - time.monotonic()
            # Whoever says no will say it again; only silence is worth all of the time.
            if failure.step != _SILENCE or patience_s <= 0:
                return Connectivity({}, capture.apis, failure)
        else:
            _drain_events(client)
            return Connectivity({each.id: f"{each.host}:{each.port}" for each in known.brokers.values()}, capture.apis)


def _drain_events(client: AdminClient) -> None:
    """Serve what the client has to say: its log and its errors wait for a poll."""
    until = time.monotonic() + 0.5
    while client.poll(0.05) and time.monotonic() < until:
        pass


_PROTOCOL_FIX: Final = (
    "check that security.protocol (kafka.client) is that of the port: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
)
_CERTIFICATE_FIX: Final = (
    "check ssl.ca.location (the authority that signed the brokers' certificates), that the brokers are addressed by a "
    "name that is in their certificates, and ssl.certificate.location and ssl.key.location where they ask for one"
)
_LOGIN_FIX: Final = "check sasl.mechanism, sasl.username and sasl.password (kafka.client, kafka.secrets)"
_NAME_FIX: Final = "correct the host name, or the DNS of this machine"
_NETWORK_FIX: Final = "check host and port, that the broker runs, and firewalls and network policies on the way"


class _ErrorPattern(NamedTuple):
    """What an error looks like, and what it means. librdkafka says some things in words alone."""

    code: int
    words: str
    step: str
    fix: str


# The most telling first: a client whose login is refused also reports that it has no connection.
_ERROR_PATTERNS: Final = (
    _ErrorPattern(Code._AUTHENTICATION, "", "login", _LOGIN_FIX),  # noqa: SLF001 - the library's own names, here and below
    _ErrorPattern(Code._RESOLVE, "", "name", _NAME_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "PLAINTEXT broker listener", "protocol", _PROTOCOL_FIX),  # noqa: SLF001
    _ErrorPattern(Code._SSL, "", "TLS", _CERTIFICATE_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "SSL alert", "TLS", _CERTIFICATE_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "onnection closed by peer", "protocol", _PROTOCOL_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "APIVERSION_QUERY", "protocol", _PROTOCOL_FIX),  # noqa: SLF001
    _ErrorPattern(Code._TRANSPORT, "Connect", "connection", _NETWORK_FIX),  # noqa: SLF001
)


def classify_failure(said: Sequence[tuple[int, str]]) -> ConnectionFailure:
    """The most telling of the errors (code, text) that led to no answer; the last one where none tells anything."""
    for sign in _ERROR_PATTERNS:
        for code, text in said:
            if code == sign.code and sign.words in text:
                return ConnectionFailure(sign.step, text, sign.fix)
    return ConnectionFailure(_SILENCE, said[-1][1], _NETWORK_FIX)


def silent(first: Connectivity, settings: Mapping[str, Any]) -> dict[int, ConnectionFailure]:
    """Ask every broker at the address that it announces; those that give no answer there, by ID."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="doctor-reach") as pool:
        answers = pool.map(lambda address: reach(address, settings, _REACH_S), first.brokers.values())
        return {number: each.failure for number, each in zip(first.brokers, answers, strict=True) if each.failure}


def brokers(
    bootstrap_servers: str, first: Connectivity, silent: Mapping[int, ConnectionFailure], report: Reporter
) -> Iterator[Finding]:
    """`first`: what came of the bootstrap servers; `silent`: who is not where it says it is."""
    if first.failure is not None:
        # The client may turn to the announced address so soon that it never tells what the bootstrap server said.
        told_of = _TOLD_OF.match(first.failure.said)
        what = _nobody_there(told_of[2], told_of[1]) if told_of else f"no answer from {bootstrap_servers}"
        yield _no_contact(what, first.failure, report)
        return
    for number, failure in silent.items():
        yield _no_contact(_nobody_there(number, first.brokers[number]), failure, report)
    if not silent:
        yield report.ok(f"{len(first.brokers)} answer, each at its own address: {_some(first.brokers.values())}")


def features(apis: Mapping[int, tuple[int, int]], protocol: str, delivery: str, report: Reporter) -> Iterator[Finding]:
    """What the configuration needs of the brokers. `apis`: the range of versions by number of the request."""
    if not apis:
        yield report.skipped("the brokers did not say what they can do")
        return
    new_groups = apis.get(_CONSUMER_GROUP_HEARTBEAT, (0, -1))[1] >= 0
    transactions = {_INIT_PRODUCER_ID, _ADD_OFFSETS_TO_TXN, _END_TXN, _TXN_OFFSET_COMMIT} <= apis.keys()
    can = [name for name, there in (("KIP-848 groups", new_groups), ("transactions", transactions)) if there]
    if protocol == "consumer" and not new_groups:
        yield report.problem(
            "kafka.consumer has group.protocol: consumer, which these brokers do not know (KIP-848)",
            "leave group.protocol out, or use Apache Kafka 4.0 or newer",
        )
    elif _INIT_PRODUCER_ID not in apis:
        yield report.problem(
            "the brokers know no idempotent producer, which keeps results in order", "use Apache Kafka 0.11 or newer"
        )
    elif delivery == "exactly_once" and not transactions:
        yield report.problem(
            "delivery is exactly_once, and these brokers know no transactions", "use at_least_once, or other brokers"
        )
    else:
        yield report.ok(f"the brokers know {' and '.join(can) if can else 'neither KIP-848 groups nor transactions'}")


def _nobody_there(number: int | str, address: str) -> str:
    return f"broker {number} announces itself as {address} (its advertised.listeners), but gives no answer there"


def _no_contact(what: str, failure: ConnectionFailure, report: Reporter) -> Finding:
    return report.problem(f"{what}; it failed at the {failure.step}: {failure.said}", failure.fix)


def _some(addresses: Iterable[str]) -> str:
    listed = list(addresses)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
