"""Writes docs/reference/http.md and bus.md from the OpenAPI and AsyncAPI documents.

`python -m services.router.control.reference` writes them, `--check` says which is not as the code has it and exits 1.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from services._runtime.generated import bring_up_to_date
from services.router.control import asyncapi
from services.router.control.http import build_app
from services.router.control.openapi import ALWAYS, ERROR, STATUSES

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "reference"
COMMAND = "python -m services.router.control.reference"
_TAGS = {
    "tests": "Tests", "feedback": "Feedback", "monitoring": "Monitoring", "models": "Models", "keys": "Keys",
    "units": "Units", "system": "System", "inference": "Inference", "operations": "Without a key",
}  # fmt: skip
_HTTP_HEAD = """# HTTP API

Everything that the edge answers, on `http.port` (2242). A request needs `Authorization: Bearer KEY`; the role is that
which the key must have at least, in the order `client`, `viewer`, `operator`, `admin`. Bodies are JSON objects, and an
unknown field is refused. The running system says the same at `/docs`, where it can be tried, and as OpenAPI at
`/openapi.json`. This page is made from it: `{command}`.

Every refusal has one shape, `{shape}`.
What any request may be answered: {always}.
Other statuses stand with the request.
"""
_BUS_HEAD = """# Bus

Every subject on NATS: what it carries, how it is answered, who may send it. Callers from outside connect as the user
`caller` with the inbox prefix `_INBOX.caller`, may publish to `cypria.request.*` and `cypria.control.*` alone, and send
the header `Authorization: Bearer KEY`, as over HTTP. All else is between the services. The running system says the same
as AsyncAPI at `/asyncapi.yaml`. This page is made from it: `{command}`.
How users and accounts are set up: [users of the bus](../../infra/nats/README.md).

