"""The ten-line producer and the ten-line reader of the README, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import images
from brokers import Broker
from consumer.tools.embedded import dies_with_parent
from sluice_process import Topics, running
from waiting import wait_until

pytestmark = pytest.mark.kafka

README = Path(__file__).parents[2] / "README.md"


def scripts(broker: Broker, topics: Topics) -> list[str]:
    """The README's Python, with this test's broker and topics."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    here = {
        "localhost:9092": broker.bootstrap_servers,
        'produce("frames"': f'produce("{topics.frames}"',
        'subscribe(["detections"])': f'subscribe(["{topics.detections}"])',
    }
    for said, meant in here.items():
        assert any(said in block for block in blocks), f"the README no longer says {said}"
        blocks = [block.replace(said, meant) for block in blocks]
    return blocks


def test_frames_of_the_producer_come_out_at_the_reader(apache_broker: Broker, tmp_path: Path) -> None:
    topics = Topics.on(apache_broker)
    (tmp_path / "frames").mkdir()
    for number in range(5):
        (tmp_path / "frames" / f"{number}.jpg").write_bytes(images.jpeg(64, 48, number))
    producer, reader = scripts(apache_broker, topics)
    subprocess.run([sys.executable, "-c", producer], cwd=tmp_path, check=True, timeout=60)
    seen = tmp_path / "seen"
    with (
        running(apache_broker, topics, "simulated://1ms@1") as sluice,
        seen.open("w") as out,
    ):
        reading = subprocess.Popen(dies_with_parent([sys.executable, "-u", "-c", reader]), cwd=tmp_path, stdout=out)
        try:
            wait_until(lambda: len(seen.read_text().splitlines()) == 5, 60, "five results")
        finally:
            reading.kill()
            reading.wait()
        assert sluice.terminate() == 0, sluice.log
    lines = [line.split() for line in seen.read_text().splitlines()]
    assert [line[0] for line in lines] == ["cam-1"] * 5
    assert [line[2] for line in lines] == ["['simulated']"] * 5
    assert [int(line[1].rpartition("-")[2]) for line in lines] == [0, 1, 2, 3, 4]
