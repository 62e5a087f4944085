"""Checks the size limits of producer, topic, fetch, decoder, result and dead letter against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from consumer.config import Config
from consumer.messages import ResultEncoder
from consumer.tools.dlq.formatting import size
from consumer.tools.doctor.cluster import Topic
from consumer.tools.doctor.findings import Finding, Reporter
from consumer.tools.doctor.topics import Topics
from consumer.types import Detected, Detections, Frame, ModelInfo, Receipt, Record, TopicPartition

# librdkafka's defaults.
_RECEIVE, _FETCH, _PRODUCE_BATCH = 100_000_000, 1_048_576, 1_000_000
_HEADERS = 64 * 1024  # a generous limit for what a dead letter adds to the record: headers and framing
_SMALLEST_DEAD_LETTER = 60_000  # the producer truncates a dead letter no further
_FRAMING = 512  # of a fetch response, as librdkafka counts it
_AROUND = 16  # 1/16 of an image is enough for its key, its headers and the other fields of an envelope
_LATE_MS = 253_402_300_799_000  # the last second of the year 9999


def largest_result(config: Config, info: ModelInfo | None) -> int:
    """Bytes of a result with `detector.max_detections` detections, each with the longest label."""
    count = config.detector.max_detections
    labels = dict(info.labels) if info is not None else {}
    longest = max(labels, key=lambda number: len(labels[number].encode()), default=0)
    record = Record(b"s" * 256, b"", (), 0)
    where = Receipt(TopicPartition("t" * 249, 99_999), 2**53, 0)
    frame = Frame("s" * 256, "f" * 256, _LATE_MS, b"", 0.0, where, record, traceparent="0" * 55)
    detections = Detections(
        np.full((count, 4), 1234.5678, np.float32),
        np.full(count, 0.123456, np.float32),
        np.full(count, longest, np.int32),
    )
    name = info or ModelInfo("m" * 64, "sha256:" + "0" * 64, {0: "a label of thirty characters .."})
    encoder = ResultEncoder(format=config.output.format, model=name, source=f"/sluice/{config.kafka.group_id}")
    timings = {"queue": 12345.678, "decode_wait": 12345.678, "infer": 12345.678}
    message = encoder.encode(
        frame, Detected(detections, 99_999, 99_999), batch_size=1024, timings_ms=timings, published_at_ms=_LATE_MS
    )
    headers = sum(len(key) + len(value or b"") for key, value in message.headers)
    return len(message.value or b"") + len(message.key or b"") + headers


def frames(config: Config, topics: Topics, settings: Mapping[str, Any], report: Reporter) -> Iterator[Finding]:
    """Compare the limits for frames: topic, consumer and decoder. `settings`: those of the program's consumer."""
    receive = int(settings.get("receive.message.max.bytes", _RECEIVE))
    fetch = int(settings.get("fetch.message.max.bytes", settings.get("max.partition.fetch.bytes", _FETCH)))
    decode = config.decode.max_bytes
    for topic in topics.inputs:
        if topic.limit is None:
            yield report.skipped(_not_described(topic))
            continue
        accepted = f"{topic.name} accepts frames of {size(topic.limit)} (max.message.bytes)"
        if topic.limit + _FRAMING > receive:
            yield report.problem(
                f"{accepted}, the consumer accepts responses of {size(receive)}: a larger frame blocks its partition "
                "forever",
                f"set receive.message.max.bytes in kafka.consumer above {topic.limit + _FRAMING}",
            )
        elif topic.limit > decode + decode // _AROUND:
            yield report.warning(
                f"{accepted}, decode.max_bytes is {size(decode)}: a frame between these sizes becomes a dead letter",
                "raise decode.max_bytes, or lower max.message.bytes, so that the producer fails at once",
            )
        elif topic.limit > fetch:
            yield report.ok(
                f"{accepted}; those over {size(fetch)} (fetch.message.max.bytes) are fetched one per request, slowly"
            )
        else:
            yield report.ok(
                f"{accepted}; the consumer fetches {size(fetch)} per partition, the decoder accepts {size(decode)}"
            )


