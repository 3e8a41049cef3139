"""Says what is wrong with what a caller sent: the field, the reason, the remedy."""

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from services.router.domain.refusals import Refused, Unprocessable

_TEXT, _WHOLE = "must be a text in double quotes", "must be a whole number such as 5, without quotes"
_NUMBER, _BOOL = "must be a number such as 5 or 2.5, without quotes", "must be true or false, without quotes"
_LIST, _OBJECT = "must be a list: [...]", "must be an object: {...}"
_KINDS = {
    "string_type": _TEXT, "string_unicode": "must be whole characters in UTF-8", "int_type": _WHOLE,
    "int_parsing": _WHOLE, "int_from_float": _WHOLE, "int_parsing_size": "must be smaller", "float_type": _NUMBER,
    "float_parsing": _NUMBER, "bool_type": _BOOL, "bool_parsing": _BOOL, "list_type": _LIST, "tuple_type": _LIST,
    "dict_type": _OBJECT, "model_type": _OBJECT, "model_attributes_type": _OBJECT, "dataclass_type": _OBJECT,
    "finite_number": "must be a finite number",
}  # fmt: skip
"""Complaints about a type, in words that need no knowledge of the parser."""
_TYPE = re.compile(r"str|int|float|bool|(?:dict|list)\[.*\]|function-.*|constrained-.*")
_OF_NAME = "[key]"
_CHOICES = re.compile(r"\^\(([\w|-]+)\)\$")
_OF_PARSER = re.compile(r"^(?:input|string|list|value|dictionary|tuple) should", re.IGNORECASE)
_LONG = re.compile(r"'([^']{200})[^']{20,}'")


def explained(exc: ValidationError, model: type[BaseModel], within: str = "") -> Refused:
    """The first error, with the field's path (below ``within``), what is wrong, and what would be right."""
    errors = exc.errors(include_url=False, include_input=False)
    first = errors[0]
    text = first["msg"].removeprefix("Value error, ")
    path = _path(first["loc"]) or _field_in(text, model)
    where = ".".join(part for part in (within, path) if part) or None
    if first["type"] == "extra_forbidden" and where is None:
        where = "''"
    if first["type"] == "missing":
        return Unprocessable(f"{where} is missing: give it", param=where, code="missing_field")
    if first["type"] == "extra_forbidden" and where in getattr(model, "later", ()):
        return Unprocessable(f"{where} comes in a later version: leave it out", param=where, code="later_version")
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(_fields_beside(first["loc"], model))) or "no field at all"
        return Unprocessable(
            f"{where} is not a field that this version knows: check its spelling or leave it out (known here: {known})",
            param=where, code="unknown_field",
        )  # fmt: skip
    ways = [one for one in errors if first["loc"] and _path(one["loc"]) == _path(first["loc"])] or [first]
    said = " or ".join(dict.fromkeys(_plain(one["type"], one["msg"].removeprefix("Value error, "), one.get("ctx", {}))
                                     for one in ways)).replace(" or must be ", " or ")  # fmt: skip
    if first["loc"] and first["loc"][-1] == _OF_NAME:
        said = f"a name in it {said}"
    return Unprocessable(f"{where}: {said}" if where else said, param=where)


def _path(loc: tuple[int | str, ...]) -> str:
    """Where it is, without the names of types by which the parser tells apart what a field may hold."""
    if loc and loc[-1] == _OF_NAME:
        loc = loc[:-2]
    return ".".join(str(part) for part in loc if isinstance(part, int) or not _TYPE.fullmatch(part))


def _plain(kind: str, text: str, of: dict[str, Any]) -> str:
    """What a complaint comes down to; that of a check of our own is in plain words already."""
    if kind in _KINDS:
        return _KINDS[kind]
    if kind == "string_pattern_mismatch":
        choices = _CHOICES.fullmatch(of["pattern"])
        return f"must be {' or '.join(choices[1].split('|'))}" if choices else f"must fit the pattern {of['pattern']}"
    said = _OF_PARSER.sub("must", text, count=1).replace(" after validation", "")
    return _LONG.sub(r"'\1...'", f"{said[:1].lower()}{said[1:]}")


def _field_in(text: str, model: type[BaseModel]) -> str:
    """The field that a complaint about the whole is about, as the complaint itself has it."""
    words = re.findall(r"\w+", re.sub(r"'[^']*'", "", text))
    return next((word for word in words if word in model.model_fields and word not in {"name", "engine"}), "")


def _fields_beside(path: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The fields that the object holding the last part of ``path`` may have."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        nested = _model_in(field.annotation) if field else None
        if nested is not None:
            model = nested
        elif not isinstance(part, int):
            break
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, also as an option or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)
