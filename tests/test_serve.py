"""`serve`: in which order the objects come to be, and go."""

from __future__ import annotations

import time

import confluent_kafka
import pytest

from consumer.__main__ import serve
from consumer.config import Config
from consumer.errors import ModelError
from consumer.pipeline import Stop


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
