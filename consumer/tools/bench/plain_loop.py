"""Child process: the simplest possible consumer. Poll, decode, predict, produce, commit; one frame at a time.

python -m consumer.tools.bench.plain_loop JSON     (the fields of `PlainLoopJob`)

It uses the decoder, the detector and the encoder of Sluice, so that only the loop differs.
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
class PlainLoopJob:
    """What to run.

    Attributes:
        bootstrap_servers: The address of the broker.
        group: The consumer group.
        consumer_settings: Settings of the consumer.
        topic: The topic of the frames.
        output: The topic of the results.
        model: The model, or the URL of a simulated one.
        device: The device of the model.
        count: The number of frames.
        commit_each: Flush and commit after each frame; else librdkafka commits every 5 s, as it does by default.
        embedded: Whether the broker is embedded; else the client settings are those of the configuration.
    """

    bootstrap_servers: str
    group: str
    consumer_settings: dict[str, Any]
    topic: str
    output: str
    model: str
    device: str
    count: int
    commit_each: bool
    embedded: bool = True

    def argument(self) -> str:
        """The job as the command line argument of the child process."""
        return json.dumps(asdict(self))


def run(job: PlainLoopJob) -> None:
    """Handle `count` frames and return.

    Raises:
        RuntimeError: A frame did not arrive.
        TypeError: A frame cannot be decoded.
    """
    detector = load_detector(DetectorConfig(model=job.model, device=job.device))
    detector.warm_up(1)
    decoder = Decoder(DecodeConfig(), detector.policy)
    encoder = ResultEncoder(format="msgpack", model=detector.info, source="/bench")
    slots = np.zeros((1, decoder.slot_bytes), np.uint8)
    common = {"bootstrap.servers": job.bootstrap_servers, **client_settings(is_embedded=job.embedded)}
    producer = Producer({**common, "linger.ms": 0, "enable.idempotence": True})
    consumer = Consumer(
        {
            **common,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": not job.commit_each,
            **job.consumer_settings,
        }
    )
    consumer.subscribe([job.topic])
    for _ in range(job.count):
        message = consumer.poll(_JOIN_S)
        if message is None or message.error() is not None:
            raise RuntimeError(f"no frame arrived: {message.error() if message else f'nothing for {_JOIN_S:.0f} s'}")
        result = _predict(message, decoder, detector, encoder, slots)
        producer.produce(
            job.output,
            result.value,
            result.key,
            headers=result.headers,  # type: ignore[arg-type] # the stubs' list is invariant
            timestamp=result.timestamp_ms or 0,
        )
        producer.poll(0)
        if job.commit_each:
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
    run(PlainLoopJob(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
