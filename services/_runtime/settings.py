"""Configuration: one YAML file, overridden by the environment, refused whole when anything is wrong.

`load` is the only way in. Nothing is guessed: an unknown key, a wrong type, a duplicate key or a
contradiction raises ConfigError with the source, the key and the reason.
"""

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from services._runtime import variables
from services._runtime.settings_base import ConfigError
from services._runtime.settings_model import Settings

__all__ = ["CONFIG_PATH", "SPEC_ENVIRONMENT", "ConfigError", "load"]

SPEC_ENVIRONMENT = {
    "APHRODITE_AB_TESTING_ENABLED": ("ab_testing", "enabled"),
    "AB_TEST_DEFAULT_SPLIT_PERCENT": ("ab_testing", "default_traffic_split_percent"),
    "AB_TEST_MAX_DURATION_MINUTES": ("ab_testing", "max_test_duration_minutes"),
    "AB_TEST_MONITORING_INTERVAL": ("monitoring", "check_interval_seconds"),
    "AB_TEST_ALERT_RETENTION": ("alerts", "retention"),
    "APHRODITE_LOG_LEVEL": ("logging", "level"),
    "AB_TEST_DEBUG": ("logging", "debug"),
    "AB_TEST_VERBOSE_METRICS": ("logging", "verbose_metrics"),
    "AB_TEST_LOG_FILE": ("logging", "file"),
    "CYPRIA_DATA_DIR": ("data_dir",),
}
CONFIG_PATH = "APHRODITE_AB_TESTING_CONFIG_PATH"
PREFIX = "CYPRIA_"


_MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """YAML without silently overwritten duplicate keys."""


def _no_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise ConfigError(f"key '{key}' stands twice (again on line {line}): keep one of them")
        seen.add(key)
    loader.flatten_mapping(node)
    return typing.cast("dict[Any, Any]", yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _no_duplicates)


def load(config: Path | None, environ: Mapping[str, str]) -> Settings:
    """The effective settings from a file (or the one that the environment names) and the environment.

    Relative paths in the file are relative to the file. Raises ConfigError.
    """
    path = config
    if path is None and environ.get(CONFIG_PATH):
        path = Path(environ[CONFIG_PATH])
    raw = _read(path) if path else {}
    source = str(path) if path else "defaults"
    origins = _overlay(raw, environ)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, source, origins)) from None
    if path:
        settings.resolve_paths(path.resolve().parent)
    try:
        settings.check_sources()
    except ValueError as exc:
        raise ConfigError(f"{source}: {exc}") from None
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}): give the path of a YAML file") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 at byte {exc.start}: save the file as UTF-8") from None
    try:
        # _StrictLoader derives from SafeLoader: no object construction.
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from None
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" on line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{where}: {getattr(exc, 'problem', exc)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the file must hold a mapping of sections, not a {type(data).__name__}")
    return data


def _overlay(raw: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Write the environment's values over the file's; returns which variable set which key."""
    origins: dict[tuple[str, ...], str] = {}
    for name, key in SPEC_ENVIRONMENT.items():
        if name in environ:
            _set(raw, key, environ[name], name)
            origins[key] = name
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in SPEC_ENVIRONMENT:
            continue
        key, text = _key(name), environ[name]
        if name.endswith(variables.SUFFIX) and not _is_setting(key):
            # A file in the place of the variable; settings that name files themselves end in _FILE as well.
            variable = name.removesuffix(variables.SUFFIX)
            if _is_setting(_key(variable)):
                key, text = _key(variable), variables.value(variable, environ) or ""
        # What names no section may be somebody's own, such as CYPRIA_ADMIN_KEY.
        if len(key) > 1 or key[0] in Settings.model_fields:
            _set(raw, key, text, name)
            origins[key] = name
    return origins


def _key(variable: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in variable[len(PREFIX) :].split("__"))


def _is_setting(key: tuple[str, ...]) -> bool:
    annotation: Any = Settings
    for part in key:
        model = _model_in(annotation)
        if model is None or part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
    return True


def _set(raw: dict[str, Any], key: tuple[str, ...], text: str, variable: str) -> None:
    annotation: Any = Settings
    node = raw
    for depth, part in enumerate(key):
        model = _model_in(annotation)
        if typing.get_origin(annotation) is list:
            whole = PREFIX + "__".join(key[:depth]).upper()
            raise ConfigError(
                f"environment variable {variable}: {'.'.join(key[:depth])} is a list: give it whole, as {whole}='[...]'"
            )
        if model is None or part not in model.model_fields:
            raise ConfigError(
                f"environment variable {variable}: there is no setting '{'.'.join(key[: depth + 1])}': "
                "check its spelling in docs/configuration.md or unset it"
            )
        annotation = model.model_fields[part].annotation
        if depth < len(key) - 1:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f"environment variable {variable}: '{part}' in the file is not a section")
            node = child
    node[key[-1]] = text if _is_text(annotation) else _scalar(text, variable)


def _scalar(text: str, variable: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        # Not what it holds: there may be secrets in a list or a section.
        raise ConfigError(
            f"environment variable {variable}: its value is not YAML: check quotes and brackets"
        ) from None


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return typing.get_args(annotation)
    return (annotation,)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _is_text(annotation: Any) -> bool:
    return any(member in {str, SecretStr, Path} for member in _members(annotation))


_SHAPES = {
    "model_type": "Input should be a section, keys with values: give it some, or remove it",
    "dict_type": "Input should be a section, keys with values: give it some, or remove it",
    "list_type": "Input should be a list, such as [a, b]",
    "string_type": "Input should be text: put it in quotes",
}


def _explain(exc: ValidationError, source: str, origins: Mapping[tuple[str, ...], str]) -> str:
    lines = []
    for error in exc.errors(include_url=False, include_input=False):
        loc = error["loc"]
        key = ".".join(str(part) for part in loc) or "(whole file)"
        prefix = tuple(str(part) for part in loc)
        variable = next((v for k, v in origins.items() if prefix[: len(k)] == k), None)
        where = f"environment variable {variable}" if variable else source
        reason = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            reason = "unknown key: check its spelling in docs/configuration.md or remove it"
        elif error["type"] in _SHAPES:
            reason = _SHAPES[error["type"]]
        lines.append(f"{where}: {key}: {reason}")
    return "\n".join(lines)
