"""What all sections of the settings share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Port = Annotated[int, Field(ge=0, le=65_535)]
Positive = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the source, the key and the reason."""


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
