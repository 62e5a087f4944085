"""Tests which librdkafka settings win: those behind a guarantee, then the user's, then our defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from consumer.config import OWN_SETTINGS, Config
from consumer.errors import KafkaError
from consumer.kafka.consumer import Source
from consumer.kafka.consumer_settings import consumer_settings
from consumer.kafka.producer import Publisher
from consumer.kafka.producer_settings import producer_settings
from consumer.types import ModelInfo

Settings = Callable[[Config], dict[str, Any]]
BOTH = pytest.mark.parametrize(("build", "section"), [(consumer_settings, "consumer"), (producer_settings, "producer")])
# The settings that each guarantee needs. The configuration refuses these names too; this is the second safeguard.
CONSUMER = {"enable.auto.offset.store": False, "enable.auto.commit": True, "group.id": "g", "bootstrap.servers": "b:1"}
PRODUCER = {"enable.idempotence": True, "acks": "all", "bootstrap.servers": "b:1"}


def config(**kafka: Any) -> Config:
    return Config(kafka={"group_id": "g", "bootstrap_servers": "b:1", **kafka})  # type: ignore[arg-type]


@BOTH
def test_user_settings_override_defaults_and_specific_ones_the_shared(build: Settings, section: str) -> None:
    assert build(config())["client.id"] == "sluice"
    assert build(config(client={"client.id": "shared"}))["client.id"] == "shared"
    both = config(client={"client.id": "shared", "client.rack": "r1"}, **{section: {"client.id": "special"}})
    assert (build(both)["client.id"], build(both)["client.rack"]) == ("special", "r1")


@BOTH
def test_secrets_from_files_reach_both_clients(build: Settings, section: str, tmp_path: Path) -> None:
    """Catches secrets that reach only one of the two clients."""
    (tmp_path / "password").write_text("word\n")
    made = config(secrets={"sasl.password": str(tmp_path / "password")}, **{section: {"client.rack": "r1"}})
    assert (build(made)["sasl.password"], build(made)["client.rack"]) == ("word", "r1")


def test_settings_of_one_client_do_not_reach_the_other() -> None:
    mixed = config(consumer={"fetch.wait.max.ms": 7}, producer={"linger.ms": 7})
    assert consumer_settings(mixed)["fetch.wait.max.ms"] == 7
    assert "fetch.wait.max.ms" not in producer_settings(mixed)
    assert producer_settings(mixed)["linger.ms"] == 7
    assert "linger.ms" not in consumer_settings(mixed)


@pytest.mark.parametrize("section", ["client", "consumer", "producer"])
def test_no_user_setting_overrides_a_guarantee(section: str) -> None:
    """Catches a merge in the wrong order, even if the check of the configuration was bypassed."""
    made = config()
    sneaked = made.kafka.model_copy(update={section: dict.fromkeys(OWN_SETTINGS, "theirs")})
    around = made.model_copy(update={"kafka": sneaked})
    assert CONSUMER.items() <= consumer_settings(around).items()
    assert PRODUCER.items() <= producer_settings(around).items()


def test_librdkafka_does_not_commit_by_a_timer() -> None:
    """Catches commits that overtake each other: librdkafka sends the next one before the last was answered."""
    assert consumer_settings(config(commit_interval_ms=77))["auto.commit.interval.ms"] == 0


def test_deleted_frames_stop_the_consumer_by_default() -> None:
    assert consumer_settings(config())["auto.offset.reset"] == "error"
    assert consumer_settings(config(consumer={"auto.offset.reset": "latest"}))["auto.offset.reset"] == "latest"


def test_with_kip_848_the_brokers_assign() -> None:
    """Catches a client that refuses to start: the new protocol has no assignment strategy."""
    assert "partition.assignment.strategy" in consumer_settings(config())
    new = consumer_settings(config(consumer={"group.protocol": "consumer"}))
    assert "partition.assignment.strategy" not in new


def test_results_are_partitioned_as_java_does() -> None:
    assert producer_settings(config())["partitioner"] == "murmur2_random"


@pytest.mark.parametrize("kafka", [{}, {"consumer": {"group.protocol": "consumer"}}, {"client": {"log_level": 3}}])
def test_librdkafka_accepts_the_settings(kafka: dict[str, Any]) -> None:
    """Uses the real librdkafka, without a broker: it checks every name and value."""
    confluent_kafka.Consumer(consumer_settings(config(**kafka))).close()
    assert confluent_kafka.Producer(producer_settings(config(**kafka))).flush(0) == 0


@pytest.mark.parametrize(
    "setting", [{"no.such.setting": 1}, {"ssl.ca.location": "/no/such/file", "security.protocol": "ssl"}]
)
def test_a_setting_that_librdkafka_refuses_is_an_error_with_its_text(setting: dict[str, Any]) -> None:
    """Catches a traceback from a C extension."""
    wrong = config(client=setting)
    with pytest.raises(KafkaError, match=r"^kafka\.consumer: .*(no.such.setting|ssl.ca.location)"):
        Source(wrong, None, clock=lambda: 0.0, wall_clock_ms=lambda: 0)  # type: ignore[arg-type] # it is never called
    with pytest.raises(KafkaError, match=r"^kafka\.producer: .*(no.such.setting|ssl.ca.location)"):
        Publisher(wrong, ModelInfo("m", "sha256:0"), clock=lambda: 0.0, wall_clock_ms=lambda: 0)
