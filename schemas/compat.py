"""What a change of messages breaks: `python -m schemas.compat OLD_DIR NEW_DIR`, exit 1 when anything.

A change is breaking when what was written before, or what an older writer still writes, may not be accepted or may
mean something else: a message or field that is gone, another type, a new required field, a narrowed enumeration or
limit, another default. Adding messages, optional fields and enumeration values is not.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EXACT = ("pattern", "format", "multipleOf", "uniqueItems")
_MISSING = object()


def breaking(old: dict[str, Schema], new: dict[str, Schema]) -> list[str]:
    """What is broken, one sentence each; empty when nothing is."""
    problems = []
    for name, schema in sorted(old.items()):
        if name not in new:
            problems.append(f"{name}: the message is gone")
        else:
            problems += _Comparison(schema, new[name]).run(name)
    return problems


class _Comparison:
    """One schema against its successor, following references on both sides."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        self._open: set[tuple[str, str]] = set()

    def run(self, name: str) -> list[str]:
        return list(self._compare(self._old, self._new, name))

    def _compare(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        references = (old.get("$ref", ""), new.get("$ref", ""))
        if all(references):
            if references in self._open:
                return
            self._open.add(references)
        old, new = self._resolve(self._old, old), self._resolve(self._new, new)
        yield from _default(old, new, path)
        if "anyOf" in old or "anyOf" in new:
            yield from self._variants(old.get("anyOf", [old]), new.get("anyOf", [new]), path)
        else:
            yield from self._plain(old, new, path)
        self._open.discard(references)

    def _resolve(self, root: Schema, schema: Schema) -> Schema:
        while "$ref" in schema:
            target: Any = root
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
        return schema

    def _variants(self, old: list[Schema], new: list[Schema], path: str) -> Iterator[str]:
        for variant in old:
            attempts = [list(self._compare(variant, candidate, path)) for candidate in new]
            if all(attempts):
                yield min(attempts, key=len)[0] if len(old) == 1 == len(new) else (
                    f"{path}: {_word(self._resolve(self._old, variant))} is not accepted any more "
                    f"({min(attempts, key=len)[0].split(': ', 1)[-1]})"
                )

    def _plain(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        changed = _type_change(old, new)
        if changed:
            yield f"{path}: {changed}"
            return
        yield from _limits(old, new, path)
        yield from self._fields(old, new, path)
        yield from self._elements(old, new, path)

    def _fields(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        old_fields, new_fields = old.get("properties", {}), new.get("properties", {})
        required = set(old.get("required", []))
        for name in sorted(set(new.get("required", [])) - required):
            how = "is required now" if name in old_fields else "is a new required field: give it a default"
            yield f"{path}.{name}: {how}"
        for name, schema in sorted(old_fields.items()):
            if name not in new_fields:
                yield f"{path}.{name}: the field is gone"
            else:
                yield from self._compare(schema, new_fields[name], f"{path}.{name}")
        if new.get("additionalProperties") is False and old.get("additionalProperties", True) is not False:
            yield f"{path}: unknown fields are refused now"

    def _elements(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        for keyword in ("items", "additionalProperties", "propertyNames"):
            if isinstance(new.get(keyword), dict):
                before = old.get(keyword)
                if before is None or before is True:
                    yield f"{path}[]: its {keyword} are restricted now"
                elif isinstance(before, dict):
                    yield from self._compare(before, new[keyword], f"{path}[]")
        before, after = old.get("prefixItems", []), new.get("prefixItems", [])
        if len(before) != len(after):
            yield f"{path}[]: has {len(after)} fixed elements instead of {len(before)}"
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from self._compare(one, other, f"{path}[{index}]")


def _word(schema: Schema) -> str:
    return str(schema.get("type") or schema.get("enum") or "any value")


def _types(schema: Schema) -> set[str] | None:
    """JSON types that a schema accepts; None for any."""
    if "type" in schema:
        types = schema["type"]
        return {types} if isinstance(types, str) else set(types)
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return None if values is None else {_type_of(value) for value in values}


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", type(None): "null", list: "array", dict: "object"}
    return names[type(value)]


def _type_change(old: Schema, new: Schema) -> str | None:
    before, after = _types(old), _types(new)
    if after is None or (before is not None and before <= _widened(after)):
        return None
    shown = " or ".join(sorted(before)) if before else "any value"
    return f"type changed from {shown} to {' or '.join(sorted(after))}"


def _widened(types: set[str]) -> set[str]:
    return types | {"integer"} if "number" in types else types


def _default(old: Schema, new: Schema, path: str) -> Iterator[str]:
    before, after = old.get("default", _MISSING), new.get("default", _MISSING)
    if before is not _MISSING and after is not _MISSING and before != after:
        yield f"{path}: default changed from {json.dumps(before)} to {json.dumps(after)}"


def _limits(old: Schema, new: Schema, path: str) -> Iterator[str]:
    allowed = _values(new)
    if allowed is not None:
        before = _values(old)
        gone = [value for value in before if value not in allowed] if before is not None else ["any other value"]
        if gone:
            yield f"{path}: {', '.join(map(str, gone))} not accepted any more"
    for keyword in _LOWER:
        if keyword in new and new[keyword] > old.get(keyword, float("-inf")):
            yield f"{path}: {keyword} narrowed from {old.get(keyword, 'none')} to {new[keyword]}"
    for keyword in _UPPER:
        if keyword in new and new[keyword] < old.get(keyword, float("inf")):
            yield f"{path}: {keyword} narrowed from {old.get(keyword, 'none')} to {new[keyword]}"
    for keyword in _EXACT:
        if keyword in new and new[keyword] != old.get(keyword):
            yield f"{path}: {keyword} changed from {old.get(keyword, 'none')} to {new[keyword]}"


def _values(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values: list[Any] | None = schema.get("enum")
    return values


def load(folder: Path) -> dict[str, Schema]:
    """Schemas of a directory by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def main(argv: list[str]) -> int:
    """Compare two directories; the exit status."""
    if len(argv) != 2 or not all(Path(folder).is_dir() for folder in argv):
        sys.stderr.write("usage: python -m schemas.compat OLD_DIR NEW_DIR\n")
        return 2
    problems = breaking(load(Path(argv[0])), load(Path(argv[1])))
    for problem in problems:
        sys.stderr.write(f"breaking: {problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
