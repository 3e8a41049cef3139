"""What one request may ask of a vLLM engine, and what would hold up all others."""

import json
from typing import Any

import pytest

from services.inference.domain import vllm_limits
from services.inference.domain.requests import BadRequestError


def ask(sequences: int = 1, **body: Any) -> None:
    vllm_limits.check(json.dumps({"model": "m", **body}).encode(), sequences=sequences)


def test_what_people_ask_for_passes() -> None:
    ask()
    ask(prompt="a" * 5_000_000, n=128)
    ask(prompt=list(range(1_000_000)), n=256)
    ask(prompt=[[1, 2], [3]] * 64, n=2)
    ask(prompt=["a"] * 1000, sequences=1000)
    ask(input=["a"] * 2048)
    ask(messages=[{"role": "user", "content": [{"type": "text", "text": "{" * 1000}]}] * 2000, n=None)
    ask(messages=[{"role": "user", "content": "}{" * 1_000_000}], tools=[{"type": "function", "function": {"name": "f"}}] * 100)
    ask(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["x" * 9] * 4000}}})
    ask(n="many", prompt=None, structured_outputs=None)  # the engine says what is wrong with it


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"prompt": "a", "n": 16_384}, "n", "16384 sequences, and one request may have 256"),
        ({"prompt": "a", "n": "16384"}, "n", "16384 sequences"),
        ({"messages": [], "n": 300.0}, "n", "300 sequences"),
        ({"prompt": ["a"] * 129, "n": 2}, "prompt", "129 prompts times n are 258 sequences"),
        ({"prompt": [[1]] * 257}, "prompt", "257 sequences"),
        ({"input": ["a"] * 2049}, "input", "2049 texts"),
        ({"structured_outputs": {"choice": [f"c{n}" for n in range(10_000)]}}, "structured_outputs", "and may have 65536"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 99] * 999}}}}, "response_format", "simpler"),
        ({"guided_regex": "a" * 70_000}, "guided_regex", "70002 bytes"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 300_000}}]}, "tools", "may have 262144"),
        ({"messages": [{"role": "user", "content": "a"}] * 10_000}, "messages", "more than 8192 objects"),
        ({"messages": [{"content": [[]] * 40_000}]}, "messages", "more than 8192"),
        ({"documents": [{"a": "b"}] * 10_000}, "messages", "more than 8192"),
    ],
)
def test_what_would_hold_up_others_is_refused(body: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadRequestError, match=says) as caught:
        ask(**body)
    assert caught.value.param == param


def test_a_body_that_cannot_be_read_to_its_end() -> None:
    deep = b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    for body in (deep, b'{"messages": "' + b"x" * 70_000 + b'\\ud800"}'):
        with pytest.raises(BadRequestError, match="the body is not valid JSON, or nested too deeply"):
            vllm_limits.check(body)
