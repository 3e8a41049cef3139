"""The settings themselves: sections and names as the configuration file has them."""

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from schemas.v1.experiment import FailureCriteria, SuccessCriteria, Thresholds
from services._runtime.settings_alerts import Destination
from services._runtime.settings_base import ConfigError, Port, Section, Typed, default_data_dir, is_url
from services._runtime.settings_clickhouse import ClickHouse
from services._runtime.settings_engines import (
    InferenceProcess,
    Model,
    ModelManagement,
    ModelSources,
    ResourcePlanning,
    is_allowed,
    not_allowed,
)
from services._runtime.settings_integrations import Integration
from services._runtime.settings_security import Anomalies, AuditChecks
from services._runtime.settings_telemetry import Telemetry
from services._runtime.settings_tls import NatsTls, ServerTls


def bare(url: str) -> str:
    """An address without user and password."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", url)


class StrictSuccess(SuccessCriteria, Typed):
    """`ab_testing.success_criteria`. Tests from before there was a negligible rate have none; new ones have this."""

    negligible_error_rate_percent: float = Field(default=0.1, ge=0, lt=100)


class StrictFailure(FailureCriteria, Typed):
    """`ab_testing.failure_criteria`."""


class StrictThresholds(Thresholds, Typed):
    """`monitoring.thresholds`."""


class AbTesting(Section):
    """`ab_testing`."""

    enabled: bool = True
    default_traffic_split_percent: float = Field(default=10.0, ge=0, le=100)
    max_test_duration_minutes: float = Field(default=1440, gt=0, le=525_600)
    success_criteria: StrictSuccess = StrictSuccess()
    failure_criteria: StrictFailure = StrictFailure()

    @model_validator(mode="after")
    def _negligible_is_no_failure(self) -> "AbTesting":
        named = "negligible_error_rate_percent" in self.success_criteria.model_fields_set
        negligible, failure = self.success_criteria.negligible_error_rate_percent, self.failure_criteria
        if named and negligible >= failure.max_error_rate_percent:
            raise ValueError(
                f"success_criteria.negligible_error_rate_percent ({negligible:g}) is not below failure_criteria."
                f"max_error_rate_percent ({failure.max_error_rate_percent:g}): lower it, or give 0 for none"
            )
        return self

    @field_validator("default_traffic_split_percent")
    @classmethod
    def _in_steps(cls, percent: float) -> float:
        if abs(percent * 100 - round(percent * 100)) > 1e-6:
            raise ValueError(f"{percent:g} is finer than splits are: give a multiple of 0.01")
        return percent


class Monitoring(Section):
    """`monitoring`."""

    enabled: bool = True
    check_interval_seconds: float = Field(default=30, gt=0, le=86_400)
    thresholds: StrictThresholds = StrictThresholds()


class Alerts(Section):
    """`alerts`."""

    destinations: list[Destination] = []
    retention: int = Field(default=1000, ge=1, le=1_000_000)
    public_url: str | None = None

    @field_validator("public_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and (not is_url(value, {"http", "https"}) or value != bare(value)):
            raise ValueError(
                f"'{bare(value)}' is no address to show in messages: give one such as https://cypria.company.com, "
                "without user and password"
            )
        return value


_CREDENTIALS = 'give one that holds JSON, such as {"router": "PASSWORD"}, and that Cypria may read'


class Nats(Section):
    """`nats`. Without servers, `cypria up` runs its own nats-server in the data dir."""

    servers: list[str] | None = Field(default=None, min_length=1)
    replicas: Literal[1, 3, 5] = 1
    durability: Literal["fast", "power-safe"] = "fast"
    user: str | None = None
    password: SecretStr | None = None
    credentials_file: Path | None = None
    tls: NatsTls | None = None
    port: Port = 0

    @model_validator(mode="after")
    def _has_a_server_for_tls(self) -> "Nats":
        if self.tls is not None and self.servers is None:
            raise ValueError(
                "tls is for servers of your own: name them in nats.servers, or remove it (the embedded server listens "
                "on loopback only)"
            )
        return self

    @property
    def encrypted(self) -> bool:
        """Whether nothing may be said to a server, a password least of all, before the connection is encrypted."""
        return self.tls is not None or any(server.startswith("tls://") for server in self.servers or [])

    @field_validator("servers")
    @classmethod
    def _are_addresses(cls, servers: list[str] | None) -> list[str] | None:
        for server in servers or []:
            if not is_url(server, {"nats", "tls"}):
                raise ValueError(f"'{bare(server)}' is no address of a server: give one such as nats://127.0.0.1:4222")
        return servers

    def passwords(self) -> dict[str, str]:
        """Each user's password as the credentials file has it; without one, none. Raises ConfigError."""
        file = self.credentials_file
        if file is None:
            return {}
        try:
            known = json.loads(file.read_text())
        except OSError as exc:
            why = f"cannot be read ({exc.strerror})"
            raise ConfigError(f"nats.credentials_file: {file} {why}: {_CREDENTIALS}") from None
        except ValueError:
            known = None
        if not isinstance(known, dict):
            raise ConfigError(f"nats.credentials_file: {file} holds no passwords: {_CREDENTIALS}")
        return {str(user): str(password) for user, password in known.items()}

    def credentials(self, service: str) -> tuple[str | None, str | None]:
        """(user, password) of a service: as configured, else its own from the credentials file.

        Raises ConfigError when the file cannot be used or has no password for the service.
        """
        if self.user or self.credentials_file is None:
            return self.user, self.password.get_secret_value() if self.password else None
        known = self.passwords()
        if service not in known:
            raise ConfigError(
                f"nats.credentials_file: {self.credentials_file} has no password for the user '{service}': add it, or "
                f"set CYPRIA_NATS__USER and CYPRIA_NATS__PASSWORD"
            )
        return service, known[service]


