"""Health: the answers of the probes in each state, the metrics as Prometheus reads them, and the watchdog."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import re
import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from consumer.config import HttpConfig
from consumer.errors import ConfigError, StalledError
from consumer.observability.health import MAX_CONNECTIONS, Health, HealthServer, State, Watchdog
from consumer.observability.metrics import Metrics
from consumer.types import Acknowledged, DeviceMemory, Lag, Rejected, Skipped, StageTimings
from made_frames import P0, P1, VirtualClock, detected, frame, result
from waiting import wait_until

STALL_S = 60.0


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def health(clock: VirtualClock) -> Health:
    return Health(clock=clock, stall_timeout_s=STALL_S)


class TestStates:
    def test_starting_is_alive_and_not_ready_however_long_it_takes(self, health: Health, clock: VirtualClock) -> None:
        """Catches a pod that is killed while it loads its model, and one that gets partitions before."""
        clock.advance(10 * STALL_S)
        assert (health.alive, health.ready, health.stalled) == (True, False, False)

    def test_running_is_ready(self, health: Health) -> None:
        health.state = State.RUNNING
        assert (health.alive, health.ready) == (True, True)

    def test_a_slow_loop_is_not_ready_and_a_hung_loop_is_not_alive(self, health: Health, clock: VirtualClock) -> None:
        health.state = State.RUNNING
        clock.advance(11)
        assert (health.alive, health.ready) == (True, False)
        clock.advance(STALL_S)
        assert (health.alive, health.stalled) == (False, True)
        health.beat()
        assert (health.alive, health.ready) == (True, True)

    def test_draining_is_alive_and_not_ready(self, health: Health) -> None:
        health.state = State.DRAINING
        assert (health.alive, health.ready) == (True, False)

    def test_failed_is_neither(self, health: Health) -> None:
        health.state = State.FAILED
        assert (health.alive, health.ready) == (False, False)

    def test_the_numbers_of_the_states_do_not_change(self) -> None:
        """They are exported, and dashboards use them."""
        assert {state.name: state.value for state in State} == {"STARTING": 0, "RUNNING": 1, "DRAINING": 2, "FAILED": 3}


class TestHttp:
    @pytest.fixture
    def server(self, health: Health) -> Iterator[HealthServer]:
        self.metrics = Metrics()
        server = HealthServer(HttpConfig(port=0), health, self.metrics)
        server.start()
        yield server
        server.close()

    @staticmethod
    def get(server: HealthServer, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    @pytest.mark.parametrize(
        ("state", "live", "ready"),
        [(State.STARTING, 200, 503), (State.RUNNING, 200, 200), (State.DRAINING, 200, 503), (State.FAILED, 503, 503)],
    )
    def test_probes_follow_the_state(
        self, server: HealthServer, health: Health, state: State, live: int, ready: int
    ) -> None:
        health.state = state
        name = state.name.lower() + "\n"
        assert self.get(server, "/healthz") == (live, name)
        assert self.get(server, "/readyz?verbose") == (ready, name)

    def test_probes_follow_the_age_of_the_loop(self, server: HealthServer, health: Health, clock: VirtualClock) -> None:
        """Catches a pod that is kept in service, or alive, because its state is still running."""
        health.state = State.RUNNING
        for age_s, live, ready in ((9, 200, 200), (11, 200, 503), (STALL_S + 1, 503, 503)):
            health.beat()
            clock.advance(age_s)
            assert (self.get(server, "/healthz")[0], self.get(server, "/readyz")[0]) == (live, ready)
        health.beat()
        assert self.get(server, "/readyz")[0] == 200

    def test_other_paths_are_not_found(self, server: HealthServer) -> None:
        """Catches a probe with a wrong path that always succeeds."""
        for path in ("/", "/health", "/healthz/x", "/../etc/passwd"):
            assert self.get(server, path)[0] == 404

    def test_metrics_are_in_the_format_of_prometheus(
        self, server: HealthServer, health: Health, clock: VirtualClock
    ) -> None:
        health.state = State.RUNNING
        clock.advance(2)
        _, text = self.get(server, "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert families["sluice_loop_age_seconds"].samples[0].value == 2
        assert families["sluice_ready"].samples[0].value == 1
        assert all(family.documentation for family in families.values())
        assert families["sluice_frames_received"].type == "counter"

    def test_a_silent_client_does_not_delay_other_clients(self, server: HealthServer) -> None:
        """Catches a server with one thread: a port scan would make the pod not ready."""
        silent = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        silent.connect()
        try:
            assert self.get(server, "/healthz")[0] == 200
        finally:
            silent.close()

    def test_many_connections_do_not_block_a_probe_or_grow_the_process(
        self, server: HealthServer, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Catches a thread for each client: every client could use up memory, and the probes of the pod would fail."""
        threads = threading.active_count()
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(300)]
        try:
            for connection in silent[::2]:
                with contextlib.suppress(OSError):  # the server may have closed it
                    connection.sendall(b"GET /healthz HT")
            assert self.get(server, "/healthz")[0] == 200
            wait_until(
                lambda: threading.active_count() <= threads + MAX_CONNECTIONS + 1, 4, "the threads of shed connections"
            )
        finally:
            for connection in silent:
                connection.close()
        assert "Traceback" not in capfd.readouterr().err

    def test_a_server_that_never_started_closes_too(self, health: Health) -> None:
        """Catches a process that hangs during its exit after an early error."""
        HealthServer(HttpConfig(port=0), health, Metrics()).close()

    def test_the_error_for_a_port_in_use_has_the_address(self, server: HealthServer, health: Health) -> None:
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{server.port}: Address already in use"):
            HealthServer(HttpConfig(port=server.port), health, Metrics())


