"""What real-looking answers of many servers amount to: streamed, whole, in tools' and reasoning's many forms."""

import json
from typing import Any

import pytest

from schemas.v1.common import Outcome
from services.inference.domain import requests
from services.inference.domain.replies import Inspector
from services.inference.domain.requests import BadRequestError, Wants

OK, EMPTY, LENGTH, LOOP = Outcome.OK, Outcome.EMPTY, Outcome.LENGTH, Outcome.REPETITION
BAD_CALL, BAD_JSON = Outcome.INVALID_TOOL_CALL, Outcome.INVALID_JSON
MID, BEFORE = Outcome.ERROR_MID_STREAM, Outcome.ERROR_BEFORE_FIRST_TOKEN
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": None}
DONE = b"data: [DONE]\n\n"
TOOL = Wants(tools=frozenset({"weather", "time"}))


def sse(data: Any, space: str = " ") -> bytes:
    return f"data:{space}{json.dumps({**HEAD, **data}, separators=(',', ':'))}\n\n".encode()


def delta(finish: str | None = None, index: int = 0, **part: Any) -> bytes:
    return sse({"choices": [{"index": index, "delta": part, "logprobs": None, "finish_reason": finish, "stop_reason": None}]})


def text(value: str, finish: str | None = None) -> bytes:
    return sse({"choices": [{"index": 0, "text": value, "logprobs": None, "finish_reason": finish}]})


def call(arguments: Any = None, name: str | None = None, index: int | None = 0, call_id: str | None = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}, **more}
    return {"tool_calls": [found]}


def calls(*pieces: dict[str, Any], finish: str = "tool_calls") -> list[bytes]:
    return [delta(role="assistant", content=None), *(delta(**piece) for piece in pieces), delta(finish), DONE]


def judge(events: list[bytes], wants: Wants | None = None) -> Inspector:
    seen = Inspector(wants or Wants())
    for at, event in enumerate(events):
        seen.event(event, float(at))
    return seen


