"""Declares every option once, with its meaning, unit, default and bounds.

`docs/reference.md` and the output of `sluice config` are generated from these declarations.
"""

from __future__ import annotations

import os
import platform
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from consumer.config.kafka import KafkaConfig
from consumer.config.section import ENV_PREFIX, Seconds, Section, Text, TopicName


class InputConfig(Section):
    topics: list[TopicName] = Field(["frames"], min_length=1, description="Topics to read frames from.")


class OutputConfig(Section):
    topic: TopicName = Field("detections", description="Topic for results: one message per frame, keyed by source ID.")
    format: Literal["msgpack", "json"] = Field("msgpack", description="Encoding of the messages.")


class DeadLetterConfig(Section):
    topic: TopicName = Field("frames-dead", description="Topic for frames that can never become a detection.")
    max_consecutive: int = Field(
        1000,
        ge=0,
        description="The process stops after this number of rejected frames in a row, because the probable cause is a "
        "wrong model or codec. 0: never.",
    )


class BatchingConfig(Section):
    policy: Literal["dynamic", "window", "static"] = Field(
        "dynamic",
        description="dynamic: an idle detector takes the frames that are ready; while it is busy, the batch grows. "
        "window: a batch closes by size or delay, whichever comes first. static: only full batches, until draining.",
    )
    max_batch_size: int = Field(32, ge=1, le=1024, description="Maximum number of frames in a batch.")
    max_queue_delay_ms: float = Field(
        10, ge=0, le=60_000, description="Maximum time that the first frame of a batch waits for others, milliseconds."
    )
    preferred_batch_sizes: list[int] = Field(
        [],
        description="dynamic: sizes at which the detector is most efficient. A batch closes at the largest size that "
        "is ready. An idle detector waits for the smallest size until the delay has passed.",
    )
    max_batch_bytes: int = Field(
        64 * 2**20,
        ge=1024,
        description="Maximum number of encoded bytes in a batch. A larger frame forms a batch of its own.",
    )
    max_frame_age_ms: float | None = Field(
        None,
        gt=0,
        description="Maximum age of a frame since capture, milliseconds. Older frames are published as skipped. Unset: "
        "no limit.",
    )

    @model_validator(mode="after")
    def _preferred_fit(self) -> BatchingConfig:
        for size in self.preferred_batch_sizes:
            if not 1 <= size <= self.max_batch_size:
                raise ValueError(
                    f"preferred_batch_sizes: {size} is outside 1 to max_batch_size ({self.max_batch_size})"
                )
        return self


class DecodeConfig(Section):
    threads: int | Literal["auto"] = Field(
        "auto", description="Number of decode threads or processes. auto: one per core, 2 to 8."
    )
    strict: bool = Field(
        True, description="Reject truncated and damaged JPEGs. false: decode the part that can be decoded."
    )
    max_bytes: int = Field(16 * 2**20, ge=1024, description="Maximum number of encoded bytes of one frame.")
    max_pixels: int = Field(
        33_177_600,
        ge=1024,
        description="Maximum number of pixels of one frame, according to its header. Default: 7680x4320.",
    )
    max_scans: int = Field(16, ge=1, description="Maximum number of scans of one JPEG. Cameras write 1 to 10.")
    workers: Literal["auto", "threads", "processes"] = Field(
        "auto",
        description="processes: one per decode thread. Decoding does not compete for the lock of the Python "
        "interpreter, and a crash in an image library costs only one frame. Linux only. auto: processes if they can be "
        "started, else threads.",
    )
    isolation: Literal["none", "process"] = Field(
        "none",
        description="process: decode in processes that share no images, and kill a process if a frame takes too long "
        "or too much memory. For untrusted cameras. Linux only. docs/security.md states the cost.",
    )
    timeout_s: Seconds = Field(5, description="With isolation: maximum time to decode one frame, seconds.")
    memory_limit_bytes: int = Field(
        2**30,
        ge=64 * 2**20,
        description="With isolation: maximum memory to decode one frame, in addition to that of an idle process.",
    )

    @field_validator("threads")
    @classmethod
    def _some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 256:
            raise ValueError("must be auto, or 1 to 256")
        return value

    @model_validator(mode="after")
    def _agree(self) -> DecodeConfig:
        if self.isolation == "process" and self.workers == "threads":
            raise ValueError("isolation: process needs workers: processes or auto, not threads")
        return self

    @property
    def in_processes(self) -> bool:
        """Whether to decode in processes: requested by name, or by `auto` on a system that supports it."""
        if self.isolation == "process" or self.workers == "processes":
            return True
        return self.workers == "auto" and hasattr(os, "memfd_create")

    @property
    def thread_count(self) -> int:
        """The number of decode threads, with `auto` resolved for this machine."""
        if isinstance(self.threads, int):
            return self.threads
        return min(8, max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2))


