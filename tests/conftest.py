"""Fixtures for every test: the brokers, and the real model and videos where they are.

    broker           both brokers in turn ("embedded", "apache"), as `brokers.Broker`
    apache_broker    Apache Kafka alone, as `brokers.Broker`
    embedded_broker  the one that the demo uses, for the whole session
    apache_kafka     one node of Apache Kafka for the whole session: do not harm it
    apache_cluster   a function that starts a cluster of your own: kill what you like
    lasting_cluster  the same, gone after the last test of its module
    topic            a function that makes a topic on `broker` and returns its unique name
    apache_topic     the same on `apache_kafka`
    secured_kafka    one node with TLS, SASL and an authorizer for the whole session; `secured_broker` as a Broker
    shared_model, shared_videos   the files beside the repository

A broker that cannot run here skips the test with the reason; with CI=true it fails it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import psutil
import pytest

from apache_kafka import ApacheKafka, KafkaCluster
from brokers import APACHE, EMBEDDED, Broker, unique_name
from consumer.errors import ConfigError
from consumer.tools.embedded import CLIENT_SETTINGS, EmbeddedBroker
from kafka_jars import KafkaUnavailableError
from kafka_properties import Value
from secured_kafka import SecuredKafka

# A shell's background job ignores SIGINT, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A loaded machine is no failure: pytest-timeout ends a test that hangs.
hypothesis.settings.register_profile("sluice", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("sluice")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
_GOODBYE_SECONDS = 5
# A helper that Python's multiprocessing keeps until the interpreter is gone. It ends by itself.
_NOT_OURS = "multiprocessing.resource_tracker"


@pytest.fixture(scope="session")
def apache_kafka() -> Iterator[KafkaCluster]:
    """The cluster that SLUICE_TEST_BOOTSTRAP_SERVERS names, or one node of our own."""
    if outside := os.environ.get("SLUICE_TEST_BOOTSTRAP_SERVERS"):
        yield KafkaCluster(outside)
        return
    with contextlib.ExitStack() as stack:
        yield _start_apache(stack)


@pytest.fixture(scope="session")
def secured_kafka() -> Iterator[SecuredKafka]:
    """Always of our own. Its administrator's clients are `secured_broker`'s; users get what a test grants them."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(SecuredKafka(("sluice", "writer")))
        except KafkaUnavailableError as error:
            _unavailable(f"no Apache Kafka: {error}")


@pytest.fixture
def secured_broker(secured_kafka: SecuredKafka) -> Broker:
    return Broker(
        name="secured",
        bootstrap_servers=secured_kafka.bootstrap_servers,
        client_settings={"session.timeout.ms": 6000, "heartbeat.interval.ms": 500},
        capabilities=APACHE,
        make_topic=secured_kafka.create_topic,
        own_settings=secured_kafka.client_settings,
    )


@pytest.fixture
def apache_cluster() -> Iterator[Callable[..., ApacheKafka]]:
    """`apache_cluster(nodes=3, min_insync_replicas=1)`: always of our own, and gone after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda nodes=1, **options: _start_apache(stack, nodes, **options)


@pytest.fixture(scope="module")
def lasting_cluster() -> Iterator[Callable[..., ApacheKafka]]:
    """As `apache_cluster`, for all tests of a module."""
    with contextlib.ExitStack() as stack:
        yield lambda nodes=1, **options: _start_apache(stack, nodes, **options)


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    with contextlib.ExitStack() as stack:
        try:
            broker = stack.enter_context(EmbeddedBroker())
        except ConfigError as error:
            _unavailable(f"no embedded broker: {error}")
        yield broker


@pytest.fixture
def apache_broker(apache_kafka: KafkaCluster) -> Broker:
    """Apache Kafka alone, for what the embedded broker cannot do or does too slowly."""
    return Broker(
        name="apache",
        bootstrap_servers=apache_kafka.bootstrap_servers,
        client_settings={"session.timeout.ms": 6000, "heartbeat.interval.ms": 500},
        capabilities=APACHE,
        make_topic=apache_kafka.create_topic,
    )


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "embedded":
        embedded: EmbeddedBroker = request.getfixturevalue("embedded_broker")
        return Broker(
            name="embedded",
            bootstrap_servers=embedded.bootstrap_servers,
            client_settings=CLIENT_SETTINGS,
            capabilities=EMBEDDED,
            make_topic=lambda name, partitions: embedded.create_topics({name: partitions}),
        )
    apache: Broker = request.getfixturevalue("apache_broker")
    return apache


@pytest.fixture
def topic(broker: Broker) -> Callable[..., str]:
    """`topic(partitions=4)`: the name of a new topic on `broker`."""
    return broker.new_topic


@pytest.fixture
def apache_topic(apache_kafka: KafkaCluster) -> Callable[..., str]:
    """`apache_topic(partitions=4, max_message_bytes=1000)`: the name of a new topic on `apache_kafka`."""

    def create(partitions: int = 1, **config: Value) -> str:
        name = unique_name("topic")
        apache_kafka.create_topic(name, partitions, **config)
        return name

    return create


@pytest.fixture(scope="session")
def shared_model() -> Path:
    return _shared("models/yolov8n-coco.pt")


@pytest.fixture(scope="session")
def shared_videos() -> list[Path]:
    videos = sorted(_shared("videos").glob("*.mp4"))
    if not videos:
        pytest.skip(f"there is no video in {SHARED / 'videos'}")
    return videos


@pytest.hookimpl(trylast=True)  # after pytest's own, which ends the fixtures of a run that was interrupted
def pytest_sessionfinish(session: pytest.Session) -> None:
    """No test leaves a process behind: end what is left, name it, and fail the run."""
    ours = [child for child in psutil.Process().children(recursive=True) if _NOT_OURS not in _command(child)]
    _, left = psutil.wait_procs(ours, timeout=_GOODBYE_SECONDS if ours else 0)
    for process in left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"left behind by a test: process {process.pid}: {_command(process)}", red=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _start_apache(stack: contextlib.ExitStack, nodes: int = 1, **options: Any) -> ApacheKafka:
    try:
        return stack.enter_context(ApacheKafka(nodes, **options))
    except KafkaUnavailableError as error:
        _unavailable(f"no Apache Kafka: {error}")


def _unavailable(reason: str) -> NoReturn:
    """A user without the tools is told so; on CI a suite that did not run must not look like one that passed."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there; it is handed out beside the repository")
    return path


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return "(gone)"
