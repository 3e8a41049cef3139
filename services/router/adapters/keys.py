"""API keys from the configuration and the environment; what is kept is their SHA-256."""

import hashlib
from collections.abc import Iterable, Mapping

from services._runtime import variables
from services._runtime.settings import ConfigError
from services._runtime.settings_model import ApiKey
from services.router.domain.auth import KeyRing, Principal, Role, StoredKey


def load_keys(keys: Iterable[ApiKey], environ: Mapping[str, str]) -> KeyRing:
    """The ring of all configured keys.

    Raises ConfigError when a variable that `key_env` names is unset or empty, or two names share one key.
    """
    stored: dict[bytes, StoredKey] = {}
    for key in keys:
        digest = _digest(key, environ)
        if digest in stored:
            other = stored[digest].principal.name
            raise ConfigError(
                f"security.api_keys: '{key.name}' and '{other}' are the same key: give each its own, "
                "or what they do cannot be told apart"
            )
        who = Principal(key.name, Role.named(key.role), key.requests_per_minute, key.control_per_minute)
        stored[digest] = StoredKey(who, digest)
    return KeyRing(list(stored.values()))


def _digest(key: ApiKey, environ: Mapping[str, str]) -> bytes:
    if key.key_sha256 is not None:
        return bytes.fromhex(key.key_sha256)
    name = key.key_env or ""
    secret = (variables.value(name, environ) or "").strip()
    if not secret:
        raise ConfigError(
            f"security.api_keys: key '{key.name}' is read from the environment variable {name}, which is not set: "
            f"set it, or {name}{variables.SUFFIX} to a file that holds it, or give key_sha256"
        )
    return hashlib.sha256(secret.encode()).digest()