class DetectorConfig(Section):
    model: str = Field(
        "",
        description="Path of a .pt or .onnx file, or simulated://6.667ms@1,40ms@32. Required. .engine files (TensorRT) "
        "are refused in this version.",
    )
    backend: Literal["auto", "torch", "onnx", "tensorrt", "simulated"] = Field(
        "auto", description="Library that runs the model. auto: chosen by the suffix of model."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N. auto: cuda if there is a GPU, else cpu.")
    image_size: int = Field(640, ge=32, le=4096, multiple_of=32, description="Longer side of the canvas, pixels.")
    confidence: float = Field(0.25, ge=0, le=1, description="Detections with a score up to this value are dropped.")
    iou: float = Field(
        0.7, ge=0, le=1, description="If two boxes overlap (IoU) by more than this, the weaker one is dropped (NMS)."
    )
    max_detections: int = Field(
        300, ge=1, le=10_000, description="Maximum number of detections per frame; the best scores are kept."
    )
    half: bool = Field(
        False, description="Half precision on CUDA: faster, but scores change in the third digit and boxes by a pixel."
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 that the model file must have. Unset: not checked."
    )
    allow_download: bool = Field(
        False, description="Allow Ultralytics to download a missing model of its own, such as yolo26n.pt."
    )


class LimitsConfig(Section):
    drain_timeout_s: Seconds = Field(
        25,
        description="Maximum time to finish frames in flight, seconds: all of it on SIGTERM, at most half of it on a "
        "rebalance.",
    )
    max_in_flight_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Maximum bytes of records in memory: waiting, in batches, or not yet acknowledged. Copies of dead "
        "letters that are being written are not included: at most 32 MiB, or one dead letter if that is larger.",
    )
    max_unacknowledged: int = Field(
        10_000,
        ge=1,
        description="Maximum number of outcomes that are written and not yet acknowledged; above it, polling pauses.",
    )
    stall_timeout_s: Seconds = Field(
        60,
        ge=45,
        description="The process ends itself after this time without progress, seconds: the main loop hangs, or one "
        "batch is in the detector and no frame of it is decoded.",
    )


class HttpConfig(Section):
    host: Text = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz. In a pod: 0.0.0.0.")
    port: int = Field(8080, ge=0, le=65_535, description="Port of the HTTP server. 0: no server.")


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level to log.")
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json.")


class TracesConfig(Section):
    endpoint: str = Field(
        "",
        description="OTLP/HTTP address for spans, such as http://collector:4318/v1/traces. Empty: no traces.",
    )
    sample_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the frames without a traceparent to trace. With one, the sampled flag of the producer "
        "decides.",
    )


class Config(BaseSettings):
    """The whole configuration, immutable. Create it with `load_config`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    kafka: KafkaConfig = KafkaConfig()
    input: InputConfig = InputConfig()
    output: OutputConfig = OutputConfig()
    dead_letter: DeadLetterConfig = DeadLetterConfig()
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="at_least_once: outcomes may be repeated after a crash. exactly_once: outcomes and offsets are in "
        "one transaction; readers must use read_committed.",
    )
    batching: BatchingConfig = BatchingConfig()
    decode: DecodeConfig = DecodeConfig()
    detector: DetectorConfig = DetectorConfig()
    limits: LimitsConfig = LimitsConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()
    traces: TracesConfig = TracesConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the base class has this signature; also below
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the file is passed as init settings, and the environment overrides it

    @model_validator(mode="after")
    def _agree(self) -> Config:
        topics = {"output.topic": self.output.topic, "dead_letter.topic": self.dead_letter.topic}
        for name, topic in topics.items():
            if topic in self.input.topics:
                raise ValueError(f"{name}: {topic!r} is an input topic too; the program would read what it wrote")
        if self.output.topic == self.dead_letter.topic:
            raise ValueError(f"dead_letter.topic: {self.output.topic!r} is the output topic too")
        if self.decode.isolation == "process" and 3 * self.decode.timeout_s > self.limits.stall_timeout_s:
            raise ValueError(
                f"decode.timeout_s: {self.decode.timeout_s:g} is more than a third of limits.stall_timeout_s "
                f"({self.limits.stall_timeout_s:g}); two tries in fresh processes would count as a hang"
            )
        if self.delivery == "exactly_once":
            self._can_be_exactly_once()
        return self

    def _can_be_exactly_once(self) -> None:
        settings = {**self.kafka.client, **self.kafka.consumer}
        if settings.get("isolation.level", "read_committed") != "read_committed":
            raise ValueError(
                "kafka: isolation.level must be read_committed with delivery: exactly_once; a consumer that reads what "
                "is not committed would start at offsets that may be taken back"
            )
        self.kafka.check_transaction_timeout()

    @property
    def transactional_id(self) -> str:
        """The transactional ID of this process. In Kubernetes, the host name is that of the pod."""
        return self.kafka.transactional_id or f"sluice-{self.kafka.group_id}-{platform.node()}-0"