def results(
    config: Config, topics: Topics, settings: Mapping[str, Any], info: ModelInfo | None, report: Reporter
) -> Iterator[Finding]:
    """Compare the largest result with producer and output topic. `settings`: those of the program's producer."""
    most = largest_result(config, info)
    largest = f"a result of {config.detector.max_detections} detections has at most {size(most)}"
    produce = int(settings.get("message.max.bytes", _PRODUCE_BATCH))
    limit = topics.output.limit
    if most > produce:
        yield report.problem(
            f"{largest}, message.max.bytes of the producer is {size(produce)}: such a frame becomes a dead letter",
            f"raise message.max.bytes in kafka.producer above {most}, or lower detector.max_detections",
        )
    elif limit is None:
        yield report.skipped(f"{largest}; {_not_described(topics.output)}")
    elif most > limit:
        yield report.problem(
            f"{largest}, {topics.output.name} accepts {size(limit)} (max.message.bytes): such a frame becomes a dead "
            "letter",
            f"raise max.message.bytes of {topics.output.name} above {most}, or lower detector.max_detections",
        )
    elif (batch := int(settings.get("batch.size", _PRODUCE_BATCH))) > limit:
        yield report.problem(
            f"{topics.output.name} accepts {size(limit)} (max.message.bytes), and the producer sends batches of up to "
            f"{size(batch)} (batch.size): a full batch is refused. Without batch.size in kafka.producer, the program "
            "lowers it automatically if this user has DESCRIBE_CONFIGS on the topic",
            f"set batch.size in kafka.producer to {limit // 2}, or raise max.message.bytes of {topics.output.name}",
        )
    else:
        yield report.ok(f"{largest}, {topics.output.name} accepts {size(limit)}")


def dead_letters(topics: Topics, settings: Mapping[str, Any], report: Reporter) -> Iterator[Finding]:
    """Check that a dead letter holds a whole frame and its headers. `settings`: those of the program's producer."""
    limit, largest = topics.dead.limit, max((topic.limit or 0 for topic in topics.inputs), default=0)
    if limit is None:
        yield report.skipped(_not_described(topics.dead))
        return
    if "compact" in (topics.dead.settings or {}).get("cleanup.policy", ""):
        yield report.warning(
            f"{topics.dead.name} is compacted: of the dead letters with the same key it keeps only the newest",
            "set cleanup.policy=delete",
        )
        return
    accepted = f"{topics.dead.name} accepts {size(limit)} (max.message.bytes)"
    produce = int(settings.get("message.max.bytes", _PRODUCE_BATCH))
    if limit < _SMALLEST_DEAD_LETTER + _HEADERS // 16:
        yield report.problem(
            f"{accepted}: a dead letter is truncated to {size(_SMALLEST_DEAD_LETTER)}, and no further; the first that "
            "does not fit ends the program",
            f"raise max.message.bytes of {topics.dead.name} above that of the frames, {largest + _HEADERS} for example",
        )
    elif largest and min(limit, produce) < largest + _HEADERS:
        limiting = accepted if limit <= produce else f"message.max.bytes of the producer is {size(produce)}"
        yield report.warning(
            f"{limiting}, a frame may have {size(largest)}, and a dead letter holds a frame and its headers: "
            "the largest are truncated, and cannot be replayed",
            f"raise max.message.bytes of {topics.dead.name} to {largest + _HEADERS}"
            if limit <= produce
            else f"raise message.max.bytes in kafka.producer to {largest + _HEADERS}",
        )
    else:
        yield report.ok(f"{accepted}, a whole frame with its headers" if largest else accepted)


def _not_described(topic: Topic) -> str:
    if topic.error:
        return f"{topic.name} could not be described"
    return f"max.message.bytes of {topic.name} needs DESCRIBE_CONFIGS, which Sluice does not"
