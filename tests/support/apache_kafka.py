"""Apache Kafka as a test fixture: plain Java processes in KRaft mode, without Docker.

    with ApacheKafka(nodes=3) as kafka:
        kafka.create_topic("frames", partitions=6)
        kafka.kill(kafka.leader("frames", 0))

Start it from a thread that lives as long as it should (see `consumer.tools.embedded.dies_with_parent`).
"""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewTopic

from consumer.tools.embedded import dies_with_parent, free_port, tail_of
from kafka_jars import KafkaUnavailableError, classpath, java
from kafka_properties import HOST, Node, Value, render, server_properties
from waiting import wait_until

START_TIMEOUT_SECONDS = 90.0
_STOP_TIMEOUT_SECONDS = 30.0
_ANSWER_TIMEOUT_SECONDS = 10.0
# They live for seconds or minutes: what starts fast wins over what runs fast. So a node takes 3.9 s of CPU until it
# answers, and with the optimising compiler and G1 6.5 s; and that compiler goes on for minutes.
_SHORT_LIVED = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_BROKER_JVM = (*_SHORT_LIVED, "-Xms128m", "-Xmx512m", "-Dlog4j2.level=INFO")
_FORMAT_JVM = (*_SHORT_LIVED, "-Xmx128m")


def mount_small_disk(place: Path, mebibytes: int) -> None:
    """A disk in memory. Raises `KafkaUnavailableError` without the right to mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "sluice-test", str(place)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        raise KafkaUnavailableError(f"cannot mount a small disk: {said.stderr.strip()}")


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=False)


class KafkaCluster:
    """A cluster that runs somewhere: what a test may ask of any of them."""

    def __init__(self, bootstrap_servers: str, client_settings: Mapping[str, Value] | None = None) -> None:
        self._bootstrap_servers = bootstrap_servers
        self.client_settings = dict(client_settings or {})  # of a user who may do everything

    @property
    def bootstrap_servers(self) -> str:
        return self._bootstrap_servers

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        on: int | None = None,
        places: Sequence[Sequence[int]] | None = None,
        **config: Value,
    ) -> None:
        """Make a topic and wait until each partition has a leader. `max_message_bytes=1` is `max.message.bytes`.

        `on`: the only node that has it; default: three, or as many as there are. `places`: the nodes of each partition,
        its leader first; see `places`.
        """
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        if places is None and on is not None:
            places = [[on]] * partitions
        nodes = min(3, len(self.metadata().brokers))
        where = {"replication_factor": nodes} if places is None else {"replica_assignment": list(map(list, places))}
        topic = NewTopic(name, num_partitions=partitions, config=settings, **where)
        admin = self.admin()  # held until the answer is there: it fails when the client is collected
        admin.create_topics([topic])[name].result(_ANSWER_TIMEOUT_SECONDS)
        wait_until(lambda: self._has_leaders(name, partitions), 30, f"leaders of all partitions of {name}")

    def leader(self, topic: str, partition: int) -> int:
        """The node that leads a partition now; -1 while there is none."""
        leader: int = self.metadata().topics[topic].partitions[partition].leader
        return leader

    def places(self, topic: str) -> list[list[int]]:
        """The nodes of each partition, with its leader first."""
        partitions = self.metadata().topics[topic].partitions
        known = [partitions[number] for number in range(len(partitions))]
        return [[each.leader, *(node for node in each.replicas if node != each.leader)] for each in known]

    def in_sync(self) -> bool:
        """Every partition of every topic has a leader, and all its replicas."""
        try:
            topics = self.metadata().topics.values()
        except KafkaException:
            return False
        partitions = [partition for topic in topics for partition in topic.partitions.values()]
        return all(each.leader >= 0 and set(each.isrs) == set(each.replicas) for each in partitions)

    def metadata(self) -> ClusterMetadata:
        return self.admin().list_topics(timeout=_ANSWER_TIMEOUT_SECONDS)

    def admin(self) -> AdminClient:
        """A new client each time, which asks the nodes that are there now. It does not log: nodes die here."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0, **self.client_settings})

    def _has_leaders(self, topic: str, partitions: int) -> bool:
        found = self.metadata().topics.get(topic)
        return found is not None and [p.leader >= 0 for p in found.partitions.values()] == [True] * partitions


