"""Outcomes, costs, requests and legacy replies."""

import json

import pytest

from schemas.v1.common import Outcome
from services.inference.domain import requests
from services.inference.domain.cost import Prices, cost_nano
from services.inference.domain.formats import shaped
from services.inference.domain.legacy import LegacyReply, to_completions
from services.inference.domain.lifecycle import LifecycleError, State, advance
from services.inference.domain.outcome import broken_off, is_repetition, of_status
from services.inference.domain.replies import Inspector
from services.inference.domain.requests import BadRequestError, Wants


def chunk(**choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome.CLIENT_ERROR), (413, Outcome.CLIENT_ERROR), (422, Outcome.CLIENT_ERROR),
        (401, Outcome.ERROR_BEFORE_FIRST_TOKEN), (404, Outcome.ERROR_BEFORE_FIRST_TOKEN), (408, Outcome.TIMEOUT),
        (429, Outcome.REJECTED), (503, Outcome.REJECTED), (504, Outcome.TIMEOUT), (302, Outcome.ERROR_BEFORE_FIRST_TOKEN),
    ],
)  # fmt: skip
def test_statuses(status: int, outcome: Outcome) -> None:
    assert of_status(status) is outcome


def test_broken_off() -> None:
    assert broken_off(content=True) is Outcome.ERROR_MID_STREAM
    assert broken_off(content=False) is Outcome.ERROR_BEFORE_FIRST_TOKEN


