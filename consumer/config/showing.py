"""`Config` -> what a person may see of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from consumer.config.options import Config
from consumer.config.section import ENV_PREFIX, SECRET

MASK: Final = "********"


def resolved(config: Config) -> dict[str, Any]:
    """The configuration as plain values, with every secret replaced by `MASK`. Paths of secrets are none."""

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
    """(path, environment variable, default, meaning) of every option, in the order of this file."""
    for section, field in Config.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        if nested is None:
            yield section, ENV_PREFIX + section.upper(), field.default, field.description or ""
            continue
        for name, option in nested.items():
            variable = f"{ENV_PREFIX}{section.upper()}__{name.upper()}"
            yield f"{section}.{name}", variable, option.default, option.description or ""
