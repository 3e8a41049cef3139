"""What one request may ask of a vLLM engine, so that it does not hold up everybody else's.

VLLM bounds most fields of a request by itself, but not these: it reads every part of a body in the loop that serves all
streams; it compiles grammars on a few threads that nothing interrupts, so that one of a megabyte keeps all those
after it waiting for minutes; and one request may stand for thousands of sequences while it takes one place of ours.
"""

from typing import Any

import msgspec

from services.inference.domain.requests import BadRequestError, Raw

MAX_SEQUENCES = 256
"""Prompts times n; more where the engine runs more at once."""
MAX_INPUTS = 2048
"""Texts of an embeddings request."""
MAX_GRAMMAR = 64 << 10
"""Bytes of what the answer must look like: a schema, a grammar, a pattern, a list of choices."""
MAX_TOOLS = 256 << 10
"""Bytes of the tools, whose schemas may be made into a grammar as well."""
MAX_PARTS = 8192
"""Objects and arrays in a body: messages and their parts, most of all."""
_FEW_PARTS = 64 << 10
"""Bytes of a body in which there is no room for many."""


class _Body(msgspec.Struct):
    prompt: Raw = Raw()
    input: Raw = Raw()
    n: Any = 1
    tools: Raw = Raw()
    response_format: Raw = Raw()
    structured_outputs: Raw = Raw()
    guided_json: Raw = Raw()
    guided_grammar: Raw = Raw()
    guided_regex: Raw = Raw()
    guided_choice: Raw = Raw()


_decode = msgspec.json.Decoder(_Body).decode
_list = msgspec.json.Decoder(list[Raw]).decode
_whole = msgspec.json.Decoder().decode
_GRAMMARS = (
    "response_format", "structured_outputs", "guided_json", "guided_grammar", "guided_regex", "guided_choice",
)  # fmt: skip


def check(body: bytes, *, sequences: int = MAX_SEQUENCES) -> None:
    """Raises BadRequestError naming the field. ``body`` is a JSON object; ``sequences`` may run at once."""
    try:
        _check(body, max(sequences, MAX_SEQUENCES))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequestError(f"the body is not valid JSON, or nested too deeply: {exc}") from None


def _check(body: bytes, most: int) -> None:
    asked = _decode(body)
    prompts = _count(asked.prompt)
    wanted = prompts * max(_whole_number(asked.n), 1)
    if wanted > most:
        raise BadRequestError(
            f"{prompts} prompts times n are {wanted} sequences, and one request may have {most}: send several",
            "n" if prompts == 1 else "prompt",
        )
    if (texts := _count(asked.input)) > MAX_INPUTS:
        raise BadRequestError(f"{texts} texts are more than one request may have ({MAX_INPUTS}): send several", "input")
    for name in _GRAMMARS:
        _refuse_long(name, getattr(asked, name), MAX_GRAMMAR)
    _refuse_long("tools", asked.tools, MAX_TOOLS)
    if len(body) > _FEW_PARTS and _has_many_parts(_whole(body)):
        raise BadRequestError(f"the body has more than {MAX_PARTS} objects and arrays: send fewer messages", "messages")


def _refuse_long(name: str, value: Raw, most: int) -> None:
    if (size := len(bytes(value))) > most:
        raise BadRequestError(f"{name} has {size} bytes, and may have {most}: ask for something simpler", name)


def _count(value: Raw) -> int:
    """How many texts, or lists of tokens, a prompt is."""
    given = bytes(value)
    inner = given[1:].lstrip() if given.startswith(b"[") else b""
    return len(_list(given)) if inner.startswith((b'"', b"[")) else 1


def _whole_number(value: Any) -> int:
    try:
        return int(value)  # a text or 2.0 will do for the engine as well
    except (TypeError, ValueError, OverflowError):
        return 1


def _has_many_parts(body: Any) -> bool:
    found, waiting = 0, [body]
    while waiting:
        value = waiting.pop()
        found += 1
        if found > MAX_PARTS:
            return True
        inner = value.values() if isinstance(value, dict) else value
        waiting += [item for item in inner if isinstance(item, dict | list)]
    return False
