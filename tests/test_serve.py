"""`serve`: in which order the objects come to be, and go."""

from __future__ import annotations

import json
import time

import confluent_kafka
import pytest

from brokers import APACHE, Broker
from consumer.__main__ import serve
from consumer.config import Config
from consumer.deadline import Stop
from consumer.errors import ModelError
from consumer.tools.embedded import free_port
from sluice_process import Topics, running
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
