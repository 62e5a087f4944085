"""Every option, declared once: name, meaning, unit, default, bounds. The docs and `sluice config` come from here.

Order of precedence: environment (`SLUICE_` + the path with `__`), then the YAML or TOML file, then the default.
This is the only module that reads the environment.
"""

from __future__ import annotations

import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from consumer.errors import ConfigError

ENV_PREFIX = "SLUICE_"
# Not options: the path of the file, and what the test suite reads.
_FOREIGN_ENV = re.compile(r"^SLUICE_(CONFIG|TEST_.*)$")
# Nor is what Kubernetes puts into every pod beside a Service "sluice" or "sluice-metrics": NAME_SERVICE_HOST and more.
_SERVICE_HOST = "_SERVICE_HOST"
_SECRET = re.compile(r"password|passphrase|secret|\.pem$|\.key$|ssl\.key|token|sasl\.jaas|credentials", re.IGNORECASE)
MASK = "********"
_SECRET_BYTES = 64 * 1024  # a chain of certificates has a few thousand

Seconds = Annotated[float, Field(gt=0, le=86_400)]
# librdkafka takes every setting as text; YAML gives numbers and booleans, which it spells `true` and `false`.
Librdkafka = dict[str, str | int | float | bool]


def _not_blank(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return value


Text = Annotated[str, BeforeValidator(_not_blank)]
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class KafkaConfig(_Section):
    bootstrap_servers: Text = Field("localhost:9092", description="Brokers to ask first: host:port, comma-separated.")
    group_id: Text = Field("sluice", description="Consumer group. Pods of one group share the partitions.")
    client: Librdkafka = Field({}, description="Any librdkafka setting, for the consumer and the producer.")
    consumer: Librdkafka = Field({}, description="Any librdkafka setting, for the consumer alone.")
    producer: Librdkafka = Field({}, description="Any librdkafka setting, for the producer alone.")
    secrets: dict[str, str] = Field(
        {},
        description="librdkafka settings whose values stand in files, for the consumer and the producer: "
        '{"sasl.password": "/run/secrets/kafka-password"}. Read at the start, without the newline at their end.',
    )
    commit_interval_ms: int = Field(
        500,
        ge=10,
        le=60_000,
        description="at_least_once: milliseconds between commits of what was acknowledged.",
    )
    transactional_id: str = Field(
        "",
        pattern=r"^[\x21-\x7e]{0,249}$",
        description="exactly_once: the name of this process's transactions. It must stay the same over restarts and be "
        "different in every process. Empty: sluice-<group_id>-<host name>-0.",
    )
    _from_files: dict[str, str] = PrivateAttr(default_factory=dict)  # private, so that nothing prints them

    @property
    def shared(self) -> dict[str, str | int | float | bool]:
        """The settings of every client: `client`, and what the files of `secrets` hold."""
        return {**self.client, **self._from_files}

    @model_validator(mode="after")
    def _read_secrets(self) -> KafkaConfig:
        for name, file in self.secrets.items():
            if name in OWN_SETTINGS:
                raise ValueError(f"secrets: {name!r} is not free: {OWN_SETTINGS[name]}")
            if twice := [part for part in ("client", "consumer", "producer") if name in getattr(self, part)]:
                raise ValueError(f"secrets: {name!r} is in kafka.{twice[0]} too; leave one of them")
            self._from_files[name] = _read_secret(name, file)
        return self

    @model_validator(mode="after")
    def _leave_ours_alone(self) -> KafkaConfig:
        for section in ("client", "consumer", "producer"):
            if str(getattr(self, section).get("partitioner", "")) == "random":
                raise ValueError(f"{section}: partitioner 'random' would scatter the results of a source")
            for name in getattr(self, section):
                if name in OWN_SETTINGS:
                    raise ValueError(f"{section}: {name!r} is not free: {OWN_SETTINGS[name]}")
        return self


def _read_secret(name: str, file: str) -> str:
    """The content of a file, without one newline at its end. Raises ValueError with what is wrong with the file."""
    if not file.startswith("/"):  # nor is it shown: it may be the secret itself
        raise ValueError(f"secrets: {name}: expected the absolute path of a file, as in /run/secrets/kafka-password")
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        why = (isinstance(error, OSError) and error.strerror) or "no file can have that name"
        if _is_a_path(file):
            raise ValueError(f"secrets: {name}: cannot read {file}: {why}") from None
        raise ValueError(
            f"secrets: {name}: cannot read the file: {why}. Its path is not shown, it may be the secret itself; what "
            "belongs there is the path of a file in a folder that exists, as in /run/secrets/kafka-password"
        ) from None
    if len(content) > _SECRET_BYTES:
        raise ValueError(f"secrets: {name}: {file} has more than {_SECRET_BYTES} bytes; that is no secret")
    try:
        value = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"secrets: {name}: {file} is not UTF-8 text") from None
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise ValueError(f"secrets: {name}: {file} is empty")
    if "\0" in value:  # librdkafka would take what stands before it
        raise ValueError(f"secrets: {name}: {file} holds a NUL byte")
    return value