USAGE = sse({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}})
STREAMS: dict[str, tuple[list[bytes], Wants, Outcome]] = {
    "vllm": ([delta(role="assistant", content=""), delta(content="Hi"), delta("stop", content=""), USAGE, DONE], Wants(), OK),
    "vllm usage in each": ([sse({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}), DONE], Wants(), OK),
    "vllm error": ([delta(content="Hi"), sse({"error": {"message": "dead", "type": "InternalServerError", "code": 500}}), DONE], Wants(), MID),
    "old vllm error": ([sse({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}), DONE], Wants(), BEFORE),
    "vllm gave up": ([delta(content="Hi"), delta("abort"), DONE], Wants(), MID),
    "vllm gave up at once": ([delta("error"), DONE], Wants(), BEFORE),
    "sglang": ([delta(role="assistant", content="", reasoning_content=None, tool_calls=None), delta(content="Hi"), delta("stop", content=None), DONE], Wants(), OK),
    "aphrodite completion": ([text("Hi"), text("", "stop"), DONE], Wants(), OK),
    "openai": ([delta(role="assistant", content="", refusal=None), delta(content="Hi"), delta("stop"), USAGE, DONE], Wants(), OK),
    "llama.cpp": ([delta(role="assistant", content=None), delta(content="Hi"), sse({"choices": [{"finish_reason": "stop", "index": 0, "delta": {}}], "timings": {"predicted_n": 1}}), DONE], Wants(), OK),
    "llama.cpp error": ([delta(content="Hi"), b'error: {"code":500,"message":"no slot","type":"server_error"}\n\n'], Wants(), MID),
    "tgi": ([sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}], "usage": None}, ""), sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "eos_token"}]}, ""), DONE], Wants(), OK),
    "tgi error": ([b'data:{"error":"Request failed during generation","error_type":"generation"}\n\n'], Wants(), BEFORE),
    "event named error": ([delta(content="Hi"), b'event: error\ndata: {"message":"overloaded"}\n\n'], Wants(), MID),
    "keep-alives": ([b": ping\n\n", b":\n\n", delta(), delta(content=""), delta(content="Hi"), b": ping\n\n", delta("stop"), DONE], Wants(), OK),
    "no done": ([delta(content="Hi"), delta("stop"), USAGE], Wants(), OK),
    "no end": ([delta(content="Hi"), USAGE], Wants(), MID),
    "null choices": ([delta(content="Hi"), delta("stop"), sse({"choices": None, "usage": {"prompt_tokens": 1}}), DONE], Wants(), OK),
    "azure's first": ([sse({"choices": [], "prompt_filter_results": []}), delta(content="Hi"), delta("stop"), DONE], Wants(), OK),
    "only whitespace": ([delta(content=" \n"), delta("stop"), DONE], Wants(), EMPTY),
    "content null": ([delta(content=None), delta("stop", content=None), DONE], Wants(), EMPTY),
    "nothing but done": ([DONE], Wants(), EMPTY),
    "length": ([delta(content="Hi"), delta("length"), DONE], Wants(json=True, must_call=True, tools=frozenset("f")), LENGTH),
    "mistral's length": ([delta(content="Hi"), delta("model_length"), DONE], Wants(), LENGTH),
    "only thoughts": ([delta(reasoning_content="hm"), delta(reasoning="hm"), delta("stop"), DONE], Wants(), EMPTY),
    "thoughts in circles": ([*(delta(reasoning="Wait, let me think. ") for _ in range(60)), delta("length"), DONE], Wants(), LOOP),
    "refusal": ([delta(refusal="I can"), delta(refusal="not"), delta("stop"), DONE], Wants(json=True), OK),
    "refusal for a call": ([delta(refusal="no"), delta("stop"), DONE], Wants(tools=frozenset("f"), must_call=True), OK),
    "one of two is empty": ([delta(content="Hi"), delta("stop"), delta(None, 1, content=""), delta("stop", 1), DONE], Wants(), EMPTY),
    "one of two is cut": ([delta(content="Hi"), delta("stop"), delta(None, 1, content="Ho"), delta("length", 1), DONE], Wants(), LENGTH),
    "one of two is no json": ([delta("stop", content="{}"), delta("stop", 1, content="{"), DONE], Wants(json=True), BAD_JSON),
    "one of two goes on": ([delta("stop", content="Hi"), delta(None, 1, content="H")], Wants(), MID),
    "half a character": ([delta(content="\ud83d"), delta(content="\ude00"), delta("stop"), DONE], Wants(), OK),
    "half a character in json": ([delta(content='"\ud83d'), delta(content='\ude00"'), delta("stop"), DONE], Wants(json=True), OK),
    "nested too deeply": ([delta(content="".join(f"[{n}," for n in range(20_000))), delta("stop"), DONE], Wants(json=True), BAD_JSON),
    "audio": ([delta(audio={"id": "a"}), delta("stop"), DONE], Wants(), OK),
    # Calls of tools.
    "call": (calls(call("", "weather", call_id="a", type="function"), call('{"at"'), call(': "x"}')), TOOL, OK),
    "call in a split escape": (calls(call('{"at": "\\u00', "weather"), call('e9"}')), TOOL, OK),
    "call in half a character": (calls(call('{"at": "\ud83d', "weather"), call('\ude00"}')), TOOL, OK),
    "call with parsed arguments": (calls(call({"at": "x"}, "weather")), TOOL, OK),
    "call with a list": (calls(call(["x"], "weather")), TOOL, BAD_CALL),
    "call without arguments": (calls(call("", "weather")), TOOL, OK),
    "call with broken arguments": (calls(call('{"at": ', "weather")), TOOL, BAD_CALL),
    "call with arguments of another kind": (calls(call('"x"', "weather")), TOOL, BAD_CALL),
    "call nested too deeply": (calls(call("".join(f'{{"a{n}":' for n in range(20_000)), "weather")), TOOL, BAD_CALL),
    "call of what was not offered": (calls(call("{}", "rocket")), TOOL, BAD_CALL),
    "call without a name": (calls(call("{}")), TOOL, BAD_CALL),
    "call cut": (calls(call('{"at": ', "weather"), finish="length"), TOOL, LENGTH),
    "call ends as stop": (calls(call("{}", "weather"), finish="stop"), TOOL, OK),
    "name in pieces": (calls(call("", "wea"), call("{}", "ther")), TOOL, OK),
    "name over and over": (calls(call("{", "weather", call_id="a"), call("}", "weather", call_id="a")), TOOL, OK),
    "old vllm, an id for each piece": (calls(call("", "weather", call_id="a"), call("{", call_id="b"), call("}", call_id="c")), TOOL, OK),
    "parallel": (calls(call("{}", "weather", 0, "a"), call("{}", "time", 1, "b")), TOOL, OK),
    "parallel, mixed": (calls(call("{", "weather", 0), call("{", "time", 1), call("}", None, 0), call("}", None, 1)), TOOL, OK),
    "parallel, one broken": (calls(call("{}", "weather", 0), call("{", "time", 1)), TOOL, BAD_CALL),
    "gemini, all at index 0": (calls(call("{}", "weather", 0, "a"), call('{"x": 1}', "time", 0, "b")), TOOL, OK),
    "gemini, no index": (calls(call("{}", "weather", None, "a"), call("{}", "time", None, "b")), TOOL, OK),
    "called, but no call": (calls(finish="tool_calls"), TOOL, BAD_CALL),
    "empty call": (calls(call("", ""), {"content": "Hi"}, finish="stop"), TOOL, OK),
    "empty list": (calls({"tool_calls": [], "content": "Hi"}, finish="stop"), TOOL, OK),
    "no call though it had to": ([delta("stop", content="It is warm."), DONE], Wants(tools=frozenset("f"), must_call=True), BAD_CALL),
    "legacy function": (calls({"function_call": {"name": "weather", "arguments": ""}}, {"function_call": {"arguments": "{}"}}, finish="function_call"), TOOL, OK),
    "legacy function, broken": (calls({"function_call": {"name": "weather", "arguments": "{"}}, finish="function_call"), TOOL, BAD_CALL),
    "legacy function, empty beside text": (calls({"content": "Hi", "function_call": {"name": "", "arguments": ""}}, finish="stop"), TOOL, OK),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_streams(name: str) -> None:
    events, wants, outcome = STREAMS[name]
    assert judge(events, wants).outcome() is outcome


