"""The real program in the cage of a pod (tests/support/pod.py), on Apache Kafka, from its start to its end."""

from __future__ import annotations

import collections
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import pytest
from prometheus_client.parser import text_string_to_metric_families

import images
from apache_kafka import KafkaCluster
from brokers import Broker, unique_name
from pod import MOUNTED, USER, Pod, why_not
from sluice_process import Topics, produce, reading
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "consumer" / "tools" / "assets" / "demo.pt"
pytestmark = pytest.mark.kafka


@pytest.fixture
def cage() -> None:
    if reason := why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def get(pod: Pod, path: str) -> tuple[int, str]:
    """(status, body); status 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{pod.port}{path}", timeout=2) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


class Watcher:
    """Asks both pages all the time and keeps each answer that differs from the one before."""

    def __init__(self, pod: Pod) -> None:
        self.seen: list[tuple[int, int, str]] = []  # readyz, healthz, state
        self._pod = pod
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            (ready, state), (alive, _) = get(self._pod, "/readyz"), get(self._pod, "/healthz")
            if ready and alive and [(ready, alive, state.strip())] != self.seen[-1:]:
                self.seen.append((ready, alive, state.strip()))


def documented() -> dict[str, tuple[str, str, set[str]]]:
    """The table of metrics in the docs: name to type, meaning, labels."""
    section = ROOT.joinpath("docs/reference.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \w* \| ([\w, ]*) \| (.*) \|$", section, flags=re.MULTILINE)
    return {name: (kind, meaning, set(labels.split(", ")) - {""}) for name, kind, labels, meaning in rows}


def exposed(text: str) -> Iterator[tuple[str, str, str, list[set[str]]]]:
    """What a Prometheus parser makes of /metrics: name, type, meaning, the labels of each sample."""
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield name, family.type, family.documentation, [set(s.labels) - {"le"} for s in family.samples]


def check_metrics(text: str) -> None:
    """Each metric of the docs is there, with its type, meaning and labels, and no other."""
    table, found = documented(), list(exposed(text))
    assert {name: (kind, meaning) for name, kind, meaning, _ in found} == {
        name: (kind, meaning) for name, (kind, meaning, _) in table.items()
    }
    silent = {name for name, _, _, samples in found if not samples}
    assert silent == {"sluice_gpu_memory_used_bytes", "sluice_gpu_memory_total_bytes"}, "there is no GPU here"
    for name, _, _, samples in found:
        assert all(labels == table[name][2] for labels in samples), name


def check_cage(pod: Pod) -> None:
    """It is what a pod of the namespace "restricted" is: no root, no capability, nothing to write to but /tmp."""
    status = Path(f"/proc/{pod.process.pid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\s+(.*)$", status, flags=re.MULTILINE))
    assert fields["Uid"].split() == fields["Gid"].split() == [str(USER)] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["NSpid"].split()[-1] == "1"
    mounts = [line.split() for line in Path(f"/proc/{pod.process.pid}/mountinfo").read_text().splitlines()]
    writable = {mount[4] for mount in mounts if "rw" in mount[5].split(",")}
    assert {place for place in writable if not place.startswith(("/dev/", "/proc"))} == {"/tmp"}


def committed(kafka: KafkaCluster, group: str, topic: str, partitions: int) -> dict[int, int]:
    client = confluent_kafka.Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": group})
    try:
        asked = [confluent_kafka.TopicPartition(topic, n) for n in range(partitions)]
        return {each.partition: each.offset for each in client.committed(asked, timeout=10) if each.offset >= 0}
    finally:
        client.close()


@pytest.mark.timeout(240)
def test_a_pod_from_its_start_to_its_end(cage: None, apache_kafka: KafkaCluster, apache_broker: Broker) -> None:
    """Catches a write outside /tmp, a need for root, a signal that process 1 does not get, a page that says ready too
    early or too long, a metric that the docs do not know, and a drain that leaves something behind."""
    topics, group = Topics.on(apache_broker), unique_name("group")
    config = {
        "kafka": {"bootstrap_servers": apache_kafka.bootstrap_servers, "group_id": group},
        "input": {"topics": [topics.frames]},
        "output": {"topic": topics.detections},
        "dead_letter": {"topic": topics.dead},
        "batching": {"max_batch_size": 16},
    }
    files = {"sluice.yaml": json.dumps(config).encode(), "model.pt": MODEL.read_bytes()}
    environment = {
        "SLUICE_CONFIG": str(MOUNTED / "sluice.yaml"),
        "SLUICE_DETECTOR__MODEL": str(MOUNTED / "model.pt"),
        "SLUICE_DETECTOR__DEVICE": "cpu",
        "SLUICE_DETECTOR__IMAGE_SIZE": "320",
        "SLUICE_LOG__FORMAT": "json",
    }
    good = [images.jpeg(320, 240, seed) for seed in range(4)]
    with (
        Pod(environment, files) as pod,
        Watcher(pod) as watcher,
        reading(apache_broker, topics.detections) as results,
        reading(apache_broker, topics.dead) as morgue,
    ):
        wait_until(lambda: not pod.running or get(pod, "/readyz")[0] == 200, 120, "the pod to be ready")
        check_cage(pod)
        produce(apache_broker, topics.frames, [(f"cam-{n % 5}", good[n % 4]) for n in range(100)])
        produce(apache_broker, topics.frames, [("cam-bad", b"no image")] * 3)
        results.read(100, 60, alive=lambda: pod.running)
        morgue.read(3, 30, alive=lambda: pod.running)
        check_metrics(wait_until(lambda: seen_everything(pod), 10, "every stage in /metrics"))
        produce(apache_broker, topics.frames, [(f"cam-{n % 5}", good[n % 4]) for n in range(2000)])
        results.read(150, 60, alive=lambda: pod.running)
        code = pod.terminate()
        assert code == 0, pod.log
        results.drain()
        letters = morgue.drain()
        log, peak = pod.log, pod.peak_bytes
    print(f"memory limited by {pod.limited_by}, at most {peak}")
    assert watcher.seen == [
        (503, 200, "starting"), (200, 200, "running"), (503, 200, "draining"),
    ], log  # fmt: skip
    done = collections.defaultdict(list)
    for result in results.results():
        done[result["input"]["partition"]].append(result["input"]["offset"])
    for letter in letters:
        headers = dict(letter.headers())
        done[int(headers["__connect.errors.partition"])].append(int(headers["__connect.errors.offset"]))
    assert 150 < sum(map(len, done.values())) < 2100, "it was to be stopped in the middle"
    ends = committed(apache_kafka, group, topics.frames, 4)
    assert {partition: sorted(offsets) for partition, offsets in done.items()} == {
        partition: list(range(end)) for partition, end in ends.items()
    }, log
    assert json.loads(log.splitlines()[-1])["event"] == "drained"


def seen_everything(pod: Pod) -> str:
    """/metrics, once a commit was answered, the lag looked at and a dead letter counted, a moment after the results."""
    text = get(pod, "/metrics")[1]
    wanted = (
        r'sluice_stage_seconds_count\{stage="commit"\} [1-9]',
        r"sluice_lag_records\{",
        r"sluice_lag_seconds\{",
        r"sluice_rejected_total\{",
    )
    return text if all(re.search(each, text) for each in wanted) else ""