def _is_a_path(text: str) -> bool:
    """Whether something on this machine shows that it was meant as a path: a password may begin with a slash, too."""
    folder = os.path.dirname(text)  # noqa: PTH120 - of what may be no path at all
    try:
        return os.path.lexists(text) or (os.path.isdir(folder) and not os.path.samefile(folder, "/"))  # noqa: PTH112, PTH121
    except (OSError, ValueError):
        return False


# librdkafka settings on which a promise stands, each with what to do instead.
OWN_SETTINGS: dict[str, str] = {
    "bootstrap.servers": "set kafka.bootstrap_servers",
    "metadata.broker.list": "set kafka.bootstrap_servers",
    "group.id": "set kafka.group_id",
    "enable.auto.commit": "Sluice commits what was acknowledged; set kafka.commit_interval_ms",
    "auto.commit.interval.ms": "set kafka.commit_interval_ms",
    "enable.auto.offset.store": "Sluice stores an offset only after its result was acknowledged",
    "enable.partition.eof": "Sluice does not stop at the end of a partition",
    "enable.idempotence": "Sluice needs the idempotent producer to keep results in order",
    "acks": "Sluice needs acks=all to keep results",
    "request.required.acks": "Sluice needs acks=all to keep results",
    "delivery.report.only.error": "Sluice commits what was acknowledged, so it needs the reports of success",
    "transactional.id": "set kafka.transactional_id, and delivery: exactly_once",
}


class InputConfig(_Section):
    topics: list[TopicName] = Field(["frames"], min_length=1, description="Topics to read frames from.")


class OutputConfig(_Section):
    topic: TopicName = Field("detections", description="Topic for one message per frame, keyed by source ID.")
    format: Literal["msgpack", "json"] = Field("msgpack", description="Encoding of the messages.")


class DeadLetterConfig(_Section):
    topic: TopicName = Field("frames-dead", description="Topic for frames that can never become a detection.")
    max_consecutive: int = Field(
        1000,
        ge=0,
        description="Stop when so many frames in a row were rejected: then a misconfigured model or codec is likelier "
        "than bad frames. 0: never.",
    )


class BatchingConfig(_Section):
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


class DecodeConfig(_Section):
    threads: int | Literal["auto"] = Field("auto", description="Decoding threads. auto: one per core, 2 to 8.")
    strict: bool = Field(
        True, description="Reject truncated and damaged JPEGs. false: decode what can be decoded of them."
    )
    max_bytes: int = Field(16 * 2**20, ge=1024, description="Encoded bytes of one frame at most.")
    max_pixels: int = Field(
        33_177_600, ge=1024, description="Pixels of one frame at most, from its header. Default: 7680x4320."
    )
    max_scans: int = Field(16, ge=1, description="Scans of one progressive JPEG at most. Cameras write 1 to 10.")
    isolation: Literal["none", "process"] = Field(
        "none",
        description="process: decode in processes that are killed and replaced when a frame crashes, hangs or bloats "
        "them; one per decoding thread. For cameras that are not trusted; Linux only. docs/security.md has the cost.",
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

    @property
    def thread_count(self) -> int:
        """The number of decoding threads, with `auto` resolved for this machine."""
        if isinstance(self.threads, int):
            return self.threads
        return min(8, max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2))


class DetectorConfig(_Section):
    model: str = Field(
        "",
        description="Path of a .pt or .onnx file, or simulated://6.667ms@1,40ms@32. Required. .engine files (TensorRT) "
        "are refused in this version.",
    )
    backend: Literal["auto", "torch", "onnx", "tensorrt", "simulated"] = Field(
        "auto", description="What runs the model. auto: by the suffix of model."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N. auto: cuda where there is one.")
    image_size: int = Field(640, ge=32, le=8192, multiple_of=32, description="Longer side of the canvas, pixels.")
    confidence: float = Field(0.25, ge=0, le=1, description="Score below which a detection is dropped.")
    iou: float = Field(0.7, ge=0, le=1, description="Overlap above which the weaker of two boxes is dropped (NMS).")
    max_detections: int = Field(300, ge=1, le=10_000, description="Detections per frame at most, best first.")
    half: bool = Field(False, description="Half precision on CUDA: faster, scores differ in the third digit.")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 that the model file must have. Unset: not checked."
    )
    allow_download: bool = Field(
        False, description="Let Ultralytics fetch a model of its own that is not there, such as yolo26n.pt."
    )


