"""The effective configuration as callers may see it."""

import re
from typing import Any

from services._runtime.settings_model import Settings

MASK = "**********"
_SECRET = re.compile(r"(secret|password|token|webhook|dsn|sha256|(^|_)key$)", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def masked(settings: Settings) -> dict[str, Any]:
    """Sections and names as in the file; secrets, digests of keys and passwords inside URLs are masked."""
    shown = mask(settings.model_dump(mode="json"))
    if not isinstance(shown, dict):
        raise TypeError("settings are a mapping")
    return shown


def mask(value: Any, name: str = "") -> Any:
    """Plain data without the secrets in it; ``name`` is the key that it stands under."""
    if isinstance(value, dict):
        # Headers for an upstream are whatever it asks for, keys most of all.
        hidden = name == "headers"
        return {key: MASK if hidden and item else mask(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [mask(item, name) for item in value]
    if isinstance(value, str):
        if value and not name.endswith("_env") and _SECRET.search(name):
            return MASK
        return _USERINFO.sub(f"{MASK}@", value)
    return value
