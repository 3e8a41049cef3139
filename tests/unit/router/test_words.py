"""Whatever is wrong with what a caller sends, every verb says so in words that need no knowledge of a parser."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from services.router.control.base import Call
from services.router.control.dispatch import parse
from services.router.control.verbs import VERBS, Verb
from services.router.domain.refusals import BadRequest, Refused, Unprocessable
from services.router.domain.request import read

WRONG = [None, True, "text", "", 0, -1, 1.5, 10**30, 1e300, [], [1], [None], {}, {"a": 1}, "x" * 10_000, "\0"]
NO_JSON = [
    b"[", b"{", b"{}x", b"\0", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":' * 3000, b"[" * 200_000,
    b'{"a":' * 3000 + b"1" + b"}" * 3000, b'{"a":"\xff"}', '{"a":1}'.encode("utf-16"), b"\xef\xbb\xbf{}", b'{"a":"\x01"}',
    b'{"a":"\\ud800"}', b'{"\\ud800":1}', b"{'a':1}", b'{"a":1,}', b"{/*x*/}", b"a=b&c=d", b'{"a"}', b'{"a":}', b"{1:2}",
    b'{"a":tru}', b'{"a":"\\x"}', b'{"a":"\\u12"}', b'{"a":01}', b'{"a":1.}', b'{"a":-}', b'{"a":"x', b'{"a" 1}',
]  # fmt: skip
PARSERS = re.compile(
    r"pydantic|msgspec|jiter|serde|input should|should (be|have|match)|valid (string|integer|number|boolean|list|dict)|Expected `|`\$|"
    r"\bEOF\b|\bident\b|unable to parse|(Params|Command|Request)\b|\bstr\b|\bint\b|\bdict\b|type=|None\b|Traceback|object at 0x"
)


def options(schema: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """What a schema allows, one by one."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    some = schema.get("anyOf") or schema.get("oneOf")
    return [one for part in some for one in options(part, root)] if some else [schema]


def sample(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """A value of the right type, with what it must have."""
    one = next(one for one in options(schema, root) if one.get("type") != "null")
    if "enum" in one or "const" in one:
        return one["const"] if "const" in one else one["enum"][0]
    kind = one.get("type")
    if kind == "object":
        return {name: sample(part, root) for name, part in one.get("properties", {}).items() if name in one.get("required", ())}
    if kind == "array":
        return [sample(one["items"], root)]
    return {"string": "x", "integer": 1, "number": 1, "boolean": True}.get(kind or "", "x")


def wrong_bodies(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> Iterator[Any]:
    """Values with one wrong place each, wherever there is a field."""
    for one in options(schema, root):
        if one.get("type") == "object":
            base = sample(one, root)
            yield {**base, "zzz": 1}
            yield {**base, "": 1}
            yield from ({name: value for name, value in base.items() if name != left_out} for left_out in base)
            for name, part in one.get("properties", {}).items():
                yield from ({**base, name: value} for value in WRONG)
                if depth < 4:
                    yield from ({**base, name: inner} for inner in wrong_bodies(part, root, depth + 1))
        elif one.get("type") == "array":
            yield from ([value] for value in WRONG)
            yield [sample(one["items"], root)] * 2000
            if depth < 4:
                yield from ([inner] for inner in wrong_bodies(one["items"], root, depth + 1))


def calls(verb: Verb) -> Iterator[Call]:
    schema = verb.takes.model_json_schema()
    bodies = [json.dumps(body).encode() for body in wrong_bodies(schema, schema)]
    for body in (*NO_JSON, b"[1]", b'"x"', b"null", b"1", b"true", b'{"a":1,"a":2}', b'{"b":{"a":1,"a":2}}', *bodies):
        yield Call(None, "r", "bus", body=body)
    for name in (*verb.takes.model_fields, "", "zzz"):
        for text in ("", "text", "-1", "1.5", "1e999", "NaN", "[", "9" * 30, "x" * 5000, "\0", "null", "é"):
            yield Call(None, "r", "bus", query={name: text})


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_complaint_of_a_verb_is_in_plain_words_and_names_its_field(verb: Verb) -> None:
    complaints = [refusal for call in calls(verb) if (refusal := refused(verb, call))]
    assert len(complaints) > len(NO_JSON)
    for one in complaints:
        assert not PARSERS.search(one.message), one.message
        assert len(one.message) < 1500, one.message
        if isinstance(one, Unprocessable):
            assert one.param, one.message
            assert one.param in one.message
            assert not re.search(r"[\[\]]|\bfunction-", one.param)


def refused(verb: Verb, call: Call) -> Refused | None:
    try:
        parse(verb.takes, call)
    except Refused as exc:
        return exc
    return None


def test_what_is_no_json_is_told_in_the_same_words_with_its_place_to_models() -> None:
    for body in NO_JSON:
        with pytest.raises(BadRequest) as caught:
            read(body)
        assert not PARSERS.search(caught.value.message), caught.value.message
        assert "malformed" not in caught.value.message.lower()
    with pytest.raises(BadRequest, match=r"a comma stands before a closing bracket|something in it is no JSON \(byte \d+\)"):
        read(b'{"model":"x",}')


def test_a_name_that_is_given_twice_is_refused_wherever_it_is() -> None:
    start = next(verb for verb in VERBS if verb.name == "start")
    for body in (b'{"model_a":"a","model_b":"b","model_a":"c"}', b'{"ramp":{"model_a":1,"model_a":1}}', b'{"x":[{"model_a":1,"model_a":1}]}'):
        with pytest.raises(BadRequest, match="'model_a' is given twice") as caught:
            parse(start.takes, Call(None, "r", "bus", body=body))
        assert caught.value.param == "model_a"
