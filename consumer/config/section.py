"""Defines the base class and the field types of the sections of the configuration."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ENV_PREFIX: Final = "SLUICE_"
# Names and values that may contain a secret. Values are never shown then, not even in an error.
SECRET: Final = re.compile(
    r"password|passphrase|secret|\.pem$|\.key$|ssl\.key|token|sasl\.jaas|credentials", re.IGNORECASE
)

Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _not_blank(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return value


Text = Annotated[str, BeforeValidator(_not_blank)]
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown options."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
