"""Variables of the environment that a configuration names, and which service each is for."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from services._runtime import variables
from services._runtime.settings_model import Settings

_READERS: Mapping[str, str] = {
    "security": "router", "privacy": "router", "models": "inference", "alerts": "alerts", "integrations": "alerts",
}  # fmt: skip
"""The one service that reads what a section's variables hold."""


def named(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(setting, variable) of every setting that names one, such as ``models.0.api_key_env``."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from named(item, f"{path}.{index}")
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            inner, where = getattr(value, name), f"{path}.{name}".lstrip(".")
            if name.endswith("_env") and isinstance(inner, str):
                yield where, inner
            else:
                yield from named(inner, where)


def without(environ: Mapping[str, str], settings: Settings, service: str) -> dict[str, str]:
    """The environment less what holds secrets of other services alone; files in the place of variables likewise.

    A service that nothing names variables for, such as ``nats-server``, gets none of them.
    """
    others: set[str] = set()
    own: set[str] = set()
    for setting, variable in named(settings):
        reader = _READERS.get(setting.partition(".")[0])
        if reader is not None:
            (own if reader == service else others).add(variable)
    if service == _READERS["integrations"]:
        own.update(name for one in settings.integrations for name in one.environment or [])
    hidden = others - own
    return {name: text for name, text in environ.items() if name.removesuffix(variables.SUFFIX) not in hidden}
