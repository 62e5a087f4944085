"""Every check of `sluice doctor`, on made-up clusters: what it calls a problem, and what it leaves alone."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError as Code

from consumer.config import Config, HttpConfig
from consumer.errors import ModelError
from consumer.kafka.consumer_settings import consumer_settings
from consumer.kafka.producer_settings import producer_settings
from consumer.tools.clients import Connection
from consumer.tools.doctor import connectivity, frames, group, http_port, model, rights, settings, sizes, topics
from consumer.tools.doctor.checks import Checklist, Options
from consumer.tools.doctor.cluster import Group, Topic
from consumer.tools.doctor.findings import Finding, Reporter, Status, as_json, failed
from consumer.tools.doctor.model import ModelProbe
from consumer.tools.doctor.runner import Check, run_checks
from consumer.tools.doctor.sample import SampledFrame
from consumer.tools.doctor.topics import Topics
from consumer.tools.embedded import free_port
from consumer.types import ModelInfo, TopicPartition

REPORT = Reporter("check")
MIB = 2**20


def config(**sections: Any) -> Config:
    return Config(**{"detector": {"model": "m.pt"}, **sections})


def one(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def verdict(findings: Iterable[Finding]) -> Status:
    return one(findings).status


# The runner


def test_findings_come_in_the_order_of_the_checks() -> None:
    checks = [Check(name, lambda report: [report.ok("fine"), report.warning("but", "do")]) for name in ("a", "b")]
    assert [f"{each.check} {each.status}" for each in run_checks(checks, 10)] == [
        "a ok",
        "a warning",
        "b ok",
        "b warning",
    ]


def test_it_ends_in_time_though_a_check_hangs() -> None:
    """Catches a doctor in an init container that waits forever for a driver that hangs."""
    hang = threading.Event()

    def hangs(report: Reporter) -> Iterator[Finding]:
        yield report.ok("so far")
        hang.wait(60)

    started = time.monotonic()
    checks = [Check("first", lambda r: [r.ok("x")]), Check("stuck", hangs), Check("later", lambda r: [r.ok("x")])]
    found = list(run_checks(checks, 0.3))
    hang.set()
    assert time.monotonic() - started < 5
    assert [(each.check, each.status) for each in found] == [
        ("first", "ok"),
        ("stuck", "ok"),
        ("stuck", "problem"),
        ("later", "skipped"),
    ]


def test_a_check_that_fails_hides_nothing_of_the_others() -> None:
    def raises(error: Exception) -> Callable[[Reporter], Iterable[Finding]]:
        def run(report: Reporter) -> Iterator[Finding]:
            raise error
            yield report.ok("never")

        return run

    checks = [
        Check("ours", raises(ModelError("model file x does not exist: mount it"))),
        Check("bug", raises(ZeroDivisionError("oh"))),
        Check("last", lambda report: [report.ok("fine")]),
    ]
    ours, bug, last = run_checks(checks, 10)
    assert (ours.status, ours.message) == ("problem", "model file x does not exist: mount it")
    assert bug.status == "problem"
    assert "ZeroDivisionError: oh" in bug.message
    assert last.status == "ok"


def test_warnings_fail_only_with_strict() -> None:
    fine, warned, bad = [REPORT.ok("x"), REPORT.skipped("x")], [REPORT.warning("x", "y")], [REPORT.problem("x", "y")]
    assert [failed(each, strict=False) for each in (fine, warned, bad)] == [False, False, True]
    assert [failed(each, strict=True) for each in (fine, warned, bad)] == [False, True, True]


def test_the_json_has_the_documented_shape() -> None:
    document = as_json([REPORT.ok("fine"), REPORT.problem("bad", "do it")], 1.5, strict=False)
    assert json.loads(json.dumps(document)) == {
        "version": document["version"],
        "ok": False,
        "seconds": 1.5,
        "counts": {"ok": 1, "warning": 0, "problem": 1, "skipped": 0},
        "findings": [
            {"check": "check", "status": "ok", "message": "fine", "fix": ""},
            {"check": "check", "status": "problem", "message": "bad", "fix": "do it"},
        ],
    }


def test_a_line_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in REPORT.ok("cam\x1b[31m\nok forged").line()
    assert "\n" not in REPORT.ok("cam\x1b[31m\nok forged").line()


def test_offline_asks_no_broker_and_needs_no_time() -> None:
    made = config(detector={"model": "simulated://0ms@1,0ms@32"}, http={"port": free_port()})
    there = Connection(made, "127.0.0.1:1", {})
    found = list(run_checks(Checklist(there, Options(offline=True, grace_s=45)).checks(), 30))
    assert [each.check for each in found] == ["http", "poll-interval", "session", "grace-period", "model", "engine"]
    assert {str(each.status) for each in found if each.check != "model"} == {"ok"}


def test_checks_that_need_the_cluster_are_skipped_if_no_broker_answers() -> None:
    """Catches one unreachable broker that is reported as a dozen problems."""
    made = config(http={"port": free_port()})
    checks = Checklist(Connection(made, "127.0.0.1:1", {}), Options(load_model=False)).checks()
    online = checks[[check.name for check in checks].index("features") :]
    found = list(run_checks(online, 30))
    assert {(str(each.status), bool(each.message)) for each in found} == {("skipped", True)}


def test_clients_use_the_settings_of_the_program_and_of_the_command_line() -> None:
    """Catches a TLS or SASL setting in kafka.consumer or kafka.producer that the doctor does not know."""
    made = config(
        kafka={
            "client": {"security.protocol": "SSL", "client.rack": "r"},
            "consumer": {"sasl.username": "reader", "client.rack": "s"},
            "producer": {"sasl.username": "writer", "linger.ms": 5},
        }
    )
    there = Connection(made, "b:1", {"client.rack": "own"})
    assert there.consumer == {"security.protocol": "SSL", "client.rack": "own", "sasl.username": "reader"}
    assert there.producer == {
        "security.protocol": "SSL",
        "client.rack": "own",
        "sasl.username": "writer",
        "linger.ms": 5,
    }
    assert there.settings == {"security.protocol": "SSL", "client.rack": "own"}
    assert there.clients_differ
    assert not Connection(made, "b:1", {"sasl.username": "one"}).clients_differ
    assert not Connection(config(kafka={"producer": {"linger.ms": 5}}), "b:1", {}).clients_differ


def test_a_setting_of_the_consumer_that_the_client_refuses_is_a_problem() -> None:
    made = config(http={"port": free_port()}, kafka={"consumer": {"fetch.mx.bytes": 1}})
    checks = Checklist(Connection(made, "127.0.0.1:1", {}), Options(load_model=False)).checks()
    found = one(finding for finding in run_checks(checks, 30) if finding.check == "brokers")
    assert found.status == "problem"
    assert "fetch.mx.bytes" in found.message


# The configuration


@pytest.mark.parametrize(("grace_s", "status"), [(None, "skipped"), (39, "problem"), (40, "ok"), (50, "ok")])
def test_the_grace_period_must_hold_drain_and_closing(grace_s: float | None, status: str) -> None:
    found = one(settings.grace_period(config(), grace_s, REPORT))
    assert found.status == status
    assert "40 s" in found.message or status == "ok"


@pytest.mark.parametrize(
    ("consumer", "stall", "drain", "status"),
    [
        ({}, 60, 25, "ok"),
        ({"max.poll.interval.ms": 60_000}, 60, 25, "warning"),
        ({"max.poll.interval.ms": "61000"}, 60, 25, "ok"),
        ({"max.poll.interval.ms": 12_000}, 60, 25, "problem"),
        ({}, 400, 25, "warning"),
    ],
)
def test_the_program_detects_a_stall_before_the_brokers(
    consumer: dict[str, Any], stall: float, drain: float, status: str
) -> None:
    made = config(kafka={"consumer": consumer}, limits={"stall_timeout_s": stall, "drain_timeout_s": drain})
    assert verdict(settings.poll_interval(made, REPORT)) == status


def test_a_member_name_shared_by_all_pods_is_a_warning() -> None:
    assert verdict(settings.session(config(), REPORT)) == "ok"
    assert verdict(settings.session(config(kafka={"consumer": {"group.protocol": "consumer"}}), REPORT)) == "ok"
    shared = config(kafka={"consumer": {"group.instance.id": "me"}})
    assert verdict(settings.session(shared, REPORT)) == "warning"


class TestHttp:
    def test_a_free_port_is_fine(self) -> None:
        where = HttpConfig(host="127.0.0.1", port=free_port())
        assert http_port.running_state(where) is None
        assert verdict(http_port.http_port(where, None, REPORT)) == "ok"

    def test_a_port_in_use_is_a_problem(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            where = HttpConfig(host="127.0.0.1", port=taken.getsockname()[1])
            found = one(http_port.http_port(where, None, REPORT))
        assert (found.status, "another program uses the port" in found.message) == ("problem", True)

    def test_an_address_of_another_machine_is_a_problem(self) -> None:
        assert verdict(http_port.http_port(HttpConfig(host="192.0.2.1", port=free_port()), None, REPORT)) == "problem"

    def test_no_port_is_a_warning(self) -> None:
        assert verdict(http_port.http_port(HttpConfig(port=0), None, REPORT)) == "warning"

    def test_a_sluice_that_has_failed_is_not_fine(self) -> None:
        assert verdict(http_port.http_port(HttpConfig(port=8080), "failed", REPORT)) == "warning"

    @pytest.mark.parametrize(("body", "state"), [(b"running\n", "running"), (b"hello", None)])
    def test_a_running_sluice_is_known_by_its_answer(self, body: bytes, state: str | None) -> None:
        """Catches a doctor in a pod that loads a second model beside the one that runs."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            where = HttpConfig(host="0.0.0.0", port=server.server_address[1])
            assert http_port.running_state(where) == state
            assert verdict(http_port.http_port(where, state, REPORT)) == ("ok" if state else "problem")
            server.shutdown()


