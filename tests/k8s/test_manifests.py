"""The manifests as `kubectl apply -k` sends them: rendered, then judged by Kubernetes' own schemas and by Sluice."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import json
import os
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml

from consumer import __version__
from consumer.config import Config, HttpConfig, load_config
from consumer.observability.health import Health, HealthServer
from consumer.observability.metrics import Metrics
from consumer.tools.doctor.settings import CLOSING_S

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ROOT / "k8s" / "components"
SCHEMAS = Path(__file__).parent / "schemas"
OLDEST, NEWEST = "1.29", "1.37"

ALONE = [("cpu",), ("gpu",), ("mig",)]
COMBINED = [
    ("gpu", "kafka-tls"),
    ("gpu", "kafka-sasl"),
    ("gpu", "keda"),
    ("gpu", "monitoring"),
    ("gpu", "model-fetch"),
    ("cpu", "model-fetch"),
    ("gpu", "doctor"),
    ("mig", "kafka-sasl", "keda", "model-fetch", "monitoring", "doctor"),
]
ALL = ALONE + COMBINED
# What a "kafka" trigger reads from its metadata (pkg/scalers/kafka_scaler.go of KEDA 2.21); the schema takes any name.
KAFKA_TRIGGER = {
    "bootstrapServers", "consumerGroup", "topic", "partitionLimitation", "lagThreshold", "activationLagThreshold",
    "offsetResetPolicy", "allowIdleConsumers", "excludePersistentLag", "scaleToZeroOnInvalidOffset",
    "limitToPartitionsWithLag", "ensureEvenDistributionOfPartitions", "fullMetadata", "version", "tls", "unsafeSsl",
    "sasl", "saslTokenProvider", "awsRegion",
}  # fmt: skip
CUSTOM = ("ScaledObject", "PodMonitor", "PrometheusRule")
SECRETS = "/etc/sluice-kafka"
POD = {"app.kubernetes.io/name": "sluice"}

Object = dict[str, Any]
Render = Callable[..., Any]

every_variant = pytest.mark.parametrize("variant", ALL, ids="+".join)


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", once)
        yield


# Kubernetes takes them


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@every_variant
def test_kubernetes_takes_every_object_and_knows_every_field(render: Render, variant: Any, version: str) -> None:
    """Catches a misspelt field, which a server drops with no more than a warning: the setting is then not there."""
    for each in render(*variant).objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("kind", CUSTOM)
def test_the_operators_take_their_objects_and_know_every_field(render: Render, kind: str) -> None:
    """Catches a field that KEDA or the Prometheus operator would drop. The schemas are the operators' own."""
    schema = json.loads(SCHEMAS.joinpath(f"{kind.lower()}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    each = render("mig", "kafka-sasl", "keda", "model-fetch", "monitoring").one(kind)
    jsonschema.Draft202012Validator(schema).validate(each)


@every_variant
def test_everything_lies_in_one_namespace(render: Render, variant: Any) -> None:
    """Catches a component whose objects land in the namespace that kubectl happens to be set to."""
    namespaced = [each for each in render(*variant).objects if each["kind"] != "Namespace"]
    assert {each["metadata"].get("namespace") for each in namespaced} == {"sluice"}


@every_variant
def test_every_selector_finds_the_pods(render: Render, variant: Any) -> None:
    """Catches a label that was renamed in one place: a budget or a policy that selects nothing says nothing."""
    manifests = render(*variant)
    deployment = manifests.one("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [
        deployment["selector"]["matchLabels"],
        manifests.one("Service")["spec"]["selector"],
        manifests.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        *(policy["spec"]["podSelector"]["matchLabels"] for policy in manifests.all("NetworkPolicy")),
        *(spread["labelSelector"]["matchLabels"] for spread in manifests.pod["topologySpreadConstraints"]),
        *(monitor["spec"]["selector"]["matchLabels"] for monitor in manifests.all("PodMonitor")),
    ]
    for selector in selectors:
        assert selector == POD
        assert selector.items() <= labels.items()


@every_variant
def test_every_reference_leads_somewhere(render: Render, variant: Any) -> None:
    """Catches a pod that hangs in ContainerCreating because a ConfigMap, a volume or a key has another name."""
    manifests = render(*variant)
    maps = {each["metadata"]["name"]: each["data"] for each in manifests.all("ConfigMap")}
    volumes = {each["name"]: each for each in manifests.pod["volumes"]}
    for volume in volumes.values():
        if "configMap" in volume:
            assert volume["configMap"]["name"] in maps
        assert len(volume) == 2, f"a name and one kind of volume: {volume}"
    mounted = {mount["name"] for container in manifests.containers for mount in container["volumeMounts"]}
    assert mounted == set(volumes)
    for variable in (each for container in manifests.containers for each in container["env"]):
        if "configMapKeyRef" in variable.get("valueFrom", {}):
            reference = variable["valueFrom"]["configMapKeyRef"]
            assert reference["key"] in maps[reference["name"]]
    accounts = {each["metadata"]["name"] for each in manifests.all("ServiceAccount")}
    assert manifests.pod["serviceAccountName"] in accounts


# The program takes what they say


@every_variant
def test_every_sluice_variable_is_an_option(render: Render, variant: Any, option_variables: frozenset[str]) -> None:
    """Catches a renamed option: Sluice refuses to start with a variable that it does not know."""
    named = {each["name"] for container in render(*variant).containers for each in container["env"]}
    assert {name for name in named if name.startswith("SLUICE_")} <= option_variables


@every_variant
def test_the_program_starts_with_the_configuration_of_the_pod(
    render: Render, variant: Any, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Catches a value that is no value of its option, in the file or in a variable, and the two in disagreement."""
    manifests = render(*variant)
    config = configuration(manifests, tmp_path, clean_environment)
    (port,) = manifests.container["ports"]
    assert (config.http.host, config.http.port) == ("0.0.0.0", port["containerPort"])
    assert str(config.decode.threads) == manifests.container["resources"]["requests"]["cpu"]
    assert config.detector.device == ("cpu" if variant[0] == "cpu" else "cuda")
    assert config.log.format == "json"


def test_credentials_from_a_secret_reach_librdkafka(
    render: Render, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Catches a key of the documented Secret that is not what kafka.secrets names, or is not mounted there."""
    manifests = render("gpu", "kafka-sasl")
    kafka = configuration(manifests, tmp_path, clean_environment).kafka
    assert (kafka.shared["sasl.username"], kafka.shared["sasl.password"]) == ("USERNAME", "PASSWORD")
    assert kafka.client["sasl.mechanism"] == "SCRAM-SHA-512"
    (mount,) = [each for each in manifests.container["volumeMounts"] if each["name"] == "kafka-sasl"]
    assert mount["mountPath"] == SECRETS
    assert Path(str(kafka.client["ssl.ca.location"])).name in documented_secret_keys()


def test_certificates_are_read_from_the_mounted_files(
    render: Render, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Catches a path that is right in one place only."""
    manifests = render("gpu", "kafka-tls")
    client = configuration(manifests, tmp_path, clean_environment).kafka.client
    (mount,) = [each for each in manifests.container["volumeMounts"] if each["name"] == "kafka-tls"]
    files = {Path(str(value)) for name, value in client.items() if name.endswith(".location")}
    assert {file.parent for file in files} == {Path(mount["mountPath"])}
    assert {file.name for file in files} == {"ca.crt", "tls.crt", "tls.key"}


@pytest.mark.parametrize("component", ["kafka-tls", "kafka-sasl"])
def test_secrets_are_readable_for_the_program_and_not_for_everyone(render: Render, component: str) -> None:
    """Catches mode 0400, which the program's user cannot read, and the default of 0644, which everyone can."""
    pod = render("gpu", component).pod
    (volume,) = [each["secret"] for each in pod["volumes"] if "secret" in each]
    assert volume["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_no_manifest_holds_a_password(render: Render) -> None:
    """Catches a credential that stands in a variable's value, where everyone who may read Deployments reads it."""
    for variant in ALL:
        for container in render(*variant).containers:
            for variable in container["env"]:
                path = f'"sasl.password": "{SECRETS}/password"'
                assert "password" not in variable.get("value", "").replace(path, "")


# What the documentation tells a user to write


def documented(language: str) -> str:
    """The first block of that language under "Kubernetes" in docs/deployment.md."""
    text = ROOT.joinpath("docs", "deployment.md").read_text().partition("## Kubernetes")[2]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)[0]


def test_the_documented_kustomization_is_one(kustomize: Any, tmp_path: Path) -> None:
    """Catches a component that was renamed, and an image or a configuration of the user's that does not get in."""
    where = os.path.relpath(ROOT / "k8s", tmp_path.resolve())
    tmp_path.joinpath("kustomization.yaml").write_text(documented("yaml").replace("sluice/k8s", where))
    tmp_path.joinpath("sluice.yaml").write_text("kafka: {group_id: mine}")
    done = subprocess.run([*kustomize, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"registry.example/sluice:{__version__}-cuda"
    assert [each["data"] for each in objects if each["metadata"]["name"].startswith("sluice-config")] == [
        {"sluice.yaml": "kafka: {group_id: mine}"}
    ]
    assert {each["kind"] for each in objects} >= set(CUSTOM)


def test_the_documented_secret_is_the_one_of_the_component() -> None:
    """Catches two instructions that have grown apart."""
    (command,) = re.findall(r"create secret generic sluice-kafka-sasl.*", documented("sh").replace("\\\n", ""))
    assert secret_keys(command) == documented_secret_keys() == {"ca.crt", "username", "password"}


@pytest.mark.parametrize("variant", [each for each in ALL if "doctor" in each], ids="+".join)
def test_the_doctor_sees_what_the_program_will_see(render: Render, variant: Any) -> None:
    """Catches a doctor that examines another configuration, another image or no GPU, or comes before the model."""
    manifests = render(*variant)
    found = manifests.pod["initContainers"][-1]
    assert found["name"] == "doctor"
    for part in ("image", "env", "volumeMounts", "resources", "securityContext"):
        assert found[part] == manifests.container[part]
    command, *options = found["args"]
    given = dict(zip(options[::2], map(int, options[1::2]), strict=True))
    probe = manifests.container["startupProbe"]  # it loads the same model
    times = {
        "--grace-period": manifests.pod["terminationGracePeriodSeconds"],
        "--timeout": probe["failureThreshold"] * probe["periodSeconds"],
    }
    assert (command, given) == ("doctor", times)


# Starting and stopping


@every_variant
def test_a_pod_has_time_to_drain(render: Render, variant: Any, shutdown_s: float) -> None:
    """Catches a drain or a close that was made longer: SIGKILL then falls into it and the work is done again."""
    assert render(*variant).pod["terminationGracePeriodSeconds"] >= shutdown_s + 10


def test_the_doctor_reckons_with_the_same_closing(shutdown_s: float) -> None:
    """Catches a `sluice doctor` that calls a grace period long enough which is not."""
    assert load_config().limits.drain_timeout_s + CLOSING_S == shutdown_s


def test_probes_ask_for_pages_that_exist(render: Render) -> None:
    """Catches a probe of a page that answers 404, which restarts a pod for ever."""
    health = Health(clock=lambda: 0.0, stall_timeout_s=60)
    server = HealthServer(HttpConfig(host="127.0.0.1", port=0), health, Metrics())
    server.start()
    try:
        container = render("gpu").container
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            page = container[name]["httpGet"]
            assert page["port"] in {port["name"] for port in container["ports"]}
            try:
                status = urllib.request.urlopen(f"http://127.0.0.1:{server.port}{page['path']}", timeout=5).status
            except urllib.error.HTTPError as error:
                status = error.code
            assert status in (200, 503)
    finally:
        server.close()


def test_a_slow_model_is_waited_for_and_a_hung_one_is_not(render: Render) -> None:
    """Catches a liveness probe that kills a loading pod, and a rollout that is given up before the pod is."""
    manifests = render("gpu")
    startup = manifests.container["startupProbe"]
    allowed_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert 300 <= allowed_s <= 1800
    assert startup["httpGet"]["path"] == "/readyz"
    assert manifests.one("Deployment")["spec"]["progressDeadlineSeconds"] > allowed_s


def test_liveness_comes_after_the_programs_own_watchdog(render: Render, clean_environment: pytest.MonkeyPatch) -> None:
    """Catches a probe that is quicker than limits.stall_timeout_s: the log would not say what hung."""
    probe = render("gpu").container["livenessProbe"]
    assert probe["httpGet"]["path"] == "/healthz"
    assert probe["periodSeconds"] * probe["failureThreshold"] >= load_config().limits.stall_timeout_s


def test_an_update_needs_no_spare_gpu_and_takes_one_pod_at_a_time(render: Render) -> None:
    """Catches the default of 25% surge: its pod waits for a GPU that the old pod holds, for ever."""
    for variant in ALONE:
        manifests = render(*variant)
        update = manifests.one("Deployment")["spec"]["strategy"]["rollingUpdate"]
        assert update == {"maxSurge": 0, "maxUnavailable": 1}
        assert manifests.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


# What a pod may do: Pod Security "restricted", rule by rule


def for_all_containers(render: Render) -> Iterator[tuple[Object, Object]]:
    for variant in ALL:
        manifests = render(*variant)
        for container in manifests.containers:
            yield manifests.pod, container


def test_the_namespace_enforces_restricted(render: Render) -> None:
    for variant in ALONE:
        labels = render(*variant).one("Namespace")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_container_runs_as_root(render: Render, dockerfile: Any) -> None:
    """Catches a pod that relies on the image's user alone, or has another one than the image prepares for."""
    (user,) = {each.rest for each in dockerfile if each.word == "USER"}
    for pod, container in for_all_containers(render):
        context = pod["securityContext"] | container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


def test_no_container_can_gain_privileges(render: Render) -> None:
    for _, container in for_all_containers(render):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert not container["securityContext"].get("privileged")


def test_every_container_drops_all_capabilities(render: Render) -> None:
    for _, container in for_all_containers(render):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_pod_has_the_runtimes_seccomp_profile(render: Render) -> None:
    for pod, container in for_all_containers(render):
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "seccompProfile" not in container["securityContext"]


def test_no_pod_shares_the_nodes_namespaces_ports_or_files(render: Render) -> None:
    allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim"}
    for pod, container in for_all_containers(render):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPort" in port for port in container.get("ports", []))
        assert {kind for volume in pod["volumes"] for kind in volume} - {"name"} <= allowed


def test_nothing_can_be_written_but_tmp_and_the_fetched_model(render: Render) -> None:
    """Catches a writable root, and an emptyDir without a limit, which fills the disk of the node."""
    for pod, container in for_all_containers(render):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable == ({"/models"} if container["name"] == "model-fetch" else {"/tmp"})
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)


def test_a_pod_knows_nothing_of_the_cluster(render: Render) -> None:
    """Catches a token that a hole in an image decoder would hand out, and variables of every Service around."""
    for variant in ALL:
        manifests = render(*variant)
        assert manifests.pod["automountServiceAccountToken"] is False
        assert manifests.pod["enableServiceLinks"] is False
        assert manifests.one("ServiceAccount")["automountServiceAccountToken"] is False


def test_a_pod_reaches_dns_and_kafka_and_is_reached_by_the_scraper(render: Render) -> None:
    """Catches a rule that was opened further, and kustomize's labels written into the selector of the DNS pods."""
    policy = render("gpu", "monitoring", "keda", "kafka-sasl").one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = policy["ingress"]
    assert [port["port"] for port in ingress["ports"]] == [8080]
    assert ingress["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    dns, kafka = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert dns["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert kafka["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kafka"}}}]
    assert {port["port"] for port in kafka["ports"]} == {9092, 9093, 9094}


# What runs, and on what


@every_variant
def test_every_image_has_the_tag_of_this_version(render: Render, variant: Any) -> None:
    """Catches :latest, with which two pods of one Deployment may be two programs, and a forgotten release."""
    kind = "cpu" if variant[0] == "cpu" else "cuda"
    assert {each["image"] for each in render(*variant).containers} == {f"sluice:{__version__}-{kind}"}


@pytest.mark.parametrize(
    ("overlay", "resource"), [("gpu", "nvidia.com/gpu"), ("mig", "nvidia.com/mig-1g.10gb"), ("cpu", None)]
)
def test_a_pod_asks_for_one_device_or_none(render: Render, overlay: str, resource: str | None) -> None:
    """Catches a GPU overlay whose pods run anywhere, and a try-out that waits for a GPU."""
    limits = render(overlay).container["resources"]["limits"]
    devices = {name: count for name, count in limits.items() if name.startswith("nvidia.com/")}
    assert devices == ({resource: "1"} if resource else {})


def test_memory_is_limited_and_processor_time_is_not(render: Render) -> None:
    """Catches a CPU limit: throttling stops the thread that feeds the GPU with the others."""
    for _, container in for_all_containers(render):
        if container["name"] == "sluice":
            assert "cpu" not in container["resources"]["limits"]
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


def test_the_try_out_needs_no_volume_of_the_users(render: Render) -> None:
    """Catches a pod of the try-out that waits for a claim."""
    assert all("persistentVolumeClaim" not in volume for volume in render("cpu").pod["volumes"])
    assert environment(render("cpu").container)["SLUICE_DETECTOR__MODEL"]["value"] == "/opt/sluice/demo.pt"


# Scaling


@pytest.fixture
def scaled(render: Render) -> Object:
    return render("gpu", "keda").one("ScaledObject")["spec"]


def test_scaling_asks_for_the_lag_of_what_the_pods_read(
    render: Render, scaled: Object, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Catches another topic, group or broker in the trigger: it scales by a lag that no pod works on."""
    config = configuration(render("gpu", "keda"), tmp_path, clean_environment)
    (trigger,) = scaled["triggers"]
    asked = trigger["metadata"]
    assert asked["bootstrapServers"] == config.kafka.bootstrap_servers
    assert asked["consumerGroup"] == config.kafka.group_id
    assert [asked["topic"]] == config.input.topics
    assert asked["offsetResetPolicy"] == "earliest"
    assert asked.keys() <= KAFKA_TRIGGER


def test_scaling_stops_at_the_number_of_partitions(scaled: Object) -> None:
    """Catches pods that would get no partition. The topic is the one that docker-compose.yml creates."""
    compose = yaml.safe_load(ROOT.joinpath("docker-compose.yml").read_text())
    (script,) = compose["services"]["topics"]["command"]
    (partitions,) = re.findall(r"create frames --partitions (\d+)", script)
    assert scaled["maxReplicaCount"] == int(partitions)
    assert scaled["triggers"][0]["metadata"]["allowIdleConsumers"] == "false"


def test_nobody_else_sets_the_number_of_pods(render: Render, scaled: Object) -> None:
    """Catches `replicas` beside an autoscaler: every apply would throw the pods away."""
    deployment = render("gpu", "keda").one("Deployment")
    assert "replicas" not in deployment["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_scaling_does_not_thrash(render: Render, scaled: Object) -> None:
    """Catches the defaults, which add pods by doubling and take them away together: each one is a rebalance."""
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    startup = render("gpu").container["startupProbe"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= startup["periodSeconds"] * startup["failureThreshold"]
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]
    assert all(policy["type"] == "Pods" for policy in behavior["scaleUp"]["policies"])


def test_the_lag_that_calls_a_pod_is_more_than_what_one_holds_in_flight(
    scaled: Object, clean_environment: pytest.MonkeyPatch
) -> None:
    """Catches a threshold below the frames of four batches: a pod that keeps up would look behind."""
    threshold = int(scaled["triggers"][0]["metadata"]["lagThreshold"])
    assert threshold >= 10 * 4 * load_config().batching.max_batch_size


# Fetching the model


@pytest.fixture
def store() -> Iterator[str]:
    """A server that has the file `/model.pt`, and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/model.pt" else 404)
            self.end_headers()
            self.wfile.write(b"a model")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], int]:
    """The init container's program, with its environment; its exit code."""
    spec = importlib.util.spec_from_file_location("fetch", COMPONENTS / "model-fetch" / "fetch.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(url: str, sha256: str) -> int:
        monkeypatch.setenv("MODEL_URL", url)
        monkeypatch.setenv("MODEL_SHA256", sha256)
        monkeypatch.setenv("MODEL_PATH", str(tmp_path / "model.pt"))
        return module.main()

    return run


RIGHT = hashlib.sha256(b"a model").hexdigest()


def test_a_fetched_model_gets_its_name_once_it_was_checked(store: str, fetch: Any, tmp_path: Path) -> None:
    assert fetch(f"{store}/model.pt", RIGHT) == 0
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.pt", b"a model")]


@pytest.mark.parametrize(("page", "digest"), [("model.pt", "0" * 64), ("missing.pt", RIGHT)])
def test_another_file_than_was_meant_is_not_kept(
    store: str, fetch: Any, tmp_path: Path, page: str, digest: str
) -> None:
    """Catches a fetch that leaves what it got, or an error page, under the model's name."""
    assert fetch(f"{store}/{page}", digest) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_restarted_container_does_not_fetch_again(fetch: Any, tmp_path: Path) -> None:
    """Catches an init container that needs the store at every restart of a pod."""
    tmp_path.joinpath("model.pt").write_bytes(b"a model")
    assert fetch("http://127.0.0.1:9/model.pt", RIGHT) == 0


def test_the_fetched_model_is_the_one_that_runs(
    render: Render, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Catches a digest that the init container checks and the program does not, or two paths."""
    for overlay in ("gpu", "cpu"):
        manifests = render(overlay, "model-fetch")
        (init,) = manifests.pod["initContainers"]
        detector = configuration(manifests, tmp_path, clean_environment).detector
        assert detector.model == environment(init)["MODEL_PATH"]["value"]
        assert detector.sha256 == manifests.config_map("sluice-model")["data"]["sha256"]


# What the tests above share


def environment(container: Object) -> dict[str, Object]:
    return {each["name"]: each for each in container["env"]}


def configuration(manifests: Any, tmp_path: Path, patch: pytest.MonkeyPatch) -> Config:
    """What `load_config` makes of the pod's file and variables."""
    file = tmp_path / "sluice.yaml"
    file.write_text(manifests.config_map("sluice-config")["data"]["sluice.yaml"])
    maps = {each["metadata"]["name"]: each["data"] for each in manifests.all("ConfigMap")}
    for name, variable in environment(manifests.container).items():
        match variable.get("valueFrom"):
            case None:
                value = variable["value"]
            case {"resourceFieldRef": {"resource": "requests.cpu"}}:
                value = manifests.container["resources"]["requests"]["cpu"]
            case {"configMapKeyRef": {"name": source, "key": key}}:
                value = maps[source][key]
            case other:
                raise AssertionError(f"{name}: where does {other} come from?")
        if name == "SLUICE_KAFKA__SECRETS":  # read when the configuration is loaded, so the files must be there
            value = value.replace(f"{SECRETS}/", f"{mounted_secret(tmp_path)}/")
        patch.setenv(name, str(file) if name == "SLUICE_CONFIG" else value)
    mounts = {mount["name"]: mount["mountPath"] for mount in manifests.container["volumeMounts"]}
    assert environment(manifests.container)["SLUICE_CONFIG"]["value"] == f"{mounts['config']}/sluice.yaml"
    return load_config()


def mounted_secret(tmp_path: Path) -> Path:
    """The documented Secret of kafka-sasl, as a folder of files. The value of each is its key in capitals."""
    folder = tmp_path / "secret"
    folder.mkdir(exist_ok=True)
    for key in documented_secret_keys():
        (folder / key).write_text(f"{key.upper()}\n")
    return folder


def documented_secret_keys() -> set[str]:
    """The keys of the Secret that the comment of the component tells a user to make."""
    text = COMPONENTS.joinpath("kafka-sasl", "kustomization.yaml").read_text()
    comment = " ".join(line.removeprefix("#").strip(" \\") for line in text.splitlines() if line.startswith("#"))
    return secret_keys(comment)


def secret_keys(command: str) -> set[str]:
    return set(re.findall(r"--from-(?:file|literal)=([a-z.]+)", command))
