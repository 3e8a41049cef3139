"""Writes docs/configuration.md from the settings model: `python -m services._runtime.reference`; `--check` compares."""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services._runtime.generated import bring_up_to_date
from services._runtime.settings import SPEC_ENVIRONMENT
from services._runtime.settings_model import Settings

TARGET = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

HEAD = """# Configuration

One YAML file, given with `--config` or in `APHRODITE_AB_TESTING_CONFIG_PATH`. Every setting can also be given as an
environment variable, `CYPRIA_SECTION__NAME`, whose value is read as YAML (deeper names with further `__`; a list or a
section whole, such as `CYPRIA_MODELS='[{name: stable, ...}]'`); the environment wins over the file. Instead of a
variable, `NAME_FILE` may give the path of a file that holds its value: of these, and of every variable that a setting
ending in `_env` names. Relative paths are relative to the file. An unknown key, a wrong type, a duplicate key or a
contradiction stops start-up with the file, the key and the reason; `cypria doctor --config FILE` says all that without
a start. This page is made from the code: `python -m services._runtime.reference`.

| setting | type | default |
| --- | --- | --- |
"""


def render() -> str:
    """The page as Markdown."""
    rows = [f"| `{path}` | {kind} | {default} |" for path, kind, default in _walk(Settings, "")]
    spec = [f"| `{variable}` | `{'.'.join(key)}` |" for variable, key in SPEC_ENVIRONMENT.items()]
    tail = "\n## Environment variables of the spec\n\n| variable | setting |\n| --- | --- |\n"
    return HEAD + "\n".join(rows) + "\n" + tail + "\n".join(spec) + "\n"


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        nested, is_list = _nested(field.annotation)
        if nested is not None:
            yield from _walk(nested, f"{path}[]." if is_list else f"{path}.")
        else:
            yield path, _kind(field), _default(field)


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member, False
        if typing.get_origin(member) is list:
            inner = typing.get_args(member)[0]
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                return inner, True
    return None, False


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return typing.get_args(annotation)
    return (annotation,)


def _kind(field: FieldInfo) -> str:
    words = []
    for annotated in _members(field.annotation):
        is_annotated = typing.get_origin(annotated) is typing.Annotated
        member = typing.get_args(annotated)[0] if is_annotated else annotated
        if typing.get_origin(member) is typing.Literal:
            words += [f"`{value}`" for value in typing.get_args(member)]
        elif member is SecretStr:
            words.append("secret text")
        elif member is not type(None):
            words.append(getattr(member, "__name__", str(member)).replace("str", "text"))
    bounds = [
        f"{symbol} {value:g}"
        for meta in field.metadata
        for symbol, attribute in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt"))
        if (value := getattr(meta, attribute, None)) is not None
    ]
    return " or ".join(words) + (f" ({', '.join(bounds)})" if bounds else "")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "`~/.local/share/cypria`" if field.default_factory else "required"
    return "none" if field.default is None else f"`{field.default}`"


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is as the code has it; the exit status."""
    return bring_up_to_date(arguments, "python -m services._runtime.reference", {TARGET: render()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
