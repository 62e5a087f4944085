"""docker-compose.yml: Compose's own schema takes it, every name leads somewhere, and Sluice accepts its values."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from consumer import __version__
from consumer.config import load_config

ROOT = Path(__file__).resolve().parents[2]
OURS = ("consumer", "consumer-gpu", "cameras")

Service = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(ROOT.joinpath("docker-compose.yml").read_text())
    return parsed


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Service]:
    found: dict[str, Service] = compose["services"]
    return found


def interpolated(value: object) -> str:
    """What Compose makes of `${NAME:-default}` where NAME is not set, and of `$$`."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)).replace("$$", "$")


@pytest.fixture(scope="module")
def specification() -> Any:
    return jsonschema.Draft7Validator(
        json.loads(Path(__file__).with_name("schemas").joinpath("compose.json").read_text())
    )


def test_the_specification_of_compose_takes_the_file(compose: dict[str, Any], specification: Any) -> None:
    """Catches a misspelt key or a value of the wrong kind, which fails on the user's machine."""
    assert [f"{error.json_path}: {error.message}" for error in specification.iter_errors(compose)] == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda services: services["kafka"].update(imagee="x"),
        lambda services: services["kafka"]["healthcheck"].update(interval=3),
        lambda services: services["consumer"].update(restart=5),
        lambda services: services["consumer"]["depends_on"]["topics"].update(condition="ready"),
    ],
)
def test_the_specification_refuses_what_is_none(compose: dict[str, Any], specification: Any, spoil: Any) -> None:
    """Catches a schema that lost its teeth on the way here."""
    spoilt = copy.deepcopy(compose)
    spoil(spoilt["services"])
    assert not specification.is_valid(spoilt)


def test_every_name_leads_somewhere(compose: dict[str, Any], services: dict[str, Service], dockerfile: Any) -> None:
    """Catches a service, a volume, a file or a stage of the Dockerfile that is called otherwise."""
    stages = {each.stage for each in dockerfile}
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in services[name]["healthcheck"]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[name]["restart"] != "always"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert source == "./models" or ROOT.joinpath(source).exists(), "./models is the user's"
            else:
                assert source in compose["volumes"]
        if "build" in service:
            assert service["build"]["target"] in stages


def test_every_image_is_pinned(services: dict[str, Service]) -> None:
    """Catches :latest. Kafka is the version that the tests run on; Sluice's is this one."""
    for name, service in services.items():
        image, _, tag = service["image"].partition(":")
        assert re.match(r"v?\d+\.\d+\.\d+", tag), name
        if image == "apache/kafka":
            assert f"<kafka.version>{tag}</kafka.version>" in ROOT.joinpath("tests/integration/pom.xml").read_text()
    for name in OURS:
        title, _, tag = services[name]["image"].partition(":")
        assert title == ("sluice-cameras" if name == "cameras" else "sluice")
        assert tag == f"{__version__}-{services[name]['build']['target']}"


def test_no_two_builds_write_the_same_image(services: dict[str, Service]) -> None:
    """Catches `docker compose up --build` that fails now and then: it builds all services at once."""
    built = [service["image"] for service in services.values() if "build" in service]
    assert len(built) == len(set(built))


def test_no_port_is_open_to_the_network(services: dict[str, Service]) -> None:
    """Catches a port on all addresses: Docker opens it past the host's firewall."""
    for service in services.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


# The consumer


@pytest.mark.parametrize("name", ["consumer", "consumer-gpu"])
def test_the_program_starts_with_the_variables_of_the_service(
    services: dict[str, Service],
    name: str,
    option_variables: frozenset[str],
    clean_environment: pytest.MonkeyPatch,
    dockerfile: Any,
) -> None:
    """Catches a renamed option, a value that is none, and a broker that is not the service's listener."""
    variables = services[name]["environment"]
    assert {key for key in variables if key.startswith("SLUICE_")} <= option_variables
    for key, value in variables.items():
        clean_environment.setenv(key, interpolated(value))
    config = load_config()
    assert config.kafka.bootstrap_servers in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert config.detector.model == "/opt/sluice/demo.pt"
    assert any("/opt/sluice/demo.pt" in each.rest for each in dockerfile if each.word == "RUN")
    assert config.detector.device == ("cuda" if name == "consumer-gpu" else "auto")
    assert all(port.endswith(f":{config.http.port}") for port in services[name]["ports"])


def test_the_gpu_is_asked_for_where_it_is_wanted(services: dict[str, Service]) -> None:
    """Catches a plain `docker compose up` that needs a GPU, and a profile that does not get one."""
    (device,) = services["consumer-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert services["consumer-gpu"]["profiles"] == ["gpu"]
    assert [name for name, service in services.items() if "deploy" in service] == ["consumer-gpu"]


@pytest.mark.parametrize("name", ["consumer", "consumer-gpu"])
def test_a_container_has_time_to_drain(services: dict[str, Service], name: str, shutdown_s: float) -> None:
    """Catches Docker's default of 10 s, which kills in the middle of the drain."""
    assert float(services[name]["stop_grace_period"].removesuffix("s")) >= shutdown_s + 10


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_write_to_tmp_alone(services: dict[str, Service], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])


def test_a_wrong_configuration_is_not_tried_for_ever(services: dict[str, Service]) -> None:
    """Catches `always`: it also restarts what has drained and ended well."""
    assert services["consumer"]["restart"] == "on-failure:5"


