"""What the router reads from the configuration, checked before anything starts."""

import ipaddress
import os

from services._runtime.settings import ConfigError
from services._runtime.settings_model import Settings
from services.router.adapters.keys import load_keys
from services.router.adapters.nats_secrets import check_named
from services.router.domain.auth import KeyRing

SERVICE = "router"


def read_keys(settings: Settings) -> KeyRing:
    """The API keys. Raises ConfigError for whatever else of the router's configuration cannot be used.

    That is a key that cannot be read, an address of `security.ip_allow` that is none, a secret's variable without one.
    """
    check_named(settings)
    for address in settings.security.ip_allow:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError:
            raise ConfigError(
                f"security.ip_allow: '{address}' is no address and no network: write it like 10.0.0.0/8"
            ) from None
    return load_keys(settings.security.api_keys, os.environ)
