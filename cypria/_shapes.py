"""From decoded JSON to frozen data classes: what a later version adds is let pass, what is missing is named."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cypria.errors import LOOK, UnexpectedAnswer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of all answers; ``raw`` is the whole object."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def make(shape: type[T]) -> Callable[[Any], T]:
    """From a decoded answer to a data class. Raises UnexpectedAnswer naming what it lacks."""
    return lambda data: _made(shape, data)


def listed(shape: type[T], name: str) -> Callable[[Any], list[T]]:
    """The same for the list in the field ``name``."""

    def made(data: Any) -> list[T]:
        if not isinstance(data.get(name), list):
            raise _lacks(name, data)
        return [_made(shape, one) for one in data[name]]

    return made


def rows(name: str) -> Callable[[Any], list[dict[str, Any]]]:
    """The list of objects in the field ``name`` as it is."""

    def made(data: Any) -> list[dict[str, Any]]:
        if not isinstance(data.get(name), list):
            raise _lacks(name, data)
        return list(data[name])

    return made


def _made(shape: type[T], data: Any) -> T:
    if not isinstance(data, dict):
        raise _lacks(shape.__name__, data)
    given: dict[str, Any] = {"raw": data}
    known: Any = shape
    for name, (wanted, required) in _fields(known).items():
        if data.get(name) is not None:
            given[name] = _value(wanted, name, data[name])
        elif required:
            if name not in data or wanted is str:
                raise _lacks(name, data)
            given[name] = None
    return shape(**given)


@cache
def _fields(shape: Any) -> dict[str, tuple[Any, bool]]:
    """By name: its type, and whether there must be one."""
    hints = get_type_hints(shape)
    return {
        one.name: (hints[one.name], one.default is MISSING and one.default_factory is MISSING)
        for one in fields(shape)
        if one.name != "raw"
    }


def _value(wanted: Any, name: str, value: Any) -> Any:
    """Nested shapes, alone, in a list or by name; everything else as it is."""
    inner = [one for one in (*get_args(wanted), wanted) if isinstance(one, type) and issubclass(one, Shape)]
    if not inner:
        return value
    origin = get_origin(wanted)
    if origin is list and isinstance(value, list):
        return [_made(inner[0], one) for one in value]
    if origin is dict and isinstance(value, dict):
        return {key: _made(inner[0], one) for key, one in value.items()}
    if origin in {list, dict}:
        raise _lacks(name, value)
    return _made(inner[0], value)


def _lacks(name: str, data: Any) -> UnexpectedAnswer:
    return UnexpectedAnswer(200, f"the answer has no '{name}': {LOOK}", body=data)
