"""What the alerts service reads from the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.v1.common import AlertLevel
from services._runtime import variables
from services._runtime.settings import ConfigError
from services._runtime.settings_alerts import SECRETS, Destination
from services._runtime.settings_integrations import CALLS, METRIC_WINDOW, Integration
from services._runtime.settings_model import Settings
from services.alerts.domain.backoff import RetryPolicy
from services.alerts.domain.route import Route
from services.alerts.domain.wording import Wording

ACK_WAIT_S = 5.0
"""What a killed replica had in hand is delivered again after this long; a living one keeps telling that it works."""
PROGRESS_S = 1.5
SEND_TIMEOUT_S = 5
DRAIN_S = 1.0
"""At SIGTERM what is being delivered gets this long: the supervisor kills after 1.5 s."""

_URLS = frozenset({"webhook_url"})
_HTTP_TYPES = frozenset({"slack", "pagerduty", "webhook", "dtesn"})
WINDOW_S = 60
"""How long the windows are whose figures integrations are told, unless they say otherwise."""


@dataclass(frozen=True)
class Channel:
    """One destination. ``secrets`` are read from the file or the environment and never shown."""

    name: str
    options: Destination
    route: Route = field(default_factory=Route)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    wording: Wording = field(default_factory=Wording)

    @property
    def type(self) -> str:
        """Such as ``slack``."""
        return self.options.type


@dataclass(frozen=True)
class Link:
    """One integration. ``secrets`` are read from the file or the environment and never shown; ``environment`` is what a
    subscriber's process gets of this one's; ``models`` translates names of models where another system has its own.
    """

    name: str
    options: Integration
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    models: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """Such as ``dtesn``."""
        return self.options.type

    @property
    def events(self) -> tuple[str, ...]:
        """What it is told: kinds of calls of a subscriber, patterns of events of a webhook."""
        if self.type == "dtesn":
            return ("rolled_back", "decided")
        return tuple(self.options.events or (CALLS if self.type == "subscriber" else ("test.*",)))

    @property
    def window_s(self) -> int | None:
        """Length of the windows that it is told of; None where it wants none."""
        return (self.options.window_seconds or WINDOW_S) if METRIC_WINDOW in self.events else None


@dataclass(frozen=True)
class AlertsSettings:
    """Channels, how many alerts the history keeps, integrations, and the retry policy."""

    channels: tuple[Channel, ...]
    retention: int
    links: tuple[Link, ...] = ()
    min_group_size: int = 1
    retry: RetryPolicy = field(default_factory=RetryPolicy)


def read(settings: Settings, environ: Mapping[str, str]) -> AlertsSettings:
    """This service's part of the configuration; with no destination configured, alerts go to the log.

    Raises ConfigError where a named variable is not set, or two destinations or integrations have one name.
    """
    configured = settings.alerts.destinations or [Destination(type="log")]
    channels: list[Channel] = []
    for index, destination in enumerate(configured):
        key = f"alerts.destinations.{index}"
        name = destination.name or _free_name(destination.type, [channel.name for channel in channels])
        if any(channel.name == name for channel in channels):
            raise ConfigError(f"{key}.name: two destinations are named '{name}': give each its own name")
        wording = Wording(destination.title, destination.text, settings.alerts.public_url)
        channels.append(Channel(name, destination, _route(destination), _secrets(destination, key, environ), wording))
    return AlertsSettings(
        channels=tuple(channels), retention=settings.alerts.retention, links=_links(settings, environ),
        min_group_size=settings.privacy.min_group_size,
    )  # fmt: skip


def setting(options: Destination | Integration, name: str) -> str:
    """A secret's setting as the configuration has it, with the variable where it names one."""
    variable = getattr(options, f"{name}_env", None)
    return f"{name}_env ({variable})" if variable else name


def _links(settings: Settings, environ: Mapping[str, str]) -> tuple[Link, ...]:
    upstream = {model.name: model.upstream_model for model in settings.models if model.upstream_model}
    links: list[Link] = []
    for index, options in enumerate(settings.integrations):
        key = f"integrations.{index}"
        name = options.name or _free_name(options.entry_point or options.type, [link.name for link in links])
        if any(link.name == name for link in links):
            raise ConfigError(f"{key}.name: two integrations are named '{name}': give each its own name")
        environment = {}
        for variable in options.environment or []:
            value = variables.value(variable, environ)
            if value is None:
                raise ConfigError(f"{key}.environment: the environment variable {variable} is not set: set it")
            environment[variable] = value
        names = {**upstream, **(options.model_names or {})}
        links.append(Link(name, options, _secrets(options, key, environ), environment, names))
    return tuple(links)


def _free_name(base: str, taken: list[str]) -> str:
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def _route(destination: Destination) -> Route:
    repeat = destination.repeat_interval_seconds
    return Route(
        min_level=AlertLevel(destination.min_level),
        levels=frozenset(AlertLevel(level) for level in destination.levels) if destination.levels else None,
        tests=tuple(destination.tests) if destination.tests else None,
        tags=destination.tags or {},
        repeat_ms=None if repeat is None else round(repeat * 1000),
        per_minute=destination.messages_per_minute,
        group_s=destination.group_seconds,
    )


def _secrets(destination: Destination | Integration, key: str, environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in SECRETS:
        given, variable = getattr(destination, name, None), getattr(destination, f"{name}_env", None)
        if given is not None:
            found[name] = given.get_secret_value()
        elif variable is not None:
            found[name] = variables.value(variable, environ) or ""
            if not found[name]:
                raise ConfigError(
                    f"{key}.{name}_env: the environment variable {variable} is not set: set it to the {name}, or "
                    f"{variable}{variables.SUFFIX} to a file that holds it"
                )
    for name in ("webhook_url", "url"):
        http = name in _URLS or destination.type in _HTTP_TYPES
        if http and name in found and not found[name].startswith(("https://", "http://")):
            raise ConfigError(f"{key}.{name}: the URL must start with https:// (or http://)")
    return found