class ApiKey(Section):
    """One entry of `security.api_keys`; its own limits, where it has some, in the place of `security.rate_limit`."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")
    role: Literal["client", "viewer", "operator", "admin"]
    key_env: str | None = None
    key_sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    control_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _one_source(self) -> "ApiKey":
        if (self.key_env is None) == (self.key_sha256 is None):
            raise ValueError(f"key '{self.name}': give exactly one of key_env and key_sha256")
        return self


class RateLimit(Section):
    """`security.rate_limit`: of each key, over all routers; 0: no limit. Feedback has inference's limit by default."""

    control_per_minute: int = Field(default=100, ge=0)
    control_burst: int = Field(default=10, ge=1)
    inference_per_minute: int = Field(default=0, ge=0)
    feedback_per_minute: int | None = Field(default=None, ge=0)


class Security(Section):
    """`security`. failed_keys_per_minute: wrong keys from one address before it has to wait; 0: any number."""

    api_keys: list[ApiKey] = []
    rate_limit: RateLimit = RateLimit()
    failed_keys_per_minute: int = Field(default=20, ge=0, le=10_000)
    anomalies: Anomalies = Anomalies()
    audit_checks: AuditChecks = AuditChecks()
    signing_key_env: str | None = None
    ip_allow: list[str] = []

    @field_validator("api_keys")
    @classmethod
    def _names_differ(cls, keys: list[ApiKey]) -> list[ApiKey]:
        names = [key.name for key in keys]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two keys are named '{name}': give each its own name")
        return keys


class Privacy(Section):
    """`privacy`. The salt of a test's units is destroyed so many minutes after its end: facts may come late. Views
    withhold the figures of groups of fewer than min_group_size requests.
    """

    retention_days: int = Field(default=90, ge=1, le=3650)
    unit_salt_env: str | None = None
    unit_salt_grace_minutes: float = Field(default=60, ge=0, le=43_200)
    min_group_size: int = Field(default=5, ge=1, le=1_000_000)


class Policies(Section):
    """`policies`."""

    on_no_data: Literal["hold", "rollback", "alert"] = "hold"
    on_monitor_down: Literal["hold", "rollback"] = "rollback"
    on_srm: Literal["hold", "rollback", "warn"] = "hold"
    on_both_arms_bad: Literal["alert", "rollback"] = "alert"
    fallback_to_stable: bool = True


UnitSource = Literal["x_session_id", "user", "x_user_id", "prompt_cache_key", "api_key", "client_address"]


class AssignmentSettings(Section):
    """`assignment`."""

    unit: list[UnitSource] = ["x_session_id", "user", "x_user_id", "prompt_cache_key"]


class Http(Section):
    """`http`: the edge. max_body_bytes bounds request bodies."""

    host: str = "127.0.0.1"
    port: Port = 2242
    tls: ServerTls | None = None
    max_body_bytes: int = Field(default=10 << 20, ge=1024)