SCHEMA = b'{"type":"object","required":["a","b"],"properties":{"a":{}}}'


@pytest.mark.parametrize(
    ("content", "schema", "outcome"),
    [
        ('{"a": 1, "b": 2}', SCHEMA, OK), (' \n{"a": {}, "b": null, "c": 1}\n', SCHEMA, OK), ('{"a": 1}', SCHEMA, BAD_JSON), ("[1]", SCHEMA, BAD_JSON),
        ('{"a": 1, "b": 2} and more', SCHEMA, BAD_JSON), ('```json\n{"a": 1, "b": 2}\n```', SCHEMA, BAD_JSON), ("", SCHEMA, EMPTY),
        ("[1]", b'{"type":"array"}', OK), ("3", b"", OK), ("3", b'{"type":"object"}', BAD_JSON), ("NaN", b"", BAD_JSON), ("{'a': 1}", b"", BAD_JSON),
        ("{}", b'{"type":"object","required":7}', OK), ("{}", b'"a schema as text"', OK), ("{}", b"true", OK),
    ],
)  # fmt: skip
def test_json_is_held_against_the_outermost_of_its_schema(content: str, schema: bytes, outcome: Outcome) -> None:
    seen = Inspector(Wants(json=True, schema=schema))
    seen.whole(json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}).encode(), 1.0)
    assert seen.outcome() is outcome


@pytest.mark.parametrize(("arguments", "outcome"), [('{"a": 1, "b": 2}', OK), ('{"a": 1}', BAD_CALL), ("", BAD_CALL), ({"a": 1, "b": 1}, OK), ({"a": 1}, BAD_CALL)])
def test_arguments_are_held_against_what_their_tool_requires(arguments: Any, outcome: Outcome) -> None:
    wants = Wants(tools=frozenset({"weather"}), parameters={"weather": SCHEMA})
    assert judge(calls(call(arguments, "weather")), wants).outcome() is outcome