class TestWatchdog:
    @pytest.fixture
    def ended(self, health: Health) -> Iterator[list[int]]:
        ended: list[int] = []
        watchdog = Watchdog(health, ended.append)
        watchdog.start()
        yield ended
        watchdog.close()
        watchdog._thread.join(5)

    def test_ends_the_process_when_the_loop_hangs(self, health: Health, clock: VirtualClock, ended: list[int]) -> None:
        """Catches a group member that sends heartbeats in the background and keeps its partitions without end."""
        health.state = State.RUNNING
        clock.advance(STALL_S + 1)
        wait_until(lambda: ended, 10, "the watchdog")
        assert ended == [StalledError.exit_code]

    def test_logs_where_the_loop_hangs(self, health: Health, clock: VirtualClock, ended: list[int]) -> None:
        """The log line is all that is left of the process."""
        with capture_logs() as lines:
            health.state = State.RUNNING
            clock.advance(STALL_S + 1)
            wait_until(lambda: ended, 10, "the watchdog")
        (said,) = [line for line in lines if line["log_level"] == "critical"]
        assert any("test_logs_where_the_loop_hangs" in call for call in said["at"])
        assert any(re.fullmatch(r"support/waiting\.py:\d+ wait_until", call) for call in said["at"])

    def test_does_nothing_while_the_process_starts_or_the_loop_runs(self, clock: VirtualClock) -> None:
        looked = threading.Semaphore(0)

        class Watched(Health):
            @property
            def stalled(self) -> bool:
                looked.release()
                return super().stalled

        health = Watched(clock=clock, stall_timeout_s=STALL_S)
        ended: list[int] = []
        watchdog = Watchdog(health, ended.append)
        watchdog.start()
        clock.advance(10 * STALL_S)
        assert looked.acquire(timeout=10)
        health.beat()
        health.state = State.RUNNING
        clock.advance(STALL_S)
        assert looked.acquire(timeout=10)
        watchdog.close()
        watchdog._thread.join(5)
        assert ended == []


