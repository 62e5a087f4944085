"""Converts the configuration to plain values for display, without secrets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from consumer.config.options import Config
from consumer.config.section import ENV_PREFIX, SECRET

MASK: Final = "********"


def resolved(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values, with `MASK` for each secret. The paths of secret files are shown."""

    def masked(value: Any, name: str = "") -> Any:
        if name == "secrets":
            return value
        if isinstance(value, dict):
            return {key: masked(item, key) for key, item in value.items()}
        return MASK if SECRET.search(name) and value not in (None, "") else value

    plain = masked(config.model_dump(mode="json"))
    assert isinstance(plain, dict)
    return plain


def options() -> Iterator[tuple[str, str, Any, str]]:
    """Yield (path, environment variable, default, meaning) of every option, in the order of declaration."""
    for section, field in Config.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        if nested is None:
            yield section, ENV_PREFIX + section.upper(), field.default, field.description or ""
            continue
        for name, option in nested.items():
            variable = f"{ENV_PREFIX}{section.upper()}__{name.upper()}"
            yield f"{section}.{name}", variable, option.default, option.description or ""