class LimitsConfig(_Section):
    drain_timeout_s: Seconds = Field(
        25, description="Seconds for finishing work in flight: on SIGTERM in all, on a rebalance at most half of it."
    )
    max_in_flight_bytes: int = Field(
        512 * 2**20, ge=2**20, description="Bytes of records held at most: waiting, in batches, not yet acknowledged."
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


class HttpConfig(_Section):
    host: Text = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz. In a pod: 0.0.0.0.")
    port: int = Field(8080, ge=0, le=65_535, description="Port; 0 turns the server off.")


class LogConfig(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level to print.")
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json.")


class TracesConfig(_Section):
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

    @property
    def transactional_id(self) -> str:
        """The name of this process's transactions; the host name is the pod's in Kubernetes."""
        return self.kafka.transactional_id or f"sluice-{self.kafka.group_id}-{platform.node()}-0"


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read the file (`path`, else `$SLUICE_CONFIG`, else none) and the environment.

    `overrides` (nested, as in the file) beat the file, not the environment.
    Raises ConfigError with one message that names every wrong option.
    """
    if path is None and (from_env := os.environ.get("SLUICE_CONFIG")):
        path = Path(from_env)
    values = _merge(_read(path) if path else {}, overrides or {})
    if unknown := [name for name in os.environ if name.startswith(ENV_PREFIX) and not _is_known(name)]:
        raise ConfigError(f"unknown environment variable {', '.join(sorted(unknown))}: no such option (sluice config)")
    try:
        return Config(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None
    except ValueError as error:  # pydantic-settings: a list or map in the environment that is not JSON
        raise ConfigError(f"{error}: lists and maps in the environment are written as JSON") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_place_of(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid {'TOML' if path.suffix == '.toml' else 'YAML'}: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a map of sections at the top, got a {type(data).__name__}")
    return data


def _place_of(error: yaml.YAMLError) -> str:
    """Where it is, without the line itself, which the library quotes: a password may stand there."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return type(error).__name__
    return f"line {mark.line + 1}, column {mark.column + 1}; put values with special characters into single quotes"


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _is_known(variable: str) -> bool:
    services = [name.removesuffix(_SERVICE_HOST) for name in os.environ if name.endswith(_SERVICE_HOST)]
    of_a_service = variable.startswith(tuple(f"{name}_{kind}" for name in services for kind in ("SERVICE_", "PORT")))
    return of_a_service or _FOREIGN_ENV.match(variable) is not None or _is_option(variable)


def _is_option(variable: str) -> bool:
    section, _, name = variable.removeprefix(ENV_PREFIX).lower().partition("__")
    field = Config.model_fields.get(section)
    if field is None:
        return False
    options = getattr(field.annotation, "model_fields", {})
    return not name or name.partition("__")[0] in options


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part not in ("int", "str", "float", "bool"))
        if item["type"] == "extra_forbidden":
            yield f"unknown option {where}"
            continue
        message = item["msg"].removeprefix("Value error, ")
        given = item["input"]
        # Not only the name: someone may have written "sasl.password=..." where a map belongs.
        harmless = isinstance(given, str | int | float) and not any(map(_SECRET.search, (where, str(given))))
        shown = f" (got {given!r})" if where and harmless else ""
        yield f"{where}: {message}{shown}" if where else message


def resolved(config: Config) -> dict[str, Any]:
    """The configuration as plain values, with every secret replaced by `MASK`. Paths of secrets are none."""

    def masked(value: Any, name: str = "") -> Any:
        if name == "secrets":
            return value
        if isinstance(value, dict):
            return {key: masked(item, key) for key, item in value.items()}
        return MASK if _SECRET.search(name) and value not in (None, "") else value

    plain = masked(config.model_dump(mode="json"))
    assert isinstance(plain, dict)
    return plain


def options() -> Iterator[tuple[str, str, Any, str]]:
    """(path, environment variable, default, meaning) of every option, in the order of this file."""
    for section, field in Config.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        if nested is None:
            yield section, ENV_PREFIX + section.upper(), field.default, field.description or ""
            continue
        for name, option in nested.items():
            variable = f"{ENV_PREFIX}{section.upper()}__{name.upper()}"
            yield f"{section}.{name}", variable, option.default, option.description or ""
