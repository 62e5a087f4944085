"""A real Prometheus with the project's own configuration, as a test fixture."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from consumer.tools.embedded import dies_with_parent, free_port, tail_of
from monitoring import MONITORING, RULES
from waiting import wait_until

SCRAPE_S = 1


class Prometheus:
    """`with Prometheus(["127.0.0.1:8080"]) as server`: k8s/monitoring/prometheus.yml, with these targets instead of
    those that Compose's DNS would name, and a faster pulse."""

    def __init__(self, targets: list[str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sluice-prometheus-"))
        config = yaml.safe_load(MONITORING.joinpath("prometheus.yml").read_text())
        config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
        config["rule_files"] = [str(RULES)]
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets}]
        self._config = self._folder / "prometheus.yml"
        self._config.write_text(yaml.safe_dump(config))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        program = shutil.which("prometheus")
        assert program, "needs prometheus: see tests/k8s/install.sh"
        command = [
            program,
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(dies_with_parent(command), stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, 30, "Prometheus to be ready")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of the API. AssertionError with what Prometheus says where it refuses."""
        url = f"http://127.0.0.1:{self._port}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        samples: list[dict[str, Any]] = self.get("/api/v1/query", query=expr)["result"]
        return samples

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, tail_of(self._log)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