class ApacheKafka(KafkaCluster):
    """Nodes 1 to `nodes`, each broker and controller, of a new cluster in a temporary directory.

    `overrides` are broker settings, with `_` for `.`: `ApacheKafka(message_max_bytes=1000)`. `proxied` gives each node
    a second listener, which clients reach only through a proxy that follows `routes`.
    Raises `KafkaUnavailableError` where there is no Java or no way to the jars, `RuntimeError` with the end of the
    log when a node does not start.
    """

    def __init__(self, nodes: int = 1, *, proxied: bool = False, **overrides: Value) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="sluice-kafka-"))
        self._nodes = {number: self._new_node(number, proxied=proxied) for number in range(1, nodes + 1)}
        self._overrides = {name.replace("_", "."): value for name, value in overrides.items()}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._limited: list[int] = []  # nodes whose disk has an end
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        super().__init__(",".join(node.address for node in self._nodes.values()))

    def __enter__(self) -> ApacheKafka:
        try:
            self._classpath = classpath()
            self._format_storage()
            for number in self._nodes:
                self._launch(number)
            self._wait_for(self._nodes)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all nodes at once, without a goodbye to each other, and remove their data."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        for node in self._limited:
            unmount(self.data(node))
        shutil.rmtree(self._directory, ignore_errors=True)

    def limit_disks(self, mebibytes: int) -> None:
        """Before the start: give each node a disk of this size, in memory. It takes the right to mount (root)."""
        for node in self._nodes:
            self.data(node).mkdir()
            mount_small_disk(self.data(node), mebibytes)
            self._limited.append(node)

    @property
    def nodes(self) -> list[int]:
        return list(self._nodes)

    def data(self, node: int) -> Path:
        """Its only log directory."""
        return Path(self._nodes[node].data)

    def runs(self, node: int) -> bool:
        return node in self._processes and self._processes[node].poll() is None

    @property
    def routes(self) -> dict[int, int]:
        """With `proxied`: from the port that clients are told to the one behind it, for each node."""
        return dict(node.proxy for node in self._nodes.values() if node.proxy is not None)

    def kill(self, node: int) -> None:
        """SIGKILL: the machine is gone. Its data stays."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()

    def stop(self, node: int) -> None:
        """SIGTERM: it hands its partitions over and leaves."""
        process = self._processes.pop(node)
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self, node: int) -> None:
        """SIGSTOP: it is there, holds its connections, and does not answer."""
        self._processes[node].send_signal(signal.SIGSTOP)

    def resume(self, node: int) -> None:
        self._processes[node].send_signal(signal.SIGCONT)

    def restart(self, node: int) -> None:
        """Start a node again with its data and ports, after stopping it if it runs, and wait until it is back."""
        if node in self._processes:
            self.stop(node)
        self._launch(node)
        self._wait_for([node])

    def start(self, *nodes: int) -> None:
        """Start nodes that do not run, all at once, and wait until they are back: one alone may have no quorum."""
        for node in nodes:
            self._launch(node)
        self._wait_for(nodes)

    def pid(self, node: int) -> int:
        """The process ID of a node, for whoever measures it."""
        return self._processes[node].pid

    def log(self, node: int) -> Path:
        return self._directory / f"node-{node}.log"

    def _new_node(self, number: int, *, proxied: bool) -> Node:
        proxy = (free_port(HOST), free_port(HOST)) if proxied else None
        return Node(number, free_port(HOST), free_port(HOST), str(self._directory / f"data-{number}"), proxy)

    def _format_storage(self) -> None:
        formatting = {number: self._start_formatting(node) for number, node in self._nodes.items()}
        for number, process in formatting.items():
            said, _ = process.communicate(timeout=START_TIMEOUT_SECONDS)
            if process.returncode != 0:
                raise RuntimeError(f"cannot format the storage of node {number}:\n{said[-4000:]}")

    def _start_formatting(self, node: Node) -> subprocess.Popen[str]:
        properties = server_properties(node, list(self._nodes.values()), self._overrides)
        path = self._properties(node.id)
        path.write_text(render(properties))
        # With an equals sign: an ID may begin with a dash, which would look like an option.
        arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id}", "-c", str(path)]
        command = dies_with_parent(self._java(_FORMAT_JVM, [*arguments, *self._format_options()]))
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _format_options(self) -> Sequence[str]:
        """More for the formatting of the storage: users, for example."""
        return ()

    def _launch(self, node: int) -> None:
        command = dies_with_parent(self._java(_BROKER_JVM, ["kafka.Kafka", str(self._properties(node))]))
        with self.log(node).open("ab") as log:
            self._processes[node] = subprocess.Popen(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _java(self, options: Sequence[str], arguments: Sequence[str]) -> list[str]:
        return [java(), *options, "-cp", self._classpath, *arguments]

    def _properties(self, node: int) -> Path:
        return self._directory / f"node-{node}.properties"

    def _wait_for(self, nodes: Sequence[int] | dict[int, Node]) -> None:
        """Until the cluster lists `nodes` and each of them answers by itself. It may list one that died just now."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        for number in nodes:
            while not self._answers(number, set(nodes)):
                if (status := self._processes[number].poll()) is not None:
                    raise RuntimeError(self._failure(number, f"ended with status {status}"))
                if time.monotonic() > deadline:
                    raise RuntimeError(self._failure(number, f"did not answer within {START_TIMEOUT_SECONDS:.0f} s"))
                time.sleep(0.05)

    def _answers(self, node: int, expected: set[int]) -> bool:
        client = AdminClient(
            {
                "bootstrap.servers": self._nodes[node].address,
                "log_level": 0,
                "reconnect.backoff.max.ms": 100,
                **self.client_settings,
            }
        )
        try:
            seen = client.list_topics(timeout=2)
        except KafkaException:
            return False
        return seen.cluster_id == self._cluster_id and expected <= set(seen.brokers)

    def _failure(self, node: int, what: str) -> str:
        return f"node {node} of Apache Kafka {what}. Its log ends:\n{tail_of(self.log(node))}"
