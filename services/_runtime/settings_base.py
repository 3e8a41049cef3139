"""What all sections of the settings share."""

import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Port = Annotated[int, Field(ge=0, le=65_535)]
Positive = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the source, the key and the reason."""


def is_url(text: str, schemes: set[str]) -> bool:
    """Whether it is an address of one of the schemes, with a host and, if any, a port that exists."""
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/cypria`, by default `~/.local/share/cypria`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "cypria"


class Typed(BaseModel):
    """Refuses unknown keys, and values that only resemble the right type; environment variables are YAML as well."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if wanted is bool and not isinstance(value, bool) and value not in (0, 1):
            raise ValueError("Input should be true or false, without quotes")
        if wanted in {int, float} and isinstance(value, (bool, str)):
            raise ValueError("Input should be a number such as 5 or 2.5, without quotes")
        return value


class Section(Typed):
    """A section refuses keys that it does not know and values of another type."""

    model_config = ConfigDict(validate_default=True)
