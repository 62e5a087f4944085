"""The configuration. The environment (`SLUICE_` + the path with `__`) beats the YAML or TOML file.

Only this package reads the environment. `options` declares every option once, `kafka` those of the clients; `loading`
reads them, `showing` prints them.
"""

from consumer.config.kafka import OWN_SETTINGS, TRANSACTION_TIMEOUT_MS, KafkaConfig
from consumer.config.loading import load_config
from consumer.config.options import (
    BatchingConfig,
    Config,
    DeadLetterConfig,
    DecodeConfig,
    DetectorConfig,
    HttpConfig,
    InputConfig,
    LimitsConfig,
    LogConfig,
    OutputConfig,
    TracesConfig,
)
from consumer.config.section import ENV_PREFIX
from consumer.config.showing import MASK, options, resolved

__all__ = [
    "ENV_PREFIX",
    "MASK",
    "OWN_SETTINGS",
    "TRANSACTION_TIMEOUT_MS",
    "BatchingConfig",
    "Config",
    "DeadLetterConfig",
    "DecodeConfig",
    "DetectorConfig",
    "HttpConfig",
    "InputConfig",
    "KafkaConfig",
    "LimitsConfig",
    "LogConfig",
    "OutputConfig",
    "TracesConfig",
    "load_config",
    "options",
    "resolved",
]
