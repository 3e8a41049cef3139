"""`alerts.destinations`: where alerts go. docs/alerts.md has an example of each type."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from schemas.template import problem
from services._runtime.settings_base import Port, Positive, Section

Level = Literal["INFO", "WARNING", "CRITICAL", "EMERGENCY"]
Severity = Literal["critical", "error", "warning", "info"]
Text = Annotated[str, Field(min_length=1, max_length=512)]
Words = Annotated[str, Field(min_length=1, max_length=4000)]

COMMON = frozenset(
    {"type", "name", "min_level", "levels", "tests", "tags", "messages_per_minute", "repeat_interval_seconds"}
)
_READ_BY_PEOPLE = frozenset({"title", "text", "group_seconds"})
KEYS: dict[str, frozenset[str]] = {
    "log": frozenset({"title", "text"}),
    "slack": _READ_BY_PEOPLE | frozenset({"webhook_url", "webhook_url_env", "channel", "token", "token_env", "url"}),
    "email": _READ_BY_PEOPLE
    | frozenset(
        {"recipients", "smtp_server", "smtp_port", "starttls", "tls", "username", "password", "password_env", "sender",
         "ca_file"}
    ),
    "pagerduty": frozenset({"integration_key", "integration_key_env", "severity_mapping", "url", "title", "text"}),
    "prometheus": frozenset({"pushgateway_url", "job_name", "username", "password", "password_env"}),
    "webhook": frozenset({"url", "url_env", "secret", "secret_env"}),
    "apprise": _READ_BY_PEOPLE | frozenset({"url", "url_env"}),
}  # fmt: skip
"""What each type takes besides COMMON."""

SECRETS = ("webhook_url", "token", "password", "integration_key", "secret", "url")
"""Each may also be named by a variable, ``<name>_env``, where the type takes that."""


class Destination(Section):
    """One entry of `alerts.destinations`. A key of another type is refused, so that a slip does not go unnoticed."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    type: Literal["log", "slack", "email", "pagerduty", "prometheus", "webhook", "apprise"]
    name: Text | None = None
    min_level: Level = "INFO"
    levels: list[Level] | None = None
    tests: list[Text] | None = None
    tags: dict[str, str] | None = None
    messages_per_minute: int | None = Field(default=None, ge=1, le=600)
    repeat_interval_seconds: Positive | None = None
    group_seconds: float | None = Field(default=None, gt=0, le=600)
    title: Words | None = None
    text: Words | None = None
    webhook_url: SecretStr | None = None
    webhook_url_env: str | None = None
    channel: str | None = None
    token: SecretStr | None = None
    token_env: str | None = None
    recipients: list[Text] | None = None
    smtp_server: Text | None = None
    smtp_port: Port | None = None
    starttls: bool | None = None
    tls: bool | None = None
    username: str | None = None
    password: SecretStr | None = None
    password_env: str | None = None
    sender: Text | None = Field(default=None, alias="from")
    ca_file: Path | None = None
    integration_key: SecretStr | None = None
    integration_key_env: str | None = None
    severity_mapping: dict[Level, Severity] | None = None
    pushgateway_url: str | None = None
    job_name: Text | None = None
    url: SecretStr | None = None
    url_env: str | None = None
    secret: SecretStr | None = None
    secret_env: str | None = None

    @field_validator("recipients", "levels", "tests")
    @classmethod
    def _not_empty(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not value:
            raise ValueError("an empty list would let nothing through: leave it out, or name at least one")
        return value

    @field_validator("title", "text")
    @classmethod
    def _can_be_filled_in(cls, value: str | None) -> str | None:
        wrong = None if value is None else problem(value)
        if wrong:
            raise ValueError(wrong)
        return value

    @field_validator("recipients", "sender")
    @classmethod
    def _addresses(cls, value: list[str] | str | None) -> list[str] | str | None:
        for address in [value] if isinstance(value, str) else value or []:
            if "@" not in address or any(character in address for character in "\r\n,"):
                raise ValueError(f"'{address}' is no address: give one such as ml-team@example.org")
        return value

    @model_validator(mode="after")
    def _fits_its_type(self) -> "Destination":
        allowed = KEYS[self.type] | COMMON
        for key in sorted(self.model_fields_set - allowed):
            if getattr(self, key) is not None:
                shown = Destination.model_fields[key].alias or key
                raise ValueError(f"'{shown}' is no setting of a destination of type {self.type}: remove it")
        for secret in SECRETS:
            if getattr(self, secret) is not None and getattr(self, f"{secret}_env", None) is not None:
                raise ValueError(f"give {secret} or {secret}_env, not both")
        getattr(self, f"_check_{self.type}", lambda: None)()
        return self

    def _has(self, secret: str) -> bool:
        return bool(getattr(self, secret) or getattr(self, f"{secret}_env", None))

    def _check_slack(self) -> None:
        if not self._has("webhook_url") and not self._has("token"):
            raise ValueError(
                "a slack destination needs webhook_url, or webhook_url_env naming a variable; "
                "or a bot's token_env together with channel"
            )
        if self._has("webhook_url") and self._has("token"):
            raise ValueError("give webhook_url or token, not both: they are two ways into Slack")
        if self._has("token") and not self.channel:
            raise ValueError("a slack destination with a bot's token needs channel")

    def _check_email(self) -> None:
        if not self.recipients:
            raise ValueError('an email destination needs recipients, such as ["ml-team@example.org"]')
        if not self.smtp_server:
            raise ValueError("an email destination needs smtp_server, a host or host:port")
        if self.tls and self.starttls:
            raise ValueError("give tls (from the first byte, port 465) or starttls (after connecting), not both")
        if bool(self.username) != self._has("password"):
            raise ValueError("username and password (or password_env) go together: give both or neither")
        if self.username and self.starttls is False and not self.tls:
            raise ValueError("starttls: false would send the password in the clear: remove it, or set tls: true")

    def _check_pagerduty(self) -> None:
        if not self._has("integration_key"):
            raise ValueError("a pagerduty destination needs integration_key, or integration_key_env naming a variable")
        if self.levels is None and "min_level" not in self.model_fields_set:
            self.min_level = "WARNING"  # a start or an end would be an incident that nothing ever resolves

    def _check_prometheus(self) -> None:
        if not (self.pushgateway_url or "").startswith(("https://", "http://")):
            raise ValueError("a prometheus destination needs pushgateway_url, such as http://pushgateway:9091")
        if bool(self.username) != self._has("password"):
            raise ValueError("username and password (or password_env) go together: give both or neither")

    def _check_webhook(self) -> None:
        if not self._has("url"):
            raise ValueError("a webhook destination needs url, or url_env naming a variable")
        if not self._has("secret"):
            raise ValueError("a webhook destination needs secret_env (or secret), which signs what is sent")

    def _check_apprise(self) -> None:
        if not self._has("url"):
            raise ValueError("an apprise destination needs url, or url_env naming a variable")
