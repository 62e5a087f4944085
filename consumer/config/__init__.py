"""Defines and loads the configuration.

An environment variable (`SLUICE_` and the path of the option with `__`) overrides the YAML or TOML file. Only this
package reads the environment.

- `options` declares every option once, except those of the Kafka clients.
- `kafka` declares the options of the Kafka clients.
- `section` has what all sections share.
- `loading` reads the options.
- `showing` prints them, without secrets.
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