class TestMetrics:
    @pytest.fixture
    def metrics(self) -> Metrics:
        return Metrics()

    def test_outcomes_are_counted_by_kind_when_they_are_acknowledged(self, metrics: Metrics) -> None:
        refused = Rejected("decode", "damaged", "")
        done = [
            Acknowledged(frame(n, captured_at_ms=0), outcome, 1.0)
            for n, outcome in enumerate([detected(), detected(), Skipped("stale", 1.0), refused])
        ]
        metrics.acknowledged(done, now_s=3.0, now_ms=500)
        value = metrics.registry.get_sample_value
        counted = {k: value("sluice_outcomes_total", {"outcome": k}) for k in ("detected", "skipped", "rejected")}
        assert counted == {"detected": 2, "skipped": 1, "rejected": 1}
        assert value("sluice_rejected_total", {"stage": "decode", "reason": "damaged"}) == 1
        assert value("sluice_latency_seconds_sum") == 4 * 0.5
        assert value("sluice_stage_seconds_sum", {"stage": "acknowledge"}) == 4 * 2.0

    def test_a_batch_is_measured_once_and_its_frames_each(self, metrics: Metrics) -> None:
        metrics.batch(result([frame(n, at=999.5) for n in range(4)], taken_at=1000.0))
        value = metrics.registry.get_sample_value
        assert value("sluice_batch_size_frames_sum") == 4
        assert value("sluice_batches_total", {"closed_by": "size"}) == 1
        assert value("sluice_stage_seconds_count", {"stage": "queue"}) == 4
        assert value("sluice_stage_seconds_sum", {"stage": "queue"}) == 2.0

    def test_the_decode_threads_work_is_counted_against_their_number(self, metrics: Metrics) -> None:
        batch = result([frame(0)], taken_at=1000.0)
        metrics.batch(dataclasses.replace(batch, timings=StageTimings(1.0, 2.0, decode_ms=8.0)))
        value = metrics.registry.get_sample_value
        assert value("sluice_decode_busy_seconds_total") == pytest.approx(0.008)
        assert value("sluice_stage_seconds_sum", {"stage": "decode"}) == pytest.approx(0.008)

    def test_a_commit_is_timed_and_a_refused_one_counted(self, metrics: Metrics) -> None:
        metrics.committed(0.25)
        metrics.committed(None)
        value = metrics.registry.get_sample_value
        assert (
            value("sluice_commits_total", {"result": "ok"}) == value("sluice_commits_total", {"result": "failed"}) == 1
        )
        assert value("sluice_stage_seconds_sum", {"stage": "commit"}) == 0.25

    def test_a_rebalance_counts_its_partitions_and_its_time(self, metrics: Metrics) -> None:
        metrics.rebalanced("revoked", partitions=3, assigned=1, seconds=0.5)
        value = metrics.registry.get_sample_value
        assert value("sluice_rebalances_total", {"event": "revoked"}) == 3
        assert value("sluice_rebalance_seconds_sum", {"event": "revoked"}) == 0.5
        assert value("sluice_assigned_partitions") == 1

    def test_device_memory_metrics_exist_only_with_a_gpu(self, metrics: Metrics) -> None:
        """Catches a 0 that an alert on free memory would take for a full GPU."""
        value = metrics.registry.get_sample_value
        metrics.device("cpu", None)
        assert b"sluice_gpu_memory_used_bytes{" not in generate_latest(metrics.registry)
        metrics.device("cuda:0", DeviceMemory(3, 10))
        assert value("sluice_gpu_memory_used_bytes", {"device": "cuda:0"}) == 3
        assert value("sluice_gpu_memory_total_bytes", {"device": "cuda:0"}) == 10

    def test_series_that_alerts_use_start_at_zero(self, metrics: Metrics) -> None:
        """Catches a series that begins with its first event: `rate` sees no increase in it, and the alert stays
        silent."""
        value = metrics.registry.get_sample_value
        assert value("sluice_outcomes_total", {"outcome": "rejected"}) == 0
        assert value("sluice_rebalances_total", {"event": "lost"}) == 0
        assert value("sluice_rebalance_seconds_count", {"event": "revoked"}) == 0
        assert value("sluice_commits_total", {"result": "failed"}) == 0

    def test_the_lag_of_a_revoked_partition_is_removed(self, metrics: Metrics) -> None:
        """Catches an alert on a partition that another pod already reads."""
        metrics.lag([Lag(P0, 5, 1.5), Lag(P1, 7, 2.5)])
        metrics.lag([Lag(P1, 6, 2.0)])
        value = metrics.registry.get_sample_value
        assert value("sluice_lag_records", {"topic": "frames", "partition": "0"}) is None
        assert value("sluice_lag_records", {"topic": "frames", "partition": "1"}) == 6
        assert value("sluice_lag_seconds", {"topic": "frames", "partition": "1"}) == 2.0

    def test_an_unknown_age_is_absent(self, metrics: Metrics) -> None:
        """Catches a 0, and the previous age, if frames wait and none has been read."""
        value, labels = metrics.registry.get_sample_value, {"topic": "frames", "partition": "0"}
        for seconds in (None, 1.5, None, None):
            metrics.lag([Lag(P0, 5, seconds)])
            assert value("sluice_lag_records", labels) == 5
            assert value("sluice_lag_seconds", labels) == seconds
        metrics.lag([])
        assert value("sluice_lag_records", labels) is None

    def test_no_label_is_a_source(self, metrics: Metrics) -> None:
        """Catches one time series per camera, of which a producer could create any number."""
        labels = {label for each in metrics.labels.values() for label in each}
        assert labels == {
            "outcome",
            "stage",
            "reason",
            "closed_by",
            "topic",
            "partition",
            "event",
            "result",
            "version",
            "model",
            "device",
        }
