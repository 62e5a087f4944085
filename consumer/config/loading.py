"""Loads the configuration from the file and the environment, and explains every invalid option."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from consumer.config.options import Config
from consumer.config.section import ENV_PREFIX, SECRET
from consumer.errors import ConfigError

# Variables that are not options: the path of the file, and those of the test suite.
_FOREIGN_ENV: Final = re.compile(r"^SLUICE_(CONFIG|TEST_.*)$")
# Kubernetes adds variables such as NAME_SERVICE_HOST for each Service of the namespace to every pod. For a Service
# "sluice" or "sluice-metrics" they begin with SLUICE_, but are not options.
_SERVICE_HOST: Final = "_SERVICE_HOST"


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Load the configuration.

    Args:
        path: The YAML or TOML file. None: the file in `SLUICE_CONFIG`, or no file if that is not set.
        overrides: Options that override the file but not the environment, nested as in the file.

    Raises:
        ConfigError: The file cannot be read, or an option is invalid. The message names every invalid option.
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
    except ValueError as error:  # from pydantic-settings: a list or map in the environment is not JSON
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
    """Return the position of the error without the text of the line, which may contain a password."""
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
        # The value is checked too, not only the name: it may be "sasl.password=..." instead of a map.
        harmless = isinstance(given, str | int | float) and not any(map(SECRET.search, (where, str(given))))
        shown = f" (got {given!r})" if where and harmless else ""
        yield f"{where}: {message}{shown}" if where else message
