"""Every option, declared once: name, meaning, unit, default, bounds. The docs and `sluice config` come from here."""

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
    topic: TopicName = Field("detections", description="Topic for one message per frame, keyed by source ID.")
    format: Literal["msgpack", "json"] = Field("msgpack", description="Encoding of the messages.")


class DeadLetterConfig(Section):
    topic: TopicName = Field("frames-dead", description="Topic for frames that can never become a detection.")
    max_consecutive: int = Field(
        1000,
        ge=0,
        description="Stop when so many frames in a row were rejected: then a misconfigured model or codec is likelier "
        "than bad frames. 0: never.",
    )


class BatchingConfig(Section):
    policy: Literal["dynamic", "window", "static"] = Field(
        "dynamic",
        description="dynamic: an idle engine takes what is there, a busy one lets the batch grow. window: size or "
        "delay, whichever comes first. static: full batches only, the delay counts when draining.",
    )
    max_batch_size: int = Field(32, ge=1, le=1024, description="Frames in a batch at most.")
    max_queue_delay_ms: float = Field(
        10, ge=0, le=60_000, description="Milliseconds that the first frame of a batch waits for others at most."
    )
    preferred_batch_sizes: list[int] = Field(
        [],
        description="dynamic: sizes that the engine runs best at. A batch closes at the largest that is ready; an idle "
        "engine waits for the smallest of them until the delay is over.",
    )
    max_batch_bytes: int = Field(
        64 * 2**20, ge=1024, description="Encoded bytes in a batch at most. A single larger frame goes alone."
    )
    max_frame_age_ms: float | None = Field(
        None, gt=0, description="Milliseconds since capture after which a frame is published as skipped. Unset: never."
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
        "auto", description="Decoding threads, or processes. auto: one per core, 2 to 8."
    )
    strict: bool = Field(
        True, description="Reject truncated and damaged JPEGs. false: decode what can be decoded of them."
    )
    max_bytes: int = Field(16 * 2**20, ge=1024, description="Encoded bytes of one frame at most.")
    max_pixels: int = Field(
        33_177_600, ge=1024, description="Pixels of one frame at most, from its header. Default: 7680x4320."
    )
    max_scans: int = Field(16, ge=1, description="Scans of one progressive JPEG at most. Cameras write 1 to 10.")
    workers: Literal["auto", "threads", "processes"] = Field(
        "auto",
        description="processes: one per decoding thread, so that decoding does not wait for the program's Python and a "
        "crash in an image library costs a frame; Linux only. auto: processes where they can be started, else threads.",
    )
    isolation: Literal["none", "process"] = Field(
        "none",
        description="process: processes that share no pictures and are also killed when a frame hangs or bloats them. "
        "For cameras that are not trusted; Linux only. docs/security.md has the cost.",
    )
    timeout_s: Seconds = Field(5, description="With isolation: seconds for one frame at most.")
    memory_limit_bytes: int = Field(
        2**30, ge=64 * 2**20, description="With isolation: memory for one frame at most, on top of an idle process."
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
        """Whether processes are asked for: by name, or by `auto` on a system that has what they need."""
        if self.isolation == "process" or self.workers == "processes":
            return True
        return self.workers == "auto" and hasattr(os, "memfd_create")

    @property
    def thread_count(self) -> int:
        """The number of decoding threads, with `auto` resolved for this machine."""
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
        "auto", description="What runs the model. auto: by the suffix of model."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N. auto: cuda where there is one.")
    image_size: int = Field(640, ge=32, le=4096, multiple_of=32, description="Longer side of the canvas, pixels.")
    confidence: float = Field(0.25, ge=0, le=1, description="Score below which a detection is dropped.")
    iou: float = Field(0.7, ge=0, le=1, description="Overlap above which the weaker of two boxes is dropped (NMS).")
    max_detections: int = Field(300, ge=1, le=10_000, description="Detections per frame at most, best first.")
    half: bool = Field(
        False, description="Half precision on CUDA: faster; scores change in the third digit, boxes by a pixel."
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 that the model file must have. Unset: not checked."
    )
    allow_download: bool = Field(
        False, description="Let Ultralytics fetch a model of its own that is not there, such as yolo26n.pt."
    )


class LimitsConfig(Section):
    drain_timeout_s: Seconds = Field(
        25, description="Seconds for finishing work in flight: on SIGTERM in all, on a rebalance at most half of it."
    )
    max_in_flight_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Bytes of records held at most: waiting, in batches, not yet acknowledged. The copies of dead "
        "letters on their way to the brokers come on top: 32 MiB, or one letter if it is larger.",
    )
    max_unacknowledged: int = Field(
        10_000, ge=1, description="Outcomes written and not yet acknowledged at most; then polling pauses."
    )
    stall_timeout_s: Seconds = Field(
        60,
        ge=45,
        description="Seconds before the process ends without a turn of the loop, or with one batch in the engine and "
        "no frame of it decoded.",
    )


class HttpConfig(Section):
    host: Text = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz. In a pod: 0.0.0.0.")
    port: int = Field(8080, ge=0, le=65_535, description="Port; 0 turns the server off.")


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level to print.")
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json.")


class TracesConfig(Section):
    endpoint: str = Field(
        "",
        description="OTLP/HTTP address for spans, such as http://collector:4318/v1/traces. Empty: off.",
    )
    sample_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share that is traced of the frames without a traceparent; the others follow their producer.",
    )


class Config(BaseSettings):
    """The whole configuration, immutable. Build it with `load_config`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    kafka: KafkaConfig = KafkaConfig()
    input: InputConfig = InputConfig()
    output: OutputConfig = OutputConfig()
    dead_letter: DeadLetterConfig = DeadLetterConfig()
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="at_least_once: repeats after a crash. exactly_once: results and offsets in one transaction; its "
        "readers must be read_committed.",
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
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature of the base, here and below
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # what the file says arrives as init settings; the environment beats it

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
        """The name of this process's transactions; the host name is the pod's in Kubernetes."""
        return self.kafka.transactional_id or f"sluice-{self.kafka.group_id}-{platform.node()}-0"