# Kafka and its topics


def created(services: dict[str, Service]) -> dict[str, dict[str, str]]:
    (script,) = services["topics"]["command"]
    topics = {}
    for name, rest in re.findall(r"^\s*create ([\w-]+) ((?:.*\\\n)*.*)$", interpolated(script), flags=re.MULTILINE):
        topics[name] = dict(re.findall(r"([\w.]+)=(\S+)", rest)) | dict(re.findall(r"--(partitions) (\d+)", rest))
    return topics


def test_the_topics_are_those_of_the_program(services: dict[str, Service], clean_environment: Any) -> None:
    """Catches a topic that nobody reads, and one that nobody made: the broker does not make any by itself."""
    config = load_config()
    assert set(created(services)) == {*config.input.topics, config.output.topic, config.dead_letter.topic}
    assert services["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_the_largest_frame_fits_into_its_topic_and_into_the_dead_letters(
    services: dict[str, Service], clean_environment: Any
) -> None:
    """Catches the default of 1 MB: a producer is refused, or a dead letter is cut although it need not be."""
    topics = created(services)
    largest = load_config().decode.max_bytes
    frames, dead = (int(topics[name]["max.message.bytes"]) for name in ("frames", "frames-dead"))
    broker = int(services["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"])
    assert largest + 2**20 <= frames < dead <= broker


def test_a_source_keeps_its_partition_in_the_output(services: dict[str, Service]) -> None:
    """Catches topics with different numbers of partitions: results could not be joined with frames by partition."""
    topics = created(services)
    assert topics["frames"]["partitions"] == topics["detections"]["partitions"]


def test_kafka_is_alone_and_says_so(services: dict[str, Service]) -> None:
    """Catches internal topics that want three brokers: the first group would wait for them for ever."""
    environment = services["kafka"]["environment"]
    assert {value for key, value in environment.items() if key.endswith(("_REPLICATION_FACTOR", "_MIN_ISR"))} == {1}
    advertised = dict(each.split("://") for each in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(each.split("://") for each in environment["KAFKA_LISTENERS"].split(","))
    assert {name: address.split(":")[1] for name, address in advertised.items()} == {
        name: address.split(":")[1] for name, address in listening.items() if name != "CONTROLLER"
    }
    assert (
        listening.keys()
        == dict(each.split(":") for each in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")).keys()
    )
    assert "/dev/tcp/localhost/9092" in services["kafka"]["healthcheck"]["test"][-1]


# Cameras and Prometheus


def test_the_cameras_become_a_produce_command_that_exists(
    services: dict[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an option of `sluice produce` that was renamed, and pictures that it would not take."""
    import typer

    from consumer.cli import app
    from consumer.tools.images import Encoding, parse_source

    service = services["cameras"]
    interpreter, script = service["entrypoint"]
    assert interpreter == "python"
    path = ROOT / service["volumes"][0].split(":")[0] / Path(script).name
    spec = importlib.util.spec_from_file_location("cameras", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda file, arguments: ran.append(arguments))
    module.main(list(service["command"]))

    ((program, command, *arguments),) = ran
    assert (program, command) == ("sluice", "produce")
    produce = typer.main.get_command(app).commands["produce"]  # type: ignore[attr-defined]
    given = produce.make_context("produce", list(arguments)).params
    assert given["loop"] is True
    assert given["bootstrap_servers"] == "kafka:9092"
    assert given["topic"] in created(services)
    for source in given["source"]:
        assert {image.content_type for image in parse_source(source, Encoding()).open()} == {"image/jpeg"}


def mounted(service: Service) -> dict[str, Path]:
    """Path in the container: the file of ours that lies there."""
    return {inside: ROOT / outside for outside, inside, _ in (volume.split(":") for volume in service["volumes"])}


def test_prometheus_asks_services_that_exist(services: dict[str, Service]) -> None:
    """Catches a service or a port that is called otherwise: the graphs stay empty."""
    files = mounted(services["prometheus"])
    config = yaml.safe_load(files["/etc/prometheus/prometheus.yml"].read_text())
    assert [f"/etc/prometheus/{name}" for name in config["rule_files"]] == ["/etc/prometheus/rules.yml"]
    assert files["/etc/prometheus/rules.yml"].is_file()
    (job,) = config["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert discovery["type"] == "A"
    for name in discovery["names"]:
        assert services[name]["ports"][0].endswith(f":{discovery['port']}")


def test_grafana_finds_prometheus_and_the_dashboard(services: dict[str, Service]) -> None:
    """Catches a path or a port that differs between the files: Grafana then starts, empty."""
    grafana = services["grafana"]
    files = mounted(grafana)
    (source,) = yaml.safe_load(files["/etc/grafana/provisioning/datasources/sluice.yml"].read_text())["datasources"]
    service, port = source["url"].removeprefix("http://").split(":")
    assert services[service]["ports"][0].endswith(f":{port}")
    (provider,) = yaml.safe_load(files["/etc/grafana/provisioning/dashboards/sluice.yml"].read_text())["providers"]
    (dashboard,) = [path for path in files if path.startswith(provider["options"]["path"] + "/")]
    assert json.loads(files[dashboard].read_text())["title"] == "Sluice"
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