class Ops(Section):
    """`ops`: where a service other than the router shows /health, /ready and /metrics; port 0: a free one.

    ``drain_seconds``: how long what is in flight may go on after SIGTERM, at a router and at a worker each; under
    `cypria up`, which stops within ten seconds, at most 5.
    """

    host: str = "127.0.0.1"
    port: Port = 0
    drain_seconds: float = Field(default=5, ge=0, le=3600)


class Logging(Section):
    """`logging`. Format ``auto`` is human on a terminal, JSON elsewhere; debug means level DEBUG.

    ``file`` gets the same lines as stderr, from all processes that name it.
    """

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "json", "human"] = "auto"
    debug: bool = False
    verbose_metrics: bool = False
    file: Path | None = None
    file_max_bytes: int = Field(default=64 << 20, ge=4096)
    file_backups: int = Field(default=5, ge=1, le=100)

    @field_validator("level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


class Processes(Section):
    """`processes`: how many of each service `cypria up` runs."""

    router: Literal[1] = 1
    inference: int = Field(default=1, ge=0, le=64)
    metrics: int = Field(default=1, ge=0, le=8)
    monitor: int = Field(default=1, ge=0, le=8)
    alerts: int = Field(default=1, ge=0, le=8)


class Settings(Section):
    """All of the configuration."""

    ab_testing: AbTesting = AbTesting()
    monitoring: Monitoring = Monitoring()
    alerts: Alerts = Alerts()
    integrations: list[Integration] = []
    nats: Nats = Nats()
    clickhouse: ClickHouse = ClickHouse()
    models: list[Model] = []
    model_sources: ModelSources = ModelSources()
    model_management: ModelManagement = ModelManagement()
    resource_planning: ResourcePlanning = ResourcePlanning()
    inference: InferenceProcess = InferenceProcess()
    security: Security = Security()
    privacy: Privacy = Privacy()
    policies: Policies = Policies()
    assignment: AssignmentSettings = AssignmentSettings()
    http: Http = Http()
    ops: Ops = Ops()
    logging: Logging = Logging()
    telemetry: Telemetry = Telemetry()
    processes: Processes = Processes()
    data_dir: Path = Field(default_factory=default_data_dir)

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: list[Model]) -> list[Model]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are named '{name}': give each its own name")
        return models

    @model_validator(mode="after")
    def _one_process_holds_chdb(self) -> "Settings":
        if self.processes.metrics > 1 and self.clickhouse_dsn().startswith("chdb://"):
            raise ValueError(
                "processes.metrics is above 1 but clickhouse.dsn is chDB, whose directory one process holds: "
                "set processes.metrics to 1, or clickhouse.dsn to a ClickHouse server"
            )
        return self

    def resolve_paths(self, base: Path) -> None:
        """Make relative paths relative to ``base`` (the configuration file's directory)."""
        for model in self.models:
            model.resolve_paths(base)
        python = self.inference.vllm_python
        if python and not python.is_absolute():
            self.inference.vllm_python = base / python
        for tls in (self.nats.tls, self.clickhouse.tls, self.http.tls):
            if tls is not None:
                tls.resolve_paths(base)
        if self.logging.file and not self.logging.file.is_absolute():
            self.logging.file = base / self.logging.file
        credentials = self.nats.credentials_file
        if credentials and not credentials.is_absolute():
            self.nats.credentials_file = base / credentials
        for destination in self.alerts.destinations:
            if destination.ca_file and not destination.ca_file.is_absolute():
                destination.ca_file = base / destination.ca_file
        if not self.data_dir.is_absolute():
            self.data_dir = base / self.data_dir
        self.model_sources.allow = [
            text if "://" in text or Path(text).is_absolute() else str(base / text) for text in self.model_sources.allow
        ]

    def check_sources(self) -> None:
        """Raises ValueError for a model whose path is below none of the allowed sources (none given: all are)."""
        for index, model in enumerate(self.models):
            for field, path in (("path", model.path), ("adapter", model.adapter)):
                if path and not is_allowed(path, self.model_sources.allow):
                    raise ValueError(f"models.{index}.{field}: {not_allowed(path)}")

    def model(self, name: str) -> Model | None:
        """The configured model of that name."""
        return next((model for model in self.models if model.name == name), None)

    def clickhouse_dsn(self) -> str:
        """The DSN in force: the configured one, else chDB in the data dir."""
        if self.clickhouse.dsn:
            return self.clickhouse.dsn.get_secret_value()
        return f"chdb://{self.data_dir / 'clickhouse'}"