@pytest.mark.parametrize("period", [1, 7, 31, 32, 33, 100, 128])
def test_loops_are_found(period: int) -> None:
    unit = "".join(chr(ord("a") + (n * 7 + n // 26) % 26) for n in range(period))
    assert is_repetition("A start of its own. " + unit * (1200 // period))


def test_ordinary_text_is_no_loop() -> None:
    assert not is_repetition(" ".join(str(n) for n in range(400)))
    assert not is_repetition("again and again " * 20)
    assert not is_repetition("x" * 511)
    assert not is_repetition("")


def test_first_token_is_the_first_content() -> None:
    seen = Inspector(Wants())
    assert seen.event(b": hello\n\n", 1.0)
    assert seen.event(chunk(delta={"role": "assistant", "content": ""}), 2.0)
    assert seen.first_at is None
    assert seen.event(chunk(delta={"content": "a"}), 3.0)
    assert seen.event(chunk(delta={"content": "b"}), 4.0)
    assert seen.event(chunk(delta={}, finish_reason="stop"), 5.0)
    assert (seen.first_at, seen.last_at, seen.content_events, seen.tokens_out()) == (3.0, 4.0, 2, 2)
    assert not seen.event(b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":9}}\n\n', 6.0)
    assert (seen.prompt_tokens, seen.tokens_out()) == (4, 9)
    assert seen.event(b"data: [DONE]\n\n", 7.0)
    assert seen.outcome() is Outcome.OK


def test_usage_event_stays_when_it_was_asked_for() -> None:
    assert Inspector(Wants(include_usage=True)).event(b'data: {"choices":[],"usage":{"prompt_tokens":4}}\n\n', 1.0)


def test_usage_beside_content_is_never_dropped() -> None:
    event = b'data: {"choices":[{"text":"x"}],"usage":{"prompt_tokens":4,"completion_tokens":1}}\n\n'
    assert Inspector(Wants()).event(event, 1.0)


def test_reasoning_counts_as_the_first_token_but_not_as_an_answer() -> None:
    seen = Inspector(Wants())
    seen.event(chunk(delta={"reasoning_content": "hm"}), 1.0)
    seen.event(chunk(delta={}, finish_reason="stop"), 2.0)
    assert seen.first_at == 1.0
    assert seen.outcome() is Outcome.EMPTY


@pytest.mark.parametrize("junk", [b"data: {\n\n", b"data: []\n\n", b'data: {"choices": 3}\n\n', b"data: \xff\n\n"])
def test_what_cannot_be_read_passes(junk: bytes) -> None:
    assert Inspector(Wants()).event(junk, 1.0)


def test_tool_call_in_pieces() -> None:
    seen = Inspector(Wants(tools=frozenset({"f"})))
    for part in ({"name": "f", "arguments": ""}, {"arguments": '{"a"'}, {"arguments": ": 1}"}):
        seen.event(chunk(delta={"tool_calls": [{"index": 0, "function": part}]}), 1.0)
    seen.event(chunk(delta={}, finish_reason="tool_calls"), 2.0)
    assert seen.outcome() is Outcome.OK


def test_calls_of_other_kinds_are_not_held_to_the_rules_of_functions() -> None:
    custom = {"type": "custom", "custom": {"name": "shell", "input": "ls -l"}}
    for message, outcome in (
        ({"tool_calls": [custom]}, Outcome.OK),
        ({"function_call": {"name": "f", "arguments": "{}"}}, Outcome.OK),
        ({"function_call": {"name": "f", "arguments": "{"}}, Outcome.INVALID_TOOL_CALL),
    ):
        for kind in ("message", "delta"):
            seen = Inspector(Wants())
            body = json.dumps({"choices": [{"index": 0, kind: message, "finish_reason": "stop"}]}).encode()
            _ = seen.whole(body, 1.0) if kind == "message" else seen.event(b"data: " + body + b"\n\n", 1.0)
            assert (seen.outcome(), seen.has_content) == (outcome, True)


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ([{"type": "text", "text": "well"}], Outcome.OK), ([{"type": "image", "url": "x"}], Outcome.OK), ([], Outcome.EMPTY),
        ([{"type": "text", "text": "again " * 200}], Outcome.REPETITION), ({"parts": 1}, Outcome.OK), (7, Outcome.OK),
    ],
)  # fmt: skip
def test_content_in_parts_or_of_an_unknown_kind_is_an_answer(content: object, outcome: Outcome) -> None:
    whole, streamed = Inspector(Wants()), Inspector(Wants())
    assert whole.whole(json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode(), 1.0)
    streamed.event(chunk(delta={"content": content}), 1.0)
    streamed.event(chunk(delta={}, finish_reason="stop"), 2.0)
    assert (whole.outcome(), streamed.outcome()) == (outcome, outcome)
    assert (streamed.first_at == 1.0) is (outcome is not Outcome.EMPTY)


def test_an_object_in_a_form_of_its_own_is_an_answer_and_no_object_is_none() -> None:
    seen = Inspector(Wants())
    assert seen.whole(b'{"choices": 3}', 1.0)
    assert seen.outcome() is Outcome.OK
    for other in (b"", b"[]", b"null", b"<html>", b"{", b"\xff"):
        assert not Inspector(Wants()).whole(other, 1.0)


def test_a_stream_has_ended_when_each_of_its_choices_has() -> None:
    seen = Inspector(Wants())
    for index, reason in ((0, None), (1, None), (0, "stop")):
        event = {"choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": reason}]}
        seen.event(b"data: " + json.dumps(event).encode() + b"\n\n", 1.0)
    assert seen.outcome() is Outcome.ERROR_MID_STREAM
    seen.event(b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}\n\n', 2.0)
    assert (seen.finished, seen.outcome()) == (True, Outcome.OK)


def test_length_before_invalid_json() -> None:
    seen = Inspector(Wants(json=True))
    seen.whole(b'{"choices":[{"message":{"content":"{"},"finish_reason":"length"}]}', 1.0)
    assert seen.outcome() is Outcome.LENGTH


def test_error_inside_a_stream() -> None:
    seen = Inspector(Wants())
    seen.event(b'data: {"error": {"message": "gone", "code": 503}}\n\n', 1.0)
    assert (seen.outcome(), seen.error_status(), seen.error_message()) == (Outcome.ERROR_BEFORE_FIRST_TOKEN, 503, "gone")


@pytest.mark.parametrize(
    ("body", "message", "kind", "code"),
    [
        (b"<html>bad gateway</html>", "<html>bad gateway</html>", "engine_error", None),
        (b"", "the engine answered 502 without a word", "engine_error", None),
        (b"\xff" * 5000, "\ufffd" * 2000, "engine_error", None),
        (b'{"detail":"Not Found"}', "Not Found", "engine_error", None),
        (b'{"object":"error","message":"bad","type":"BadRequestError","code":400}', "bad", "BadRequestError", "400"),
        (b'{"error":"too long","error_type":"validation"}', "too long", "engine_error", None),
        (b'{"error":{"code":"x"}}', '{"error":{"code":"x"}}', "engine_error", "x"),
        (b"[" * 5000, "[" * 2000, "engine_error", None),
    ],
)
def test_an_engines_error_of_another_shape_is_put_into_ours(body: bytes, message: str, kind: str, code: str | None) -> None:
    found = shaped(body, 502)
    assert found is not None
    assert json.loads(found)["error"] == {"message": message, "type": kind, "param": None, "code": code}


def test_an_engines_error_of_our_shape_stays_as_it_is() -> None:
    assert shaped(b'{"error":{"message":"no","more":1},"extra":2}', 400) is None


def test_cost_is_whole_nano_dollars() -> None:
    prices = Prices(prompt_per_1k=0.0002, completion_per_1k=0.0006, gpu_second=0.0007)
    assert cost_nano(prices, 1000, 1000, 1_000_000) == 200_000 + 600_000 + 700_000
    assert cost_nano(Prices(), 10, 10, 10) == 0


def test_reading_a_body() -> None:
    assert requests.read(b'{"model":"m","stream":true,"x":1}') == Wants(model="m", stream=True)
    wants = requests.read(b'{"stream_options":{"include_usage":true},"response_format":{"type":"json_schema"},"tools":[{"function":{"name":"f"}}]}')
    assert (wants.include_usage, wants.json, wants.tools) == (True, True, frozenset({"f"}))
    assert requests.read(b'{"model": 5}') == Wants(), "wrong types are the engine's to refuse"
    for bad in (b"", b"[]", b'"x"', b"{", b"nul", b"\xff"):
        with pytest.raises(BadRequestError):
            requests.read(bad)


def test_body_for_the_upstream() -> None:
    body = b'{"model":"a", "big":123456789012345678901234567890, "f":1.0}'
    wants = requests.read(body)
    assert requests.for_upstream(body, wants, "a", ask_usage=False) is body
    renamed = requests.for_upstream(body, wants, "b", ask_usage=False)
    assert b"123456789012345678901234567890" in renamed
    assert b"1.0" in renamed
    assert json.loads(renamed)["model"] == "b"
    asked = json.loads(requests.for_upstream(body, wants, "a", ask_usage=True))
    assert asked["stream_options"] == {"include_usage": True}
    null = b'{"model":"a","stream_options":null}'
    assert json.loads(requests.for_upstream(null, requests.read(null), "a", ask_usage=True))["stream_options"] == {"include_usage": True}


def test_legacy() -> None:
    body, prompt = to_completions(b'{"prompt":"p","max_tokens":3,"stream":true}')
    assert (json.loads(body), prompt) == ({"prompt": "p", "max_tokens": 3, "stream": True}, "p")
    assert to_completions(b'{"prompt":[1,2]}')[1] == ""
    for bad in (b"{}", b'{"prompt":1}', b'{"prompt":["a"]}', b"[]"):
        with pytest.raises(BadRequestError):
            to_completions(bad)
    reply = LegacyReply("p")
    assert json.loads(reply.event(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'))["text"] == ["pa"]
    assert json.loads(reply.event(b'data: {"choices":[{"index":0,"text":"b"}]}\n\n'))["text"] == ["pab"]
    assert reply.event(b"data: [DONE]\n\n") == b""
    assert reply.whole(b"no json") == b"no json"


def test_states() -> None:
    path = [State.VERIFYING, State.LOADING, State.WARMING, State.READY, State.DRAINING, State.UNLOADED, State.VERIFYING]
    state = State.REGISTERED
    for following in path:
        state = advance(state, following)
    with pytest.raises(LifecycleError, match="verifying cannot become ready"):
        advance(state, State.READY)