@pytest.mark.parametrize(
    ("fields", "json_asked", "schema"),
    [
        ({"response_format": {"type": "text"}}, False, b""),
        ({"response_format": {"type": "json_object"}}, True, b'{"type":"object"}'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}}, True, b'{"type": "array"}'),
        ({"response_format": {"type": "json_schema"}}, True, b""),
        ({"response_format": {"type": "json_object", "schema": {"type": "array"}}}, True, b'{"type": "array"}'),
        ({"response_format": {"type": "json", "value": {"type": "array"}}}, True, b'{"type": "array"}'),
        ({"structured_outputs": {"json": {"type": "array"}}}, True, b'{"type": "array"}'),
        ({"structured_outputs": {"regex": "a"}}, False, b""), ({"structured_outputs": {"json_object": True}}, True, b'{"type":"object"}'),
        ({"guided_json": {"type": "array"}}, True, b'{"type": "array"}'), ({"guided_json": None, "response_format": None}, False, b""),
    ],
)  # fmt: skip
def test_json_is_asked_for_in_several_ways(fields: dict[str, Any], json_asked: bool, schema: bytes) -> None:
    wants = requests.read(json.dumps(fields).encode())
    assert (wants.json, wants.schema) == (json_asked, schema)


def test_tools_are_offered_in_several_ways() -> None:
    function = {"name": "f", "parameters": {"required": ["a"]}}
    for fields in ({"tools": [{"type": "function", "function": function}, {"type": "web_search"}]}, {"functions": [function]}):
        wants = requests.read(json.dumps(fields).encode())
        assert (wants.tools, wants.parameters, wants.must_call) == (frozenset("f"), {"f": b'{"required": ["a"]}'}, False)
    for choice, forced in (("required", True), ("auto", False), ("none", False), (None, False), ({"type": "function", "function": {"name": "f"}}, True), (7, False)):
        wants = requests.read(json.dumps({"tools": [{"function": {"name": "f"}}], "tool_choice": choice}).encode())
        assert (wants.must_call, wants.parameters) == (forced, {})


@pytest.mark.parametrize("nest", ['{"x":' * 50_000, '{"response_format":' * 50_000, '{"messages":' + "[" * 50_000])
def test_a_body_nested_too_deeply_is_the_callers_error(nest: str) -> None:
    with pytest.raises(BadRequestError, match="not valid JSON"):
        requests.read(nest.encode())
    with pytest.raises(BadRequestError):
        requests.fields(nest.encode())


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}, (9, 4, 8)),
        ({"prompt_tokens": 9.0, "completion_tokens": 4.0, "prompt_tokens_details": None}, (9, 4, 0)),
        ({"prompt_tokens": 9, "completion_tokens": None, "prompt_cache_hit_tokens": 5}, (9, 2, 5)),
        ({"prompt_tokens": 9, "completion_tokens": 0, "cached_tokens": 5}, (9, 2, 5)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 1}, "x": {}}, (9, 4, 0)),
    ],
)
def test_usage(usage: dict[str, Any], found: tuple[int, int, int]) -> None:
    seen = judge([delta(content="a"), delta(content="b"), delta("stop"), sse({"choices": [], "usage": usage}), DONE])
    assert (seen.prompt_tokens, seen.tokens_out(), seen.cached_tokens) == found


def test_times_are_those_of_content_and_of_one_choice() -> None:
    assert judge([delta(role="assistant", content=""), delta("stop"), USAGE, DONE]).first_at is None
    seen = judge([delta(role="assistant"), delta(reasoning="a"), delta(content="b"), delta(content="c"), delta("stop"), DONE])
    assert (seen.first_at, seen.last_at, seen.token_gap_s(seen.tokens_out())) == (1.0, 3.0, 1.0)
    two = judge([event for _ in range(4) for event in (delta(None, 0, content="a"), delta(None, 1, content="a"))])
    assert two.token_gap_s(two.tokens_out()) == pytest.approx(7 * 2 / 6)
    for events in ([delta(content="a"), delta("stop"), DONE], [sse({"error": {"message": "x"}})]):
        assert judge(events).token_gap_s(5) is None


@pytest.mark.parametrize(("code", "status"), [(429, 429), ("429", 429), ("bad", 500), (200, 500), (None, 500), ("४२९", 500)])
def test_the_status_of_an_error_inside_a_reply(code: object, status: int) -> None:
    seen = judge([b"data: " + json.dumps({"error": {"message": "m", "code": code}}).encode() + b"\n\n"])
    assert seen.error_status() == status
    assert judge([sse({"object": "error", "message": "m", "code": code})]).error_status() == status
