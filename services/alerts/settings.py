"""What the alerts service reads from the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.v1.common import AlertLevel
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Destination, Settings
from services.alerts.domain.backoff import RetryPolicy

ACK_WAIT_S = 5.0
"""What a killed replica had in hand is delivered again after this long; a living one keeps telling that it works."""
PROGRESS_S = 1.5
SEND_TIMEOUT_S = 5
DRAIN_S = 1.0
"""At SIGTERM what is being delivered gets this long: the supervisor kills after 1.5 s."""


@dataclass(frozen=True)
class Channel:
    """One destination. ``url`` is a secret and never shown."""

    name: str
    type: str
    min_level: AlertLevel
    url: str | None = field(default=None, repr=False)
    channel: str | None = None


@dataclass(frozen=True)
class AlertsSettings:
    """Channels, how many alerts the history keeps, and the retry policy."""

    channels: tuple[Channel, ...]
    retention: int
    retry: RetryPolicy = field(default_factory=RetryPolicy)


def read(settings: Settings, environ: Mapping[str, str]) -> AlertsSettings:
    """This service's part of the configuration; with no destination configured, alerts go to the log.

    Raises ConfigError where a named variable is not set or two destinations have one name.
    """
    configured = settings.alerts.destinations or [Destination(type="log")]
    channels: list[Channel] = []
    for index, destination in enumerate(configured):
        key = f"alerts.destinations.{index}"
        name = destination.name or _free_name(destination.type, [channel.name for channel in channels])
        if any(channel.name == name for channel in channels):
            raise ConfigError(f"{key}.name: two destinations are named '{name}': give each its own name")
        level, url = AlertLevel(destination.min_level), _url(destination, key, environ)
        channels.append(Channel(name, destination.type, level, url, destination.channel))
    return AlertsSettings(channels=tuple(channels), retention=settings.alerts.retention)


def _free_name(base: str, taken: list[str]) -> str:
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def _url(destination: Destination, key: str, environ: Mapping[str, str]) -> str | None:
    if destination.type != "slack":
        return None
    if destination.webhook_url is not None:
        url = destination.webhook_url.get_secret_value()
    else:
        variable = str(destination.webhook_url_env)
        url = environ.get(variable, "")
        if not url:
            raise ConfigError(
                f"{key}.webhook_url_env: the environment variable {variable} is not set: set it to the webhook's URL"
            )
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"{key}.webhook_url: the webhook's URL must start with https:// (or http://)")
    return url
