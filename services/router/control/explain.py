"""Says what is wrong with what a caller sent: the field, the reason, the remedy."""

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from services.router.domain.refusals import Refused, Unprocessable


def explained(exc: ValidationError, model: type[BaseModel], within: str = "") -> Refused:
    """The first error, with the field's path (below ``within``), what is wrong, and what would be right."""
    first = exc.errors(include_url=False, include_input=False)[0]
    text = first["msg"].removeprefix("Value error, ")
    path = ".".join(str(part) for part in first["loc"]) or _field_in(text, model)
    where = ".".join(part for part in (within, path) if part) or None
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
    said = f"{text[:1].lower()}{text[1:]}"
    return Unprocessable(f"{where}: {said}" if where else said, param=where)


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
