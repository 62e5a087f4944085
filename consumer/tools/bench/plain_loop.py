"""Child process: what one writes first. Poll, decode, predict, produce, commit; one frame at a time.

Run as `python -m consumer.tools.bench.plain_loop JSON`, with the fields of `PlainLoop`.

It uses Sluice's own decoder, detector and encoding, so that the difference is the loop alone.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer
from numpy.typing import NDArray

from consumer.config import DecodeConfig, DetectorConfig
from consumer.decoding import Decoder
from consumer.detectors.base import Detector
from consumer.detectors.loader import load_detector
from consumer.messages import Message, ResultEncoder, parse_frame, read_record
from consumer.tools.bench.broker import client_settings
from consumer.types import Detected, Letterbox, Receipt, TopicPartition

_JOIN_S = 60.0


@dataclass(frozen=True, slots=True)
class PlainLoop:
    """`each`: flush and commit for each frame; else librdkafka commits every 5 s, as it does by default."""

    bootstrap_servers: str
    group: str
    consumer_settings: dict[str, Any]
    topic: str
    output: str
    model: str
    device: str
    count: int
    each: bool
    own_broker: bool = True  # else its client settings are those of the configuration

    def argument(self) -> str:
        """For the command line of the child process."""
        return json.dumps(asdict(self))


def run(job: PlainLoop) -> None:
    """Handle `count` frames and return. Raises RuntimeError where they do not come, TypeError for what is no image."""
    detector = load_detector(DetectorConfig(model=job.model, device=job.device))
    detector.warm_up(1)
    decoder = Decoder(DecodeConfig(), detector.policy)
    encoder = ResultEncoder(format="msgpack", model=detector.info, source="/bench")
    slots = np.zeros((1, decoder.slot_bytes), np.uint8)
    common = {"bootstrap.servers": job.bootstrap_servers, **client_settings(is_ours=job.own_broker)}
    producer = Producer({**common, "linger.ms": 0, "enable.idempotence": True})
    consumer = Consumer(
        {
            **common,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": not job.each,
            **job.consumer_settings,
        }
    )
    consumer.subscribe([job.topic])
    for _ in range(job.count):
        message = consumer.poll(_JOIN_S)
        if message is None or message.error() is not None:
            raise RuntimeError(f"no frame came: {message.error() if message else f'nothing for {_JOIN_S:.0f} s'}")
        result = _predict(message, decoder, detector, encoder, slots)
        producer.produce(
            job.output,
            result.value,
            result.key,
            headers=result.headers,  # type: ignore[arg-type] # the stubs' list is invariant
            timestamp=result.timestamp_ms or 0,
        )
        producer.poll(0)
        if job.each:
            producer.flush()
            consumer.commit(message=message, asynchronous=False)
    producer.flush()
    consumer.close()


def _predict(
    message: Any, decoder: Decoder, detector: Detector, encoder: ResultEncoder, slots: NDArray[np.uint8]
) -> Message:
    """The result message of one input message."""
    arrived = time.monotonic()
    place = TopicPartition(message.topic(), message.partition())
    frame = parse_frame(read_record(message), Receipt(place, message.offset(), 0), arrived)
    letterbox = decoder.decode(frame.payload, slots[0])
    if not isinstance(letterbox, Letterbox):
        raise TypeError(f"{place} offset {message.offset()}: {letterbox.detail}")
    decoded = time.monotonic()
    [seen] = detector.detect(slots, [letterbox])
    timings = {"queue": 0.0, "decode_wait": (decoded - arrived) * 1000, "infer": (time.monotonic() - decoded) * 1000}
    outcome = Detected(seen, letterbox.width, letterbox.height)
    now_ms = time.time_ns() // 1_000_000
    return encoder.encode(frame, outcome, batch_size=1, timings_ms=timings, published_at_ms=now_ms)


def main() -> None:
    """Entry point of the child process."""
    run(PlainLoop(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