"""
_FIELDS = "| field | type | meaning |\n| --- | --- | --- |\n"


def http() -> str:
    """The page of the HTTP API."""
    nothing = cast("Any", None)  # routes are described, none is called
    document = build_app(nothing, nothing, nothing, 0).openapi()
    names = document["components"]["schemas"]
    refusal = cast("dict[str, Any]", ERROR)["properties"]["error"]["properties"]
    shape = json.dumps({"error": dict.fromkeys(refusal, "...")})
    always = "; ".join(f"{status}, {_lower(STATUSES[status])}" for status in ALWAYS)
    text = _HTTP_HEAD.format(command=COMMAND, shape=shape, always=always)
    operations = [(path, method, what) for path, by in document["paths"].items() for method, what in by.items()]
    tags = dict.fromkeys([*_TAGS, *(what["tags"][0] for _, _, what in operations)])
    for tag in tags:
        there = [one for one in operations if one[2]["tags"][0] == tag]
        if there:
            text += f"\n## {_TAGS.get(tag, tag.capitalize())}\n" + "".join(_operation(*one) for one in there)
    return text + "\n## Objects\n" + "".join(_object(name, schema) for name, schema in sorted(names.items()))


def bus() -> str:
    """The page of the bus."""
    document = asyncapi.document()
    channels = asyncapi.channels()
    text = _BUS_HEAD.format(command=COMMAND)
    outside = [one for one in channels if one.address.startswith(("cypria.request.", "cypria.control."))]
    asked = [one for one in channels if one.answers and one not in outside]
    sent = [one for one in channels if not one.answers]
    for title, those in (("For callers", outside), ("Questions between services", asked), ("Sent", sent)):
        text += f"## {title}\n\n| subject | what | carries | answer | sent by |\n| --- | --- | --- | --- | --- |\n"
        for one in those:
            said = document["channels"][one.name]["description"]
            answers = " or ".join(_message(name) for name in one.answers) or "none"
            carries = ", ".join(_message(name) for name in one.carries)
            senders = said.removeprefix("Sent by: ").replace(". Kept in the stream ", "; kept in ").rstrip(".")
            text += f"| `{one.address}` | {_cell(one.summary)} | {carries} | {answers} | {senders} |\n"
        text += "\n"
    parameters = {name: what for one in channels for name, what in one.parameters.items()}
    text += "Parts of a subject: " + "; ".join(f"`{{{n}}}`: {_lower(w)}" for n, w in parameters.items()) + ".\n\n"
    schemas = document["components"]["schemas"]
    return text + "## Messages\n" + "".join(_object(name, schema) for name, schema in sorted(schemas.items()))


PAGES = {"http.md": http, "bus.md": bus}


def _message(name: str) -> str:
    return "as it is" if name == asyncapi.RAW else _link(name)


def _operation(path: str, method: str, what: Mapping[str, Any]) -> str:
    text = f"\n### {method.upper()} {path}\n\n{what['summary']}. {what.get('description', '')}".rstrip() + "\n"
    rows = [
        f"| `{one['name']}` | {one['in']} | {_kind(one['schema'])} | {_meaning(one['schema'], one.get('required'))} |\n"
        for one in what.get("parameters", [])
    ]
    if rows:
        text += "\n| parameter | in | type | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)
    media = what.get("requestBody", {}).get("content", {}).get("application/json")
    if media:
        text += "\n" + _table(media["schema"])
        if media.get("example"):
            text += f"\n```json\n{json.dumps(media['example'], indent=2)}\n```\n"
    good = what["responses"]["200"].get("content", {})
    schema = good.get("application/json", {}).get("schema", {})
    kinds = [kind for kind in good if kind != "application/json"]
    answer = _kind(schema) if "$ref" in schema else "a JSON object" if schema else ""
    others = sorted(status for status in what["responses"] if status.isdigit() and int(status) not in {*ALWAYS, 200})
    text += f"\nAnswer: {' or '.join(filter(None, [answer, *(f'`{kind}`' for kind in kinds)])) or 'a JSON object'}."
    if others:
        text += " Refusals: " + "; ".join(f"{one}, {_lower(STATUSES[int(one)])}" for one in others) + "."
    return text + "\n"


def _object(name: str, schema: Mapping[str, Any]) -> str:
    about = " ".join(str(schema.get("description", "")).split())
    return f"\n### {name}\n\n" + (f"{about}\n\n" if about else "") + (_table(schema) or f"{_kind(schema)}\n")


def _table(schema: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| `{path}` | {_kind(one)} | {_meaning(one, required)} |\n" for path, one, required in _fields(schema, "")
    )
    return _FIELDS + rows if rows else ""


def _fields(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Every field, and those inside what is written in place, by dotted path."""
    required = schema.get("required", [])
    for name, one in schema.get("properties", {}).items():
        yield f"{prefix}{name}", one, name in required
        for member in _members(one):
            if "properties" in member:
                yield from _fields(member, f"{prefix}{name}.")
            elif "properties" in (inner := member.get("items", {})):
                yield from _fields(inner, f"{prefix}{name}[].")


def _members(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*schema.get("anyOf", []), *schema.get("oneOf", []), *schema.get("allOf", [])] or [schema]


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value is, in words."""
    said = [_one_kind(member) for member in _members(schema) if member.get("type") != "null"]
    return " or ".join(dict.fromkeys(said)) or "anything"


def _one_kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _link(schema["$ref"].rsplit("/", 1)[-1])
    if listed := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in listed)
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(one for one in kind if one != "null")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {schema[name]:g}" for name, sign in signs if name in schema]
    if "maxLength" in schema:
        bounds.append(f"at most {schema['maxLength']} characters")
    name = {"string": "text"}.get(str(kind), str(kind))
    return name + (f" ({', '.join(bounds)})" if bounds else "")


def _meaning(schema: Mapping[str, Any], required: bool | None) -> str:
    said = [_cell(str(schema["description"]))] if schema.get("description") else []
    if required:
        said.append("required")
    elif schema.get("default") not in (None, [], {}, ""):
        said.append(f"default `{json.dumps(schema['default'])}`")
    return "; ".join(said)


def _link(name: str) -> str:
    return f"[{name}](#{name.lower().replace('.', '')})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def main(arguments: list[str]) -> int:
    """Write the pages, or say which are not current; the exit status."""
    return bring_up_to_date(arguments, COMMAND, {FOLDER / name: make() for name, make in PAGES.items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
