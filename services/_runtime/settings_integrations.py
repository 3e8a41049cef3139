"""`integrations`: other systems that are told what happens to tests. docs/integrations.md has an example of each."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from services._runtime.settings_base import Section

Text = Annotated[str, Field(min_length=1, max_length=512)]
Call = Literal["started", "metric_window", "rolled_back", "decided"]
CALLS: tuple[Call, ...] = ("started", "metric_window", "rolled_back", "decided")
METRIC_WINDOW = "metric_window"

COMMON = frozenset({"type", "name", "tests", "timeout_seconds"})
KEYS: dict[str, frozenset[str]] = {
    "dtesn": frozenset({"url", "url_env", "token", "token_env", "model_names", "warm_action"}),
    "webhook": frozenset({"url", "url_env", "secret", "secret_env", "events", "window_seconds"}),
    "subscriber": frozenset(
        {"entry_point", "options", "environment", "events", "window_seconds", "memory_limit_mb"}
    ),
}
"""What each type takes besides COMMON."""

SECRETS = ("url", "token", "secret")
_PATTERN = re.compile(r"[a-z_*?.]{1,128}")


class Integration(Section):
    """One entry of `integrations`. A key of another type is refused, so that a slip does not go unnoticed."""

    type: Literal["dtesn", "webhook", "subscriber"]
    name: Text | None = None
    tests: list[Text] | None = None
    timeout_seconds: float = Field(default=10.0, gt=0, le=3600)
    url: SecretStr | None = None
    url_env: str | None = None
    token: SecretStr | None = None
    token_env: str | None = None
    model_names: dict[str, str] | None = None
    warm_action: Text | None = None
    secret: SecretStr | None = None
    secret_env: str | None = None
    events: list[Text] | None = None
    entry_point: Text | None = None
    options: dict[str, Any] | None = None
    environment: list[Text] | None = None
    window_seconds: int | None = Field(default=None, ge=1, le=3600)
    memory_limit_mb: int | None = Field(default=None, ge=64)

    @field_validator("tests", "events")
    @classmethod
    def _not_empty(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not value:
            raise ValueError("an empty list would let nothing through: leave it out, or name at least one")
        return value

    @field_validator("options")
    @classmethod
    def _plain(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(value)
        except TypeError as exc:
            raise ValueError(f"{exc}: give text, numbers, lists and sections; a date needs quotes") from None
        return value

    @model_validator(mode="after")
    def _fits_its_type(self) -> "Integration":
        allowed = KEYS[self.type] | COMMON
        for key in sorted(self.model_fields_set - allowed):
            if getattr(self, key) is not None:
                raise ValueError(f"'{key}' is no setting of an integration of type {self.type}: remove it")
        for secret in SECRETS:
            if getattr(self, secret) is not None and getattr(self, f"{secret}_env") is not None:
                raise ValueError(f"give {secret} or {secret}_env, not both")
        getattr(self, f"_check_{self.type}")()
        return self

    def _has(self, secret: str) -> bool:
        return bool(getattr(self, secret) or getattr(self, f"{secret}_env"))

    def _check_dtesn(self) -> None:
        if not self._has("url"):
            raise ValueError("a dtesn integration needs url, the address of the Aphrodite server, or url_env")

    def _check_webhook(self) -> None:
        if not self._has("url"):
            raise ValueError("a webhook integration needs url, or url_env naming a variable")
        if not self._has("secret"):
            raise ValueError("a webhook integration needs secret_env (or secret), which signs what is sent")
        for pattern in self.events or []:
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(f"events: '{pattern}' is no event: give such as test.*, model.state, metric_window")

    def _check_subscriber(self) -> None:
        if not self.entry_point and not self.name:
            raise ValueError("a subscriber integration needs entry_point: aar, echo_self or one that you installed")
        for event in self.events or []:
            if event not in CALLS:
                raise ValueError(f"events: '{event}' is no call of a subscriber: there are {', '.join(CALLS)}")
