"""`serve`: in which order the objects come to be, and go."""

from __future__ import annotations

import json
import signal
import time

import confluent_kafka
import pytest

import images
from brokers import APACHE, Broker
from consumer.app import serve
from consumer.concurrency import Stop
from consumer.config import Config
from consumer.errors import ModelError
from consumer.tools.embedded import free_port
from exactly_once import metric
from sluice_process import Topics, produce, running
from waiting import wait_until


def test_a_stop_is_heard_while_the_brokers_do_not_answer() -> None:
    """As one while the model loads: exit code 0. Catches a start that waits for brokers for half a minute first."""
    nowhere = Broker("nowhere", f"127.0.0.1:{free_port()}", {}, APACHE, lambda *_: None)
    topics = Topics("frames", "detections", "dead")
    with running(nowhere, topics, "simulated://1ms@1", delivery="exactly_once") as sluice:
        wait_until(lambda: "model ready" in sluice.log, 60, "the model")
        wait_until(lambda: "Connection refused" in sluice.log, 60, "a first try to connect")
        began = time.monotonic()
        assert sluice.terminate() == 0, sluice.log
        assert time.monotonic() - began < 3
    events = [json.loads(line) for line in sluice.log.splitlines()]
    assert not [event for event in events if event["event"] == "drained" or event["level"] == "critical"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_drain_at_once_and_says_so(broker: Broker, number: signal.Signals) -> None:
    """The first one waits for the engine. Catches a user who presses Ctrl-C again and again and waits 25 seconds."""
    topics = Topics.on(broker, partitions=1)
    with running(broker, topics, "simulated://30000ms@1,30000ms@32") as sluice:
        produce(broker, topics.frames, [("cam-1", images.jpeg(64, 48))])
        wait_until(lambda: metric(sluice, "in_flight_frames") == 1, 60, "the frame to be in the engine")
        sluice.signal(number)
        wait_until(lambda: metric(sluice, "state") == 2, 10, "the drain to begin")
        began = time.monotonic()
        sluice.signal(signal.SIGTERM)
        assert sluice.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 3
    assert "second signal: ended without draining" in sluice.log


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_no_client_exists_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch, delivery: str) -> None:
    """A load can take minutes. Catches a member of the group that does not poll for so long and loses its partitions,
    and a producer that fences its predecessor although it never comes to work."""
    made: list[str] = []
    monkeypatch.setattr(confluent_kafka, "Consumer", lambda *_, **__: made.append("consumer"))
    monkeypatch.setattr(confluent_kafka, "Producer", lambda *_, **__: made.append("producer"))

    def load(_config: object) -> None:
        assert made == []
        raise ModelError("it is loaded by now")

    monkeypatch.setattr("consumer.detectors.loader.load_detector", load)
    config = Config(delivery=delivery, detector={"model": "m.onnx"}, http={"port": 0})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="it is loaded by now"):
        serve(config, Stop(time.monotonic))
    assert made == []
