"""A guarded cluster: TLS, SASL/SCRAM with secrets from files, client certificates, and no right more than needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from confluent_kafka import Consumer, TopicPartition

import images
from brokers import Broker
from consumer.errors import KafkaError, PublishError
from secured_kafka import SecuredKafka
from sluice_process import Sluice, Topics, produce, reading

pytestmark = pytest.mark.kafka

FREE = "simulated://0ms@1,0ms@32"
USER = "sluice"
AT_ONCE = {"isolation.level": "read_uncommitted"}  # else offsets in an open transaction are waited for
# Ten good frames of two sources, with a bad one among them: all three topics are needed.
GOOD = [(f"cam-{n % 2}", images.jpeg(64, 48)) for n in range(10)]
FRAMES = [*GOOD[:5], ("cam-1", b"no image"), *GOOD[5:]]

EACH_DELIVERY = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])


def scram(kafka: SecuredKafka) -> dict[str, Any]:
    """Options of a program that logs in with a password that only a file holds."""
    return {
        "kafka.client": kafka.scram(USER, password=False),
        "kafka.secrets": {"sasl.password": str(kafka.password_file(USER))},
    }


def program(broker: Broker, topics: Topics, options: dict[str, Any], protocol: str = "classic") -> Sluice:
    settings = {"group.protocol": "consumer"} if protocol == "consumer" else dict(broker.client_settings)
    return Sluice(broker, topics, FREE, {**options, "kafka.consumer": settings})


def grants(sluice: Sluice) -> dict[str, tuple[str, str, str]]:
    """All that the program needs, as docs/deployment.md says: (kind of resource, name, right)."""
    once = sluice.options.get("delivery") == "exactly_once"
    return {
        **({"transactions": ("transactional-id", f"sluice-{sluice.group}-*", "WRITE")} if once else {}),
        "frames": ("topic", sluice.topics.frames, "READ"),
        "group": ("group", sluice.group, "READ"),
        "detections": ("topic", sluice.topics.detections, "WRITE"),
        "dead letters": ("topic", sluice.topics.dead, "WRITE"),
    }


def outcomes(broker: Broker, topics: Topics, sluice: Sluice) -> tuple[set[str], set[bytes]]:
    """IDs of the results and of the dead letters, once every frame has one."""
    with reading(broker, topics.detections) as results, reading(broker, topics.dead) as dead:
        results.read(len(GOOD), 30, alive=lambda: sluice.running)
        dead.read(1, 30, alive=lambda: sluice.running)
        return {result["id"] for result in results.results()}, {bytes(each.value()) for each in dead.messages}


@pytest.mark.parametrize(
    ("delivery", "protocol"),
    [("at_least_once", "consumer"), ("exactly_once", "classic")],  # below, at their ends, the other two
)
def test_the_documented_grants_are_enough(
    secured_kafka: SecuredKafka, secured_broker: Broker, delivery: str, protocol: str
) -> None:
    """Catches a call that needs more: DESCRIBE_CONFIGS, IDEMPOTENT_WRITE on the cluster, CREATE of a topic."""
    topics = Topics.on(secured_broker, partitions=2)
    sluice = program(secured_broker, topics, {**scram(secured_kafka), "delivery": delivery}, protocol)
    secured_kafka.withdraw(USER)
    for grant in grants(sluice).values():
        secured_kafka.grant(USER, *grant)
    produce(secured_broker, topics.frames, FRAMES)
    try:
        results, dead = outcomes(secured_broker, topics, sluice.start())
        assert sluice.terminate() == 0, sluice.log
    finally:
        sluice.stop()
    assert (len(results), dead) == (len(GOOD), {b"no image"})


@pytest.mark.parametrize(
    ("delivery", "missing", "code"),
    [
        ("at_least_once", "frames", KafkaError.exit_code),
        ("at_least_once", "group", KafkaError.exit_code),
        ("at_least_once", "detections", PublishError.exit_code),
        ("at_least_once", "dead letters", PublishError.exit_code),
        ("exactly_once", "group", KafkaError.exit_code),
        ("exactly_once", "detections", PublishError.exit_code),
        ("exactly_once", "transactions", KafkaError.exit_code),
    ],
)
def test_without_one_grant_it_stops_names_the_right_and_loses_nothing(
    secured_kafka: SecuredKafka, secured_broker: Broker, delivery: str, missing: str, code: int
) -> None:
    """Catches a program that waits for ever, that says only "not authorized", or that commits what it could not write.

    Once the right is granted, a restart finishes the work: each frame has its outcome.
    """
    topics = Topics.on(secured_broker, partitions=2)
    protocol = "consumer" if delivery == "exactly_once" else "classic"
    sluice = program(secured_broker, topics, {**scram(secured_kafka), "delivery": delivery}, protocol)
    needed = grants(sluice)
    secured_kafka.withdraw(USER)
    for name, grant in needed.items():
        if name != missing:
            secured_kafka.grant(USER, *grant)
    produce(secured_broker, topics.frames, FRAMES)
    kind, resource, right = needed[missing]
    try:
        assert sluice.start().wait() == code, sluice.log
        said = critical(sluice)
        assert f"grant this user {right} on" in said
        assert kind in said.lower().replace(" ", "-")
        assert resource.removesuffix("*") in said
        committed_before_the_bad_frame(secured_kafka, sluice)
        secured_kafka.grant(USER, kind, resource, right)
        results, dead = outcomes(secured_broker, topics, sluice.start())
        assert sluice.terminate() == 0, sluice.log
    finally:
        sluice.stop()
    assert (len(results), dead) == (len(GOOD), {b"no image"})


def committed_before_the_bad_frame(kafka: SecuredKafka, sluice: Sluice) -> None:
    """Nothing without an acknowledged outcome is committed: nowhere, as none of them could finish every frame."""
    client = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": sluice.group, **kafka.client_settings, **AT_ONCE}
    )
    try:
        partitions = [TopicPartition(sluice.topics.frames, number) for number in range(2)]
        committed = {each.partition: max(0, each.offset) for each in client.committed(partitions, timeout=10)}
        ends = {each.partition: client.get_watermark_offsets(each, timeout=10)[1] for each in partitions}
    finally:
        client.close()
    assert sum(committed.values()) < sum(ends.values()), (committed, ends)


def last_words(sluice: Sluice) -> str:
    """Start it, wait until it gives up over its brokers, and return why."""
    try:
        assert sluice.start().wait() == KafkaError.exit_code, sluice.log
    finally:
        sluice.stop()
    return critical(sluice)


def critical(sluice: Sluice) -> str:
    """What the program said last, in words. A person must mend it."""
    lines = [json.loads(line) for line in sluice.log.splitlines() if line.startswith("{")]
    (last,) = [line for line in lines if line["level"] == "critical"]
    assert last["restart_helps"] is False
    return str(last["event"])


def test_a_password_from_a_file_logs_in_and_is_never_printed(
    secured_kafka: SecuredKafka, secured_broker: Broker
) -> None:
    """Catches a newline that becomes part of the password, and a password in the log or in `sluice config`."""
    topics = Topics.on(secured_broker, partitions=1)
    sluice = program(secured_broker, topics, {**scram(secured_kafka), "log.level": "debug"})
    secured_kafka.withdraw(USER)
    for grant in grants(sluice).values():
        secured_kafka.grant(USER, *grant)
    produce(secured_broker, topics.frames, FRAMES)
    shown = subprocess.run(
        [sys.executable, "-m", "consumer", "config"],
        env=sluice.environment(), capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    try:
        outcomes(secured_broker, topics, sluice.start())
        assert sluice.terminate() == 0, sluice.log
    finally:
        sluice.stop()
    file = secured_kafka.password_file(USER)
    assert str(file) in shown
    word = file.read_text().strip()
    assert word not in sluice.log + shown
    assert json.dumps(word)[1:-1] not in sluice.log + shown


@EACH_DELIVERY
def test_a_wrong_password_stops_the_program(
    secured_kafka: SecuredKafka, secured_broker: Broker, tmp_path: Path, delivery: str
) -> None:
    """Catches a pod that looks well and reads nothing."""
    wrong = tmp_path / "password"
    wrong.write_text("not it")
    options = {**scram(secured_kafka), "kafka.secrets": {"sasl.password": str(wrong)}, "delivery": delivery}
    sluice = program(secured_broker, Topics.on(secured_broker, partitions=1), options)
    assert "check the SASL and TLS settings" in last_words(sluice)
    assert "not it" not in sluice.log


@EACH_DELIVERY
def test_an_authority_that_did_not_sign_the_brokers_certificate_stops_the_program(
    secured_kafka: SecuredKafka, secured_broker: Broker, tmp_path: Path, delivery: str
) -> None:
    """Catches a pod that tries for ever, and looks well meanwhile."""
    other = tmp_path / "ca.crt"
    trustme.CA().cert_pem.write_to_path(str(other))
    options = {**scram(secured_kafka), "delivery": delivery}
    options["kafka.client"] = {**options["kafka.client"], "ssl.ca.location": str(other)}
    sluice = program(secured_broker, Topics.on(secured_broker, partitions=1), options)
    assert "check ssl.ca.location" in last_words(sluice)


def test_a_client_certificate_logs_in(secured_kafka: SecuredKafka, secured_broker: Broker) -> None:
    """As the component kafka-tls configures it: no user, no password, the certificate is the name."""
    topics = Topics.on(secured_broker, partitions=1)
    certificate, key = secured_kafka.certificate("camera-reader")
    client = {
        **secured_kafka.tls(),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }
    options = {"kafka.client": client, "kafka.bootstrap_servers": secured_kafka.tls_servers}
    sluice = program(secured_broker, topics, options)
    for grant in grants(sluice).values():
        secured_kafka.grant("camera-reader", *grant)
    produce(secured_broker, topics.frames, FRAMES)
    try:
        results, _ = outcomes(secured_broker, topics, sluice.start())
        assert sluice.terminate() == 0, sluice.log
    finally:
        sluice.stop()
    assert len(results) == len(GOOD)


# The tools


@pytest.fixture
def config_file(secured_kafka: SecuredKafka, secured_broker: Broker, tmp_path: Path) -> tuple[Path, Topics]:
    """The configuration of a pod, and topics on which its user may also read results and write frames."""
    topics = Topics.on(secured_broker, partitions=1)
    kafka = {name.removeprefix("kafka."): value for name, value in scram(secured_kafka).items()}
    path = tmp_path / "sluice.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "kafka": {"bootstrap_servers": secured_kafka.bootstrap_servers, **kafka},
                "input": {"topics": [topics.frames]},
                "output": {"topic": topics.detections},
                "dead_letter": {"topic": topics.dead},
            }
        )
    )
    secured_kafka.withdraw(USER)
    for name in (topics.frames, topics.detections, topics.dead):
        for right in ("READ", "WRITE"):
            secured_kafka.grant(USER, "topic", name, right)
    return path, topics


def tool(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "consumer", *arguments]
    env = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_produce_tail_and_dlq_log_in_as_the_program_does(
    secured_kafka: SecuredKafka, secured_broker: Broker, config_file: tuple[Path, Topics], tmp_path: Path
) -> None:
    """Catches a tool that cannot reach a guarded cluster without a password on its command line."""
    path, topics = config_file
    (tmp_path / "frames").mkdir()
    for number in range(3):
        (tmp_path / "frames" / f"{number}.jpg").write_bytes(images.jpeg(64, 48))
    sent = tool("produce", "-c", str(path), "--source", f"cam-1={tmp_path / 'frames'}", "--fps", "0")
    assert sent.returncode == 0, sent.stderr
    assert "3 acknowledged, 0 not" in sent.stdout
    produce(secured_broker, topics.frames, [("cam-1", b"no image")])
    sluice = program(secured_broker, topics, scram(secured_kafka))
    secured_kafka.grant(USER, "group", sluice.group, "READ")
    try:
        sluice.start()
        with reading(secured_broker, topics.detections) as results, reading(secured_broker, topics.dead) as dead:
            results.read(3, 30, alive=lambda: sluice.running)
            dead.read(1, 30, alive=lambda: sluice.running)
    finally:
        sluice.stop()
    seen = tool("tail", "-c", str(path), "--from-beginning", "--frames", "3", "--json")
    assert [json.loads(line)["source_id"] for line in seen.stdout.splitlines()] == ["cam-1"] * 3, seen.stderr
    # The same by $SLUICE_CONFIG, as in `kubectl exec`.
    listed = tool("dlq", "list", "--json", environment={"SLUICE_CONFIG": str(path)})
    assert [json.loads(line)["reason"] for line in listed.stdout.splitlines()] == ["unsupported_format"], listed.stderr
