"""`sluice doctor` on a real broker: each fault made on purpose, found, and named; nothing written, nothing joined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

import images
from apache_kafka import KafkaCluster
from brokers import Broker, unique_name
from consumer.config import Config
from consumer.tools.clients import Connection
from consumer.tools.doctor import connectivity, sample
from consumer.tools.doctor.checks import Checklist, Options
from consumer.tools.doctor.findings import Finding
from consumer.tools.doctor.runner import run_checks
from consumer.tools.embedded import free_port
from secured_kafka import SecuredKafka
from sluice_process import Topics, produce, running

pytestmark = pytest.mark.kafka

FREE = "simulated://0ms@1,0ms@32"
GOOD = images.jpeg(64, 48)
MIB = 2**20
Found = dict[str, list[Finding]]  # by check


@dataclass
class Case:
    """A configuration on a broker, as it should be until a test breaks it."""

    servers: str
    topics: Topics
    options: dict[str, Any]
    group: str

    def config(self, **sections: dict[str, Any]) -> Config:
        made: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": self.servers, "group_id": self.group, **self.options},
            "input": {"topics": [self.topics.frames]},
            "output": {"topic": self.topics.detections},
            "dead_letter": {"topic": self.topics.dead},
            "detector": {"model": FREE},
            "http": {"port": free_port()},
        }
        return Config(**{name: {**made.get(name, {}), **sections.get(name, {})} for name in {*made, *sections}})

    def run_checks(self, config: Config | None = None, *, timeout_s: float = 60, **options: Any) -> Found:
        """Findings by check."""
        config = config or self.config()
        there = Connection(config, config.kafka.bootstrap_servers, {})
        found: Found = {}
        for finding in run_checks(Checklist(there, Options(**options)).checks(), timeout_s):
            found.setdefault(finding.check, []).append(finding)
        return found


def bad(found: Found) -> list[str]:
    """The checks that found something, the simulated engine aside."""
    told = {"problem", "warning"}
    return [
        name for name, each in found.items() if name != "model" and told & {str(finding.status) for finding in each}
    ]


def problem(found: Found, check: str, status: str = "problem") -> Finding:
    (finding,) = [each for each in found[check] if each.status == status]
    return finding


@pytest.fixture
def make(apache_kafka: KafkaCluster) -> Callable[..., Case]:
    """`make(detections={"max_message_bytes": 1000})`: topics with these settings, and the configuration for them."""

    def build(partitions: int = 4, **settings: dict[str, Any]) -> Case:
        names = {name: unique_name(name) for name in ("frames", "detections", "dead")}
        defaults: dict[str, dict[str, Any]] = {"frames": {"max_message_bytes": MIB}, "detections": {}, "dead": {}}
        for name, topic in names.items():
            width = settings.get(name, {}).pop("partitions", partitions)
            apache_kafka.create_topic(topic, width, **{**defaults[name], **settings.get(name, {})})
        return Case(apache_kafka.bootstrap_servers, Topics(**names), {}, unique_name("group"))

    return build


def send(case: Case, source: str, count: int = 20, **more: Any) -> None:
    producer = Producer({"bootstrap.servers": case.servers, "partitioner": more.pop("partitioner", "murmur2_random")})
    for _ in range(count):
        producer.produce(case.topics.frames, GOOD, **{"key": source, **more})
    assert producer.flush(20) == 0


def commit(case: Case, *offsets: int) -> None:
    client = Consumer({"bootstrap.servers": case.servers, "group.id": case.group})
    places = [TopicPartition(case.topics.frames, number, offset) for number, offset in enumerate(offsets)]
    client.commit(offsets=places, asynchronous=False)
    client.close()


def ends(case: Case) -> dict[str, int]:
    """Records in each topic."""
    client = Consumer({"bootstrap.servers": case.servers, "group.id": "unused"})
    found = {}
    for name in (case.topics.frames, case.topics.detections, case.topics.dead):
        numbers = client.list_topics(name, timeout=10).topics[name].partitions
        found[name] = sum(client.get_watermark_offsets(TopicPartition(name, n), timeout=10)[1] for n in numbers)
    client.close()
    return found


def test_where_all_is_well_it_finds_nothing_and_changes_nothing(make: Callable[..., Case]) -> None:
    """Catches an alarm on a sound system, and a doctor that writes a test record or leaves a group behind."""
    case = make()
    for number in range(6):
        send(case, f"cam-{number}")
    before = ends(case)
    found = case.run_checks(grace_s=45, pods=4)
    assert bad(found) == [], found
    assert {name for name, each in found.items() if each[0].status == "skipped"} == set()
    assert ends(case) == before
    admin = AdminClient({"bootstrap.servers": case.servers})
    groups = {each.group_id for each in admin.list_consumer_groups().result(10).valid}
    assert not {name for name in groups if name == case.group or name.startswith("sluice-tools")}


SMALL_ANSWERS = {"consumer": {"receive.message.max.bytes": 2 * MIB, "fetch.max.bytes": MIB}}
# (settings of the topics, of the program, the check that must find it, what it must say)
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a result that is too large": (
        {"detections": {"max_message_bytes": 5000}}, {}, "result-size problem", "such a frame becomes a dead letter",
    ),
    "a batch of results that is too large": (
        {"detections": {"max_message_bytes": 500_000}}, {}, "result-size problem", "batch.size",
    ),
    "no room for a dead letter": (
        {"dead": {"max_message_bytes": 50_000}}, {}, "dead-letter-size problem", "fit ends the program",
    ),
    "dead letters that replace each other": (
        {"dead": {"cleanup_policy": "compact"}}, {}, "dead-letter-size warning", "keeps only the newest",
    ),
    "dead letters that are cut": (
        {"dead": {"max_message_bytes": MIB}}, {}, "dead-letter-size warning", "cannot be replayed",
    ),
    "frames over the limit of the decoder": (
        {}, {"decode": {"max_bytes": 1024}}, "frame-size warning", "becomes a dead letter",
    ),
    "frames over the limit of the consumer": (
        {"frames": {"max_message_bytes": 18 * MIB}, "dead": {"max_message_bytes": 19 * MIB}},
        {"kafka": SMALL_ANSWERS, "decode": {"max_bytes": 20 * MIB}},
        "frame-size problem", "blocks its partition forever",
    ),
    "an output of another width": ({"detections": {"partitions": 2}}, {}, "partitions warning", "by partition"),
    "an interval that is too short": (
        {}, {"kafka": {"consumer": {"max.poll.interval.ms": 50_000}}}, "poll-interval warning", "loses its partitions",
    ),
    "a drain that is too long": (
        {}, {"limits": {"drain_timeout_s": 60}}, "grace-period problem", "a stop may take 75 s",
    ),
    "a topic that is not there": ({}, {"output": {"topic": "not-there"}}, "topics problem", "no topic not-there"),
    "a model that is not there": ({}, {"detector": {"model": "/no/model.pt"}}, "model problem", "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_each_fault_is_found_by_its_check_and_by_no_other(make: Callable[..., Case], fault: str) -> None:
    topics, sections, expected, words = WRONG[fault]
    check, status = expected.split()
    case = make(**topics)
    found = case.run_checks(case.config(**sections), grace_s=45)
    assert words in problem(found, check, status).message
    assert problem(found, check, status).fix or check == "model"
    assert [name for name in bad(found) if name != check] == []


def test_a_source_in_two_partitions_is_found(make: Callable[..., Case]) -> None:
    """As a producer without the key does it, or two producers with different partitioners."""
    case = make()
    send(case, "cam-1", partition=0)
    send(case, "cam-1", partition=3)
    found = case.run_checks()
    assert "cam-1 in partitions 0, 3" in problem(found, "partitioner").message


def test_a_producer_with_another_partitioner_is_found(make: Callable[..., Case]) -> None:
    """librdkafka's default is not Java's. Each source is in one partition, as long as nobody else writes it."""
    case = make()
    for number in range(12):
        send(case, f"cam-{number}", 2, partitioner="consistent_random")
    found = case.run_checks()
    assert "consistent_random" in problem(found, "partitioner", "warning").message


def test_offsets_out_of_the_log_are_found(make: Callable[..., Case], apache_kafka: KafkaCluster) -> None:
    """Expired by retention in one partition, beyond the end in the other: the program would stop at both."""
    case = make(partitions=2)
    send(case, "a", 10, partition=0)
    send(case, "b", 10, partition=1)
    commit(case, 2, 77)
    admin = apache_kafka.admin()
    (deleted,) = admin.delete_records([TopicPartition(case.topics.frames, 0, 5)]).values()
    deleted.result(10)
    expired, beyond = case.run_checks()["offsets"]
    assert "2 is committed, 5 is the oldest" in expired.message
    assert "77 is committed, it ends at 10" in beyond.message


@pytest.mark.parametrize("by_broker", [True, False])
def test_a_clock_that_is_ahead_is_found(make: Callable[..., Case], by_broker: bool) -> None:
    """A producer's, by the time that it gives its frames. The broker's is right here, and called so."""
    case = make(frames={"message_timestamp_type": "LogAppendTime" if by_broker else "CreateTime"})
    send(case, "cam-1", timestamp=int(time.time() * 1000) + 90_000)
    (finding,) = case.run_checks()["clocks"]
    if by_broker:
        assert finding.status == "ok"
        assert finding.message.startswith("the brokers' clock")
    else:
        assert finding.status == "warning"
        assert "ahead of the local clock" in finding.message


def test_old_brokers_and_new_groups_are_found(embedded_broker: Any) -> None:
    """The embedded broker knows no KIP-848, and says so in the only way that there is: what it leaves out."""
    names = {name: unique_name(name) for name in ("frames", "detections", "dead")}
    embedded_broker.create_topics(dict.fromkeys(names.values(), 4))
    case = Case(embedded_broker.bootstrap_servers, Topics(**names), {}, unique_name("group"))
    wanted = case.config(kafka={"consumer": {"group.protocol": "consumer"}})
    assert "KIP-848" in problem(case.run_checks(wanted), "features").message


# Connectivity


@pytest.fixture
def guarded(secured_kafka: SecuredKafka, secured_broker: Broker) -> Case:
    """A user with exactly the grants that the program needs, on a cluster with TLS, SASL and an authorizer."""
    topics = Topics.on(secured_broker, partitions=2)
    client = secured_kafka.scram("sluice", password=False)
    options = {"client": client, "secrets": {"sasl.password": str(secured_kafka.password_file("sluice"))}}
    case = Case(secured_kafka.bootstrap_servers, topics, options, unique_name("group"))
    secured_kafka.withdraw("sluice")
    for grant in grants(case).values():
        secured_kafka.grant("sluice", *grant)
    return case


def grants(case: Case) -> dict[str, tuple[str, str, str]]:
    return {
        "frames": ("topic", case.topics.frames, "READ"),
        "group": ("group", case.group, "READ"),
        "detections": ("topic", case.topics.detections, "WRITE"),
        "dead": ("topic", case.topics.dead, "WRITE"),
    }


def test_with_the_four_grants_and_no_more_nothing_is_wrong(guarded: Case, secured_broker: Broker) -> None:
    """Catches a doctor that needs more rights than the program. What it may not see, it says."""
    produce(secured_broker, guarded.topics.frames, [("cam-1", GOOD)] * 5)
    found = guarded.run_checks(grace_s=45)
    assert bad(found) == [], found
    assert [each.status for each in found["rights"]] == ["ok"]
    assert "DESCRIBE_CONFIGS" in found["frame-size"][0].message
    assert [found[name][0].status for name in ("offsets", "partitioner", "clocks")] == ["ok"] * 3


def test_the_right_to_make_transactions_is_tried_with_a_name_that_is_nobodys(
    guarded: Case, secured_kafka: SecuredKafka
) -> None:
    """Catches a doctor that fences the program that it examines, and one that says nothing of a missing right."""
    config = guarded.config()
    config = Config(**{**config.model_dump(exclude={"kafka"}), "kafka": config.kafka, "delivery": "exactly_once"})
    assert "WRITE on the transactional IDs" in problem(guarded.run_checks(config), "transactions").message
    secured_kafka.grant("sluice", "transactional-id", f"sluice-{guarded.group}-*", "WRITE")
    (finding,) = guarded.run_checks(config)["transactions"]
    assert (finding.status, "-doctor" in finding.message) == ("ok", True)
    assert config.transactional_id not in finding.message


@pytest.fixture
def two_users(guarded: Case, secured_kafka: SecuredKafka) -> Case:
    """One who reads and one who writes, each with its own grants; `kafka.client` has neither."""
    secured_kafka.withdraw("sluice")
    secured_kafka.withdraw("writer")
    for name, grant in grants(guarded).items():
        secured_kafka.grant("sluice" if name in ("frames", "group") else "writer", *grant)
    reading = {**secured_kafka.scram("sluice"), "group.protocol": "consumer", "fetch.wait.max.ms": 50}
    guarded.options = {"consumer": reading, "producer": {**secured_kafka.scram("writer"), "compression.type": "lz4"}}
    return guarded


def test_each_client_is_examined_with_its_own_settings(two_users: Case, secured_broker: Broker) -> None:
    """Catches a doctor that cannot connect, or asks as a user that the program is not, where the program is fine."""
    produce(secured_broker, two_users.topics.frames, [("cam-1", GOOD)] * 5)
    found = two_users.run_checks(grace_s=45)
    assert bad(found) == [], found
    assert [each.message.partition(":")[0] for each in found["brokers"]] == [
        "the consumer (kafka.consumer)",
        "the producer (kafka.producer)",
    ]
    assert [each.status for each in found["rights"]] == ["ok"]
    assert [found[name][0].status for name in ("offsets", "partitioner", "clocks")] == ["ok"] * 3


@pytest.mark.parametrize("client", ["consumer", "producer"])
def test_the_client_that_cannot_log_in_is_named(two_users: Case, client: str) -> None:
    found = two_users.run_checks(
        two_users.config(kafka={client: {**two_users.options[client], "sasl.password": "wrong"}})
    )
    finding = problem(found, "brokers")
    assert finding.message.startswith(f"the {client} (kafka.{client}): no answer from ")
    assert "it failed at the login" in finding.message
    assert bad(found) == ["brokers"]


def test_the_user_that_lacks_a_right_is_named(two_users: Case, secured_kafka: SecuredKafka) -> None:
    """With exactly_once the producer sends the offsets, so its user needs the group too."""
    secured_kafka.grant("writer", "transactional-id", f"sluice-{two_users.group}-*", "WRITE")
    config = two_users.config()
    config = Config(**{**config.model_dump(exclude={"kafka"}), "kafka": config.kafka, "delivery": "exactly_once"})
    finding = problem(two_users.run_checks(config), "rights")
    assert finding.message == f"READ on group {two_users.group} is missing"
    assert finding.fix.startswith("grant it to writer: ")
    secured_kafka.grant("writer", "group", two_users.group, "READ")
    assert [each.status for each in two_users.run_checks(config)["rights"]] == ["ok"]


@pytest.mark.parametrize("missing", ["frames", "group", "detections", "dead"])
def test_each_missing_grant_is_found(guarded: Case, secured_kafka: SecuredKafka, missing: str) -> None:
    secured_kafka.withdraw("sluice")
    for name, grant in grants(guarded).items():
        if name != missing:
            secured_kafka.grant("sluice", *grant)
    kind, name, right = grants(guarded)[missing]
    found = guarded.run_checks()
    assert problem(found, "rights").message == f"{right} on {kind} {name} is missing"
    assert bad(found) == ["rights"], found


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"sasl.username": "nobody"}, "login"),
        ({"sasl.mechanism": "PLAIN"}, "login"),
        ({"ssl.ca.location": None}, "TLS"),
        ({"security.protocol": "SASL_PLAINTEXT"}, "protocol"),
        ({"security.protocol": "SSL"}, "protocol"),
        ("127.0.0.1:1", "connection"),
        ("no-such-host.invalid:9092", "name"),
    ],
)
def test_the_step_at_which_the_connection_failed_is_named(guarded: Case, change: Any, step: str) -> None:
    """Catches "broker transport failure" for everything. The checks that need brokers are skipped, not failed."""
    if isinstance(change, str):
        config = guarded.config(kafka={"bootstrap_servers": change})
    else:
        client = {**guarded.options["client"], **change}
        config = guarded.config(kafka={"client": {name: value for name, value in client.items() if value}})
    found = guarded.run_checks(config)
    (finding,) = found["brokers"]
    assert (finding.status, f"it failed at the {step}:" in finding.message) == ("problem", True), finding
    assert {found[name][0].status for name in ("topics", "rights", "offsets", "partitioner")} == {"skipped"}


def test_a_broker_whose_announced_address_is_wrong_is_found(apache_cluster: Callable[..., Any]) -> None:
    """The most common fault: the bootstrap server answers, and the brokers advertise an unreachable address."""
    ((announced, behind),) = apache_cluster(1, proxied=True).routes.items()  # and no proxy runs
    case = Case(f"127.0.0.1:{behind}", Topics("a", "b", "c"), {}, "g")
    (finding,) = case.run_checks()["brokers"]
    assert finding.status == "problem"
    assert f"broker 1 announces itself as 127.0.0.1:{announced}" in finding.message


# The program itself


def run(case: Case, tmp_path: Path, *arguments: str, **sections: Any) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "sluice.yaml"
    path.write_text(yaml.safe_dump(case.config(**sections).model_dump(mode="json")))
    command = [sys.executable, "-m", "consumer", "doctor", "-c", str(path), *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)


def test_exit_codes_and_json_are_as_documented(make: Callable[..., Case], tmp_path: Path) -> None:
    """0: nothing wrong (a warning is none); 1: a problem; 2: a wrong configuration."""
    case = make()
    send(case, "cam-1")
    fine = run(case, tmp_path, "--json")
    assert fine.returncode == 0, fine.stdout
    assert json.loads(fine.stdout)["counts"]["warning"] == 1, "the simulated engine"
    broken = run(case, tmp_path, "--json", output={"topic": "not-there"})
    assert broken.returncode == 1
    document = json.loads(broken.stdout)
    assert document["ok"] is False
    assert {"check": "topics", "status": "problem"}.items() <= next(
        each for each in document["findings"] if each["status"] == "problem"
    ).items()
    (tmp_path / "sluice.yaml").unlink()
    missing = subprocess.run(
        [sys.executable, "-m", "consumer", "doctor", "-c", str(tmp_path / "sluice.yaml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert missing.returncode == 2


def test_it_ends_in_time_when_a_broker_hangs(apache_cluster: Callable[..., Any], tmp_path: Path) -> None:
    """SIGSTOP: the connection is there, the answer never comes. An init container must not wait for it."""
    broker = apache_cluster(1)
    case = Case(broker.bootstrap_servers, Topics("a", "b", "c"), {}, "g")
    broker.pause(1)
    try:
        started = time.monotonic()
        ended = run(case, tmp_path, "--timeout", "3")
        assert time.monotonic() - started < 15
    finally:
        broker.resume(1)
    assert ended.returncode == 1
    assert "did not end within the 3 s of --timeout" in ended.stdout


def test_beside_a_program_that_runs_it_loads_no_second_model(apache_broker: Broker) -> None:
    """As by `kubectl exec`. It finds the members of the group, and recognises the program that uses the port."""
    topics = Topics.on(apache_broker, partitions=2)
    with running(apache_broker, topics, FREE) as sluice:
        sluice.wait_ready()
        case = Case(apache_broker.bootstrap_servers, topics, {}, sluice.group)
        found = case.run_checks(case.config(http={"port": sluice.port}))
    assert "a running sluice answers" in found["http"][0].message
    assert found["model"][0].status == "skipped"
    assert f"for 1 pods (members of {sluice.group} now)" in found["partitions"][0].message


@pytest.fixture(autouse=True)
def _no_variables_and_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "FIRST_TRY_S", 1.0)
    monkeypatch.setattr(sample, "LIVE_S", 0.2)
    for name in [name for name in os.environ if name.startswith("SLUICE_") and not name.startswith("SLUICE_TEST_")]:
        monkeypatch.delenv(name)