# The model


MODEL = ModelInfo("m.pt", "sha256:00", {0: "person", 1: "car"})


class TestModel:
    def test_is_loaded_and_run(self) -> None:
        probe = model.probe_model(config(detector={"model": "simulated://2ms@1,5ms@8"}, batching={"max_batch_size": 8}))
        assert (probe.device, probe.batch) == ("simulated", 8)
        assert 0.004 < probe.batch_s < 1

    def test_the_demo_model_is_fine(self) -> None:
        """The real thing, on this machine's CPU."""
        path = Path(model.__file__).parents[1] / "assets" / "demo.pt"
        made = config(detector={"model": str(path), "device": "cpu"}, batching={"max_batch_size": 1})
        probe = model.probe_model(made)
        found = one(model.model(made, probe, REPORT))
        assert found.status == "ok"
        assert "detector.sha256 is not set" in found.message
        assert verdict(model.engine(made, probe, REPORT)) == "ok"

    @pytest.mark.parametrize(
        ("detector", "words"),
        [
            ({"model": ""}, "detector.model is not set"),
            ({"model": "/no/such/model.pt"}, "does not exist"),
            ({"model": __file__}, "expected a .pt"),
        ],
    )
    def test_that_cannot_be_loaded_says_why(self, detector: dict[str, Any], words: str) -> None:
        with pytest.raises(ModelError, match=words):
            model.probe_model(config(detector=detector))

    def test_another_file_than_was_meant(self, tmp_path: Path) -> None:
        (tmp_path / "m.pt").write_bytes(b"other")
        with pytest.raises(ModelError, match="has SHA-256"):
            model.probe_model(config(detector={"model": str(tmp_path / "m.pt"), "sha256": "0" * 64}))

    @pytest.mark.parametrize("error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA")])
    def test_a_batch_that_does_not_fit(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        from consumer.detectors.simulated import SimulatedDetector

        def fails(self: object, batch: int) -> None:
            raise error

        monkeypatch.setattr(SimulatedDetector, "warm_up", fails)
        with pytest.raises(ModelError, match="a batch of 32 does not fit"):
            model.probe_model(config(detector={"model": "simulated://1ms@1,2ms@32"}))

    def test_a_simulated_engine_is_a_warning(self) -> None:
        assert verdict(model.model(config(), ModelProbe(MODEL, "simulated", 32, 0.1), REPORT)) == "warning"

    @pytest.mark.parametrize(("wanted", "count"), [("auto", 2), ("cpu", 1)])
    def test_a_cpu_that_nobody_asked_for_is_a_warning(self, wanted: str, count: int) -> None:
        made = config(detector={"model": "m.pt", "device": wanted})
        found = list(model.model(made, ModelProbe(MODEL, "cpu", 32, 0.1), REPORT))
        assert [each.status for each in found] == ["ok", "warning"][:count]

    def test_a_model_for_smaller_batches_is_a_warning(self) -> None:
        _, found = model.model(config(), ModelProbe(MODEL, "cuda:0", 16, 0.1), REPORT)
        assert "takes at most 16 frames" in found.message

    @pytest.mark.parametrize(("batch_s", "status"), [(0.04, "ok"), (0.0, "ok"), (4.0, "warning"), (60.0, "problem")])
    def test_the_engine_fits_the_times_it_is_given(self, batch_s: float, status: str) -> None:
        """Drain 25 s, half of it on a rebalance, four batches in flight; a stall is 60 s."""
        assert verdict(model.engine(config(), ModelProbe(MODEL, "cuda:0", 32, batch_s), REPORT)) == status


# Connectivity


@pytest.mark.parametrize(
    ("errors", "step"),
    [
        ([(Code._TRANSPORT, "b: Connect to ipv4#10.0.0.1:9092 failed: Connection refused")], "connection"),
        ([(Code._RESOLVE, "b: Failed to resolve 'b:9092'")], "name"),
        ([(Code._ALL_BROKERS_DOWN, "1/1 down"), (Code._SSL, "certificate verify failed")], "TLS"),
        ([(Code._TRANSPORT, "b: Receive failed: SSL routines: SSL alert number 42")], "TLS"),
        ([(Code._TRANSPORT, "b: SSL handshake failed: connecting to a PLAINTEXT broker listener?")], "protocol"),
        ([(Code._TRANSPORT, "b: Disconnected: connection closed by peer: (in state APIVERSION_QUERY)")], "protocol"),
        ([(Code._TRANSPORT, "x"), (Code._AUTHENTICATION, "invalid credentials")], "login"),
        ([(Code._TIMED_OUT, "Failed to get metadata: Local: Timed out")], "first answer"),
    ],
)
def test_the_step_that_failed_is_identified(errors: list[tuple[int, str]], step: str) -> None:
    failure = connectivity.classify_failure(errors)
    assert failure.step == step
    assert failure.error in [text for _, text in errors]
    assert failure.fix


def test_each_broker_must_be_where_it_says_it_is() -> None:
    both = connectivity.Connectivity({1: "a:9092", 2: "b:9092"}, {})
    failure = connectivity.ConnectionFailure("name", "cannot resolve b", "correct it")
    assert verdict(connectivity.brokers("boot:1", both, {}, REPORT)) == "ok"
    found = one(connectivity.brokers("boot:1", both, {2: failure}, REPORT))
    assert (found.status, found.fix) == ("problem", "correct it")
    assert "broker 2 announces itself as b:9092" in found.message
    nobody = connectivity.Connectivity({}, {}, failure)
    assert "no answer from boot:1" in one(connectivity.brokers("boot:1", nobody, {}, REPORT)).message


def test_a_wrong_advertised_address_is_named_if_the_client_used_it_at_once() -> None:
    """Catches a message that blames the bootstrap server, which has answered."""
    gone = connectivity.ConnectionFailure(
        "connection", "10.0.0.5:9092/3: Connect to ipv4#10.0.0.5:9092 failed", "check it"
    )
    found = one(connectivity.brokers("boot:1", connectivity.Connectivity({}, {}, gone), {}, REPORT))
    assert "broker 3 announces itself as 10.0.0.5:9092" in found.message
    away = connectivity.ConnectionFailure(
        "connection", "boot:1/bootstrap: Connect to ipv4#10.0.0.4:1 failed", "check it"
    )
    assert (
        "no answer from boot:1"
        in one(connectivity.brokers("boot:1", connectivity.Connectivity({}, {}, away), {}, REPORT)).message
    )


CLASSIC = {0: (0, 11), 22: (0, 5)}
MODERN = {**CLASSIC, 25: (0, 4), 26: (0, 4), 28: (0, 4), 68: (0, 1)}


@pytest.mark.parametrize(
    ("apis", "protocol", "delivery", "status"),
    [
        (MODERN, "consumer", "exactly_once", "ok"),
        (CLASSIC, "classic", "at_least_once", "ok"),
        (CLASSIC, "consumer", "at_least_once", "problem"),
        (CLASSIC, "classic", "exactly_once", "problem"),
        ({0: (0, 2)}, "classic", "at_least_once", "problem"),
        ({}, "classic", "at_least_once", "skipped"),
    ],
)
def test_the_brokers_can_do_what_is_configured(apis: Any, protocol: str, delivery: str, status: str) -> None:
    assert verdict(connectivity.features(apis, protocol, delivery, REPORT)) == status


# Topics


def topic(name: str, partitions: int = 4, limit: int | None = MIB, **more: Any) -> Topic:
    told = None if limit is None else {"max.message.bytes": str(limit), **more.pop("settings", {})}
    return Topic(name, partitions, more.pop("replicas", 3), settings=told, **more)


def three(*, frames_: Topic | None = None, output: Topic | None = None, dead: Topic | None = None) -> Topics:
    return Topics(
        [frames_ or topic("frames")], output or topic("detections"), dead or topic("frames-dead", limit=2 * MIB)
    )


def test_a_missing_topic_is_a_problem_and_a_hidden_one_a_matter_of_rights() -> None:
    missing = Topic("frames", error="Unknown topic", missing=True)
    found = list(topics.exist(three(frames_=missing), REPORT))
    assert [each.status for each in found] == ["problem", "ok"]
    assert "there is no topic frames" in found[0].message
    hidden = Topic("frames", error="Topic authorization failed", hidden=True)
    assert [each.status for each in topics.exist(three(frames_=hidden), REPORT)] == ["skipped", "ok"]
    assert verdict(topics.exist(three(), REPORT)) == "ok"


def test_more_pods_than_partitions_is_a_warning() -> None:
    def found(pods: int | None, members: int = 0) -> list[str]:
        state = Group("g", members=[1] * members)
        return [str(each.status) for each in topics.partitions(config(), three(), state, pods, REPORT)]

    assert found(4) == ["ok"]
    assert found(5) == ["warning"]
    assert found(None) == ["ok"]
    assert found(None, members=6) == ["warning"]
    assert found(3, members=6) == ["ok"], "--pods is asked first"


def test_output_and_input_of_different_width_is_a_warning() -> None:
    found = list(topics.partitions(config(), three(output=topic("detections", 8)), None, None, REPORT))
    assert [each.status for each in found] == ["ok", "warning"]
    assert "detections has 8 partitions, frames has 4" in found[1].message


@pytest.mark.parametrize(
    ("replicas", "in_sync", "brokers", "status"),
    [(3, 2, 3, "ok"), (1, 1, 3, "warning"), (1, 1, 1, "ok"), (3, 3, 3, "warning"), (2, 2, 3, "warning")],
)
def test_copies_of_what_was_acknowledged(replicas: int, in_sync: int, brokers: int, status: str) -> None:
    made = topic("detections", replicas=replicas, settings={"min.insync.replicas": str(in_sync)})
    assert verdict(topics.replication(three(output=made), brokers, REPORT)) == status


# Rights


READ, WRITE = frozenset({"READ", "DESCRIBE"}), frozenset({"WRITE", "DESCRIBE"})


class TestRights:
    @staticmethod
    def judge(
        frames_: Any = READ, output: Any = WRITE, dead: Any = WRITE, group_: Any = READ, *, hidden: bool = False
    ) -> list[Finding]:
        made = three(
            frames_=topic("frames", rights=frames_),
            output=topic("detections", rights=output),
            dead=topic("frames-dead", rights=dead),
        )
        return list(rights.rights(config(), made, Group("sluice", group_, hidden=hidden), REPORT))

    def test_the_four_grants_are_enough(self) -> None:
        assert verdict(self.judge()) == "ok"

    @pytest.mark.parametrize(
        ("case", "words"),
        [
            ({"frames_": WRITE}, "READ on topic frames is missing"),
            ({"output": READ}, "WRITE on topic detections is missing"),
            ({"dead": READ}, "WRITE on topic frames-dead is missing"),
            ({"group_": frozenset({"DESCRIBE"})}, "READ on group sluice is missing"),
            ({"group_": None, "hidden": True}, "READ on group sluice is missing"),
        ],
    )
    def test_each_missing_one_is_named_with_its_grant(self, case: dict[str, Any], words: str) -> None:
        found = one(self.judge(**case))
        assert (found.status, found.message) == ("problem", words)
        right, _, kind, name = words.split()[:4]
        assert f"--operation {right.capitalize()} --{kind} {name}" in found.fix

    def test_a_topic_that_may_not_be_described_is_one_without_rights(self) -> None:
        hidden = Topic("detections", error="Topic authorization failed", hidden=True)
        made = three(frames_=topic("frames", rights=READ), output=hidden, dead=topic("frames-dead", rights=WRITE))
        assert (
            "WRITE on topic detections is missing"
            in one(rights.rights(config(), made, Group("g", READ), REPORT)).message
        )

    def test_those_on_a_missing_topic_are_not_called_ok(self) -> None:
        missing = Topic("detections", error="Unknown topic", missing=True)
        made = three(frames_=topic("frames", rights=READ), output=missing, dead=topic("frames-dead", rights=WRITE))
        found = one(rights.rights(config(), made, Group("g", READ), REPORT))
        assert (found.status, "described: detections" in found.message) == ("skipped", True)

    def test_what_the_brokers_do_not_report_is_not_called_ok(self) -> None:
        found = one(self.judge(output=None, group_=None))
        assert found.status == "skipped"
        assert "topic detections, group sluice" in found.message


@pytest.mark.parametrize(
    ("code", "own_id", "status"),
    [
        (None, "", "ok"),
        (Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "", "problem"),
        (Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "mine", "warning"),  # it may be granted for that name alone
        (Code._TIMED_OUT, "mine", "problem"),
    ],
)
def test_the_right_to_make_transactions(code: int | None, own_id: str, status: str) -> None:
    made = config(delivery="exactly_once", kafka={"transactional_id": own_id})
    refusal = None if code is None else Code(code)
    assert verdict(rights.transactions(made, "x-doctor", refusal, REPORT)) == status


# Sizes


class TestSizes:
    @pytest.mark.parametrize(
        ("limit", "consumer", "decode", "status"),
        [
            (MIB, {}, 16 * MIB, "ok"),
            (8 * MIB, {}, 16 * MIB, "ok"),  # more than a fetch, but it comes
            (8 * MIB, {}, 4 * MIB, "warning"),
            (17 * MIB, {}, 16 * MIB, "ok"),  # the image has room around it: so are the topics of docker-compose.yml
            (200 * MIB, {}, 256 * MIB, "problem"),
            (200 * MIB, {"receive.message.max.bytes": 300 * MIB, "fetch.max.bytes": 200 * MIB}, 256 * MIB, "ok"),
            (None, {}, MIB, "skipped"),
        ],
    )
    def test_of_frames(self, limit: int | None, consumer: dict[str, Any], decode: int, status: str) -> None:
        made = config(kafka={"consumer": consumer}, decode={"max_bytes": decode})
        there = three(frames_=topic("frames", limit=limit))
        assert verdict(sizes.frames(made, there, consumer_settings(made), REPORT)) == status

    @pytest.mark.parametrize(
        ("limit", "producer", "detections", "status"),
        [
            (MIB, {}, 300, "ok"),
            (20_000, {}, 300, "problem"),  # the result itself
            (500_000, {}, 300, "problem"),  # a full batch of results
            (500_000, {"batch.size": 250_000}, 300, "ok"),
            (MIB, {"message.max.bytes": 20_000}, 300, "problem"),
            (None, {}, 300, "skipped"),
        ],
    )
    def test_of_results(self, limit: int | None, producer: dict[str, Any], detections: int, status: str) -> None:
        made = config(kafka={"producer": producer}, detector={"model": "m", "max_detections": detections})
        there = three(output=topic("detections", limit=limit))
        assert verdict(sizes.results(made, there, producer_settings(made), MODEL, REPORT)) == status

    def test_of_missing_topics_are_skipped_with_a_finding(self) -> None:
        """Catches a check without a finding, so that --json lacks its name."""
        gone = {name: Topic(name, error="Unknown topic", missing=True) for name in ("frames", "detections", "dead")}
        there = three(frames_=gone["frames"], output=gone["detections"], dead=gone["dead"])
        made = config()
        for found, name in (
            (sizes.frames(made, there, consumer_settings(made), REPORT), "frames"),
            (sizes.results(made, there, producer_settings(made), MODEL, REPORT), "detections"),
            (sizes.dead_letters(there, producer_settings(made), REPORT), "dead"),
        ):
            finding = one(found)
            assert (finding.status, f"{name} could not be described" in finding.message) == ("skipped", True)

    @pytest.mark.parametrize("format_", ["msgpack", "json"])
    def test_the_largest_result_grows_with_what_is_allowed(self, format_: str) -> None:
        """Catches an estimate that forgets the labels, the format, or the number of detections."""

        def largest(count: int, label: str) -> int:
            made = config(detector={"model": "m", "max_detections": count}, output={"format": format_})
            return sizes.largest_result(made, ModelInfo("m", "sha256:0", {0: "x", 1: label}))

        assert largest(300, "car") > 2 * largest(100, "car")
        assert largest(300, "a" * 103) - largest(300, "a" * 3) >= 300 * 100

    @pytest.mark.parametrize(
        ("dead", "frames_", "producer", "status"),
        [
            (2 * MIB, MIB, {}, "ok"),
            (MIB, MIB, {}, "warning"),
            (60_000, MIB, {}, "problem"),
            (2 * MIB, MIB, {"message.max.bytes": MIB}, "warning"),
            (None, MIB, {}, "skipped"),
            (MIB, None, {}, "ok"),
        ],
    )
    def test_of_dead_letters(
        self, dead: int | None, frames_: int | None, producer: dict[str, Any], status: str
    ) -> None:
        made = config(kafka={"producer": producer})
        there = three(frames_=topic("frames", limit=frames_), dead=topic("frames-dead", limit=dead))
        assert verdict(sizes.dead_letters(there, producer_settings(made), REPORT)) == status


# The group


P0, P1 = TopicPartition("frames", 0), TopicPartition("frames", 1)


@pytest.mark.parametrize(
    ("committed", "statuses", "words"),
    [
        ({P0: 50, P1: 100}, ["ok"], "50 frames behind in 2 partitions"),
        ({P0: -1, P1: 100}, ["ok"], "90 frames behind in 2 partitions; 1 partitions have no offset yet"),
        ({P0: 9, P1: 100}, ["problem"], "frames[0]: 9 is committed, 10 is the oldest"),
        ({P0: 101, P1: 100}, ["problem"], "frames[0]: 101 is committed, it ends at 100"),
        ({P0: 9, P1: 101}, ["problem", "problem"], "deleted before they were read"),
    ],
)
def test_committed_offsets_lie_within_the_log(committed: Any, statuses: list[str], words: str) -> None:
    found = list(group.offsets(Group("g", committed=committed), {P0: (10, 100), P1: (0, 100)}, "error", REPORT))
    assert [each.status for each in found] == statuses
    assert words in found[0].message


@pytest.mark.parametrize("committed", [{P0: 5, P1: 7}, {P0: 50, P1: 101}, {P0: 5, P1: 101}])
def test_missing_offsets_are_a_warning_if_auto_offset_reset_is_set(committed: Any) -> None:
    """Catches an init container that refuses a pod whose setting the doctor itself has recommended."""
    found = one(group.offsets(Group("g", committed=committed), {P0: (10, 100), P1: (0, 100)}, "earliest", REPORT))
    assert found.status == "warning"
    assert "continues with auto.offset.reset: earliest" in found.message


@pytest.mark.parametrize(("reset", "where"), [("error", "beginning"), ("earliest", "beginning"), ("latest", "end")])
def test_says_where_partitions_without_an_offset_begin(reset: str, where: str) -> None:
    found = one(group.offsets(Group("g", committed={P0: -1}), {P0: (0, 9)}, reset, REPORT))
    assert (found.status, f"from their {where}" in found.message) == ("ok", True)


def test_offsets_that_cannot_be_read() -> None:
    assert verdict(group.offsets(Group("g", hidden=True), {}, "error", REPORT)) == "skipped"
    assert verdict(group.offsets(Group("g", error="timed out"), {}, "error", REPORT)) == "problem"


# Frames


def seen(source: str, partition: int, *, key: bytes | None = b"", ahead_ms: int = -50, **more: Any) -> SampledFrame:
    stamp = more.pop("timestamp_ms", 1_700_000_000_000)
    mine = source.encode() if key == b"" else key
    at = TopicPartition("frames", partition)
    return SampledFrame(at, source, mine, stamp, more.pop("by_broker", False), ahead_ms, more.pop("live", False))


def test_murmur2_is_that_of_java() -> None:
    """Values from Apache Kafka's own UtilsTest, made positive as its partitioner does."""
    for key, expected in {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }.items():
        assert frames.murmur2(key) == expected & 0x7FFFFFFF, key


class TestPartitioning:
    COUNT = {"frames": 4}

    def judge(self, *sample: SampledFrame, count: int = 4) -> Finding:
        return one(frames.partitioning(sample, {"frames": count}, REPORT))

    def home(self, source: str) -> int:
        return frames.murmur2(source.encode()) % 4

    def test_no_frames_are_skipped(self) -> None:
        assert self.judge().status == "skipped"

    def test_where_java_puts_them_is_fine(self) -> None:
        found = self.judge(*(seen(f"cam-{n % 5}", self.home(f"cam-{n % 5}")) for n in range(50)))
        assert (found.status, "5 sources in the newest 50 frames" in found.message) == ("ok", True)

    def test_one_source_in_two_partitions_is_a_problem(self) -> None:
        found = self.judge(seen("cam-1", 0), seen("cam-1", 3), seen("cam-2", 1))
        assert found.status == "problem"
        assert "cam-1 in partitions 0, 3 of frames" in found.message
        assert "cam-2" not in found.message

    def test_sources_without_a_key_are_judged_too(self) -> None:
        assert self.judge(seen("cam-1", 0, key=None), seen("cam-1", 3, key=None)).status == "problem"
        assert self.judge(seen("cam-1", 2, key=None)).status == "ok"

    def test_the_partitioner_of_librdkafka_is_a_warning_that_names_it(self) -> None:
        """Catches a check that passes as long as there is one kind of producer, and a second that then splits all."""
        names = [f"cam-{n}" for n in range(20)]
        found = self.judge(*(seen(name, zlib.crc32(name.encode()) % 4) for name in names))
        assert (found.status, "consistent_random" in found.message) == ("warning", True)

    def test_another_partitioner_is_a_warning(self) -> None:
        found = self.judge(*(seen(f"cam-{n}", (self.home(f"cam-{n}") + 1) % 4) for n in range(20)))
        assert (found.status, "consistent_random" in found.message) == ("warning", False)

    def test_with_one_partition_there_is_nothing_to_choose(self) -> None:
        assert self.judge(seen("cam-1", 0), count=1).status == "ok"


class TestClocks:
    @pytest.mark.parametrize(
        ("ahead_ms", "live", "status"),
        [
            (-50, True, "ok"),
            (-50, False, "ok"),
            (-3_600_000, False, "ok"),  # an old frame says nothing
            (5000, False, "warning"),
            (5000, True, "warning"),
            (-60_000, True, "warning"),
        ],
    )
    @pytest.mark.parametrize("by_broker", [True, False])
    def test_a_frame_from_the_future_or_one_that_comes_in_old(
        self, ahead_ms: int, live: bool, status: str, by_broker: bool
    ) -> None:
        found = one(frames.clocks([seen("cam-1", 0, ahead_ms=ahead_ms, live=live, by_broker=by_broker)], REPORT))
        assert found.status == status
        assert ("the brokers' clock" if by_broker else "a producer's clock") in found.message

    def test_the_freshest_counts(self) -> None:
        """Catches one late camera that makes every clock look wrong."""
        late, fresh = seen("cam-1", 0, ahead_ms=-60_000, live=True), seen("cam-2", 0, ahead_ms=-20, live=True)
        assert verdict(frames.clocks([late, fresh], REPORT)) == "ok"

    def test_without_timestamps_nothing_is_said(self) -> None:
        assert verdict(frames.clocks([], REPORT)) == "skipped"
        assert verdict(frames.clocks([seen("cam-1", 0, timestamp_ms=None)], REPORT)) == "skipped"
