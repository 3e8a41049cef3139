"""What all routers share and nobody else reads: the unit salt and the signing key of feedback tokens."""

import os
import secrets
from dataclasses import dataclass

from schemas.streams import SECRETS
from services._runtime import variables
from services._runtime.bus import Bus, compare_and_set
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Settings

UNIT_SALT = "unit_salt"
SIGNING_KEY = "signing_key"
MIN_BYTES = 16


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Raw bytes of both."""

    unit_salt: bytes
    signing_key: bytes


def check_named(settings: Settings) -> None:
    """Raises ConfigError when a variable that the configuration names is unset or too short; needs no bus."""
    for setting, variable in (
        ("privacy.unit_salt_env", settings.privacy.unit_salt_env),
        ("security.signing_key_env", settings.security.signing_key_env),
    ):
        if variable:
            _named(setting, variable)


async def load_secrets(bus: Bus, settings: Settings) -> Secrets:
    """From the environment where the configuration names a variable, else from KV, where the first router makes them.

    Raises ConfigError when a named variable is unset or too short, NatsError when the bus does not answer.
    """
    kv = await bus.js.key_value(SECRETS.name)

    async def shared(key: str) -> bytes:
        fresh = secrets.token_bytes(32)
        value, _ = await compare_and_set(kv, key, lambda present: None if present else fresh)
        return value or fresh

    salt_env, key_env = settings.privacy.unit_salt_env, settings.security.signing_key_env
    return Secrets(
        unit_salt=_named("privacy.unit_salt_env", salt_env) if salt_env else await shared(UNIT_SALT),
        signing_key=_named("security.signing_key_env", key_env) if key_env else await shared(SIGNING_KEY),
    )


def _named(setting: str, variable: str) -> bytes:
    value = (variables.value(variable, os.environ) or "").encode()
    if len(value) < MIN_BYTES:
        raise ConfigError(
            f"{setting}: the environment variable {variable} holds {len(value)} bytes: set it (or {variable}"
            f"{variables.SUFFIX} to a file that holds it) to at least {MIN_BYTES}, the same on every router"
        )
    return value
