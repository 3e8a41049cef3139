"""Makes an example of a message from its JSON Schema: the golden example of a message that has none yet."""

import re
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_STRINGS = (
    "b", "0123456789abcdef", "1.0", "final", "latency", "immediate", "sha256:" + "0" * 64, "example text", "0" * 64,
)  # fmt: skip


def example(schema: Schema, *, full: bool) -> Any:
    """A value that the schema accepts: every field set to something else than nothing, or only the required ones.

    Raises ValueError for a pattern that none of the known strings matches.
    """
    return _Maker(schema, full=full).make(schema)


class _Maker:
    def __init__(self, root: Schema, *, full: bool) -> None:
        self._root = root
        self._full = full

    def make(self, schema: Schema) -> Any:
        if "$ref" in schema:
            return self.make(self._root["$defs"][schema["$ref"].rsplit("/", 1)[-1]])
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        if "anyOf" in schema:
            return self.make(next(variant for variant in schema["anyOf"] if variant.get("type") != "null"))
        kind = schema.get("type")
        makers: dict[str, Callable[[Schema], Any]] = {
            "object": self._object, "array": self._array, "string": _string, "integer": _integer, "number": _number,
            "boolean": _boolean,
        }  # fmt: skip
        return makers[kind](schema) if kind in makers else "anything"

    def _object(self, schema: Schema) -> Any:
        if "properties" in schema:
            required = schema.get("required", [])
            return {
                name: self.make(field)
                for name, field in schema["properties"].items()
                if self._full or name in required
            }
        values = schema.get("additionalProperties", {})
        # "7" is a key of dictionaries by number and by name alike
        key = self.make(schema["propertyNames"]) if "propertyNames" in schema else "7"
        return {key: self.make(values if isinstance(values, dict) else {})}

    def _array(self, schema: Schema) -> list[Any]:
        if "prefixItems" in schema:
            return [self.make(item) for item in schema["prefixItems"]]
        return [self.make(schema.get("items", {}))]


def _boolean(schema: Schema) -> bool:
    return not schema.get("default", False)


def _string(schema: Schema) -> str:
    default = schema.get("default")
    if default:
        return str(default)
    pattern = schema.get("pattern")
    for text in _STRINGS if pattern else ("example text",):
        if pattern is None or re.search(pattern, text):
            return text
    raise ValueError(f"no example matches the pattern {pattern}: add one to schemas.examples")


def _integer(schema: Schema) -> int:
    return int(schema.get("default") or min(max(3, schema.get("minimum", 3)), schema.get("maximum", 3)))


def _number(schema: Schema) -> float:
    value = float(schema.get("default") or 0.75)
    return float(min(max(value, schema.get("minimum", value)), schema.get("maximum", value)))
