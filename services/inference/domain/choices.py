"""One choice of a reply as it grows: its text, its calls of tools, and whether they are what was asked for."""

from typing import Any, NamedTuple, Protocol

import msgspec

from schemas.v1.common import Outcome
from services.inference.domain.outcome import is_repetition, of_choice
from services.inference.domain.requests import Wants

_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_names = msgspec.json.Decoder(list[str]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
_CUT = frozenset({"length", "max_tokens", "model_length", "MAX_TOKENS"})
_CALLED = frozenset({"tool_calls", "function_call"})
_OF_FUNCTIONS = frozenset({None, "", "function"})


class FunctionPart(Protocol):
    """What a piece of a call says of its function; ``arguments`` is text, or with some servers already an object."""

    name: str | None
    arguments: Any


class CallPart(NamedTuple):
    """A piece of a call. ``slot`` negative: the server gives none, and its place among the others counts."""

    slot: int
    id: str
    type: str | None
    function: FunctionPart | None


class _Call:
    __slots__ = ("arguments", "function", "id", "names", "whole")

    def __init__(self) -> None:
        self.id = ""
        self.names: list[str] = []
        self.arguments: list[str] = []
        self.function = True
        self.whole: dict[str, Any] | None = None


class Choice:
    """Collects the pieces of one choice. ``other``: some of it is neither text nor a call; ``refused``: it declined."""

    __slots__ = ("_calls", "_slots", "finish", "other", "refused", "texts", "thoughts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.finish: str | None = None
        self.other = False
        self.refused = False
        self._calls: list[_Call] = []
        self._slots: dict[int, _Call] = {}

    def call(self, position: int, part: CallPart) -> bool:
        """Take in a piece of a call; False when there is nothing in it."""
        function = part.function
        name = function.name if function is not None else None
        arguments = function.arguments if function is not None else None
        slot = part.slot if part.slot >= 0 else position
        known = self._slots.get(slot)
        if known is None or (name and part.id and known.names and known.id and part.id != known.id):
            # Some servers give every call the same index, or none: a name under another id begins another call.
            if not (name or arguments or part.id or part.type not in _OF_FUNCTIONS):
                return False
            known = self._slots[slot] = _Call()
            self._calls.append(known)
        known.id = known.id or part.id
        known.function = known.function and part.type in _OF_FUNCTIONS
        if name:
            known.names.append(name)
        if isinstance(arguments, dict):
            known.whole = arguments
        elif isinstance(arguments, str):
            known.arguments.append(arguments)
        elif arguments is not None:
            known.arguments.append(f"not an object: {type(arguments).__name__}")
        return True

    def outcome(self, wants: Wants, *, other: bool, halves: bool) -> Outcome:
        """What it amounts to. ``other``: the reply had parts nobody could read; ``halves``: characters came in two."""
        text = "".join(self.texts)
        if halves:
            text = mended(text)
        calls = [mended("".join(call.arguments)) if halves else "".join(call.arguments) for call in self._calls]
        if any(is_repetition(arguments) for arguments in calls):
            return Outcome.REPETITION
        bare = not text.strip()
        return of_choice(
            text, "".join(self.thoughts), cut=self.finish in _CUT,
            calls_valid=all(map(_is_valid, self._calls, calls, [wants] * len(calls))) if calls else None,
            call_due=wants.must_call or self.finish in _CALLED,
            excused=self.refused or ((self.other or other) and bare),
            json_valid=not wants.json or bare or _fits(text, wants.schema),
        )  # fmt: skip


def _is_valid(call: _Call, arguments: str, wants: Wants) -> bool:
    if not call.function:
        return True  # its input is text of any form
    names = {"".join(call.names), *call.names[:1]}  # in pieces, or over and over
    if not call.names or (wants.tools is not None and not names & wants.tools):
        return False
    schema = next((wants.parameters[name] for name in names if name in wants.parameters), b"")
    if call.whole is not None:
        return _has(call.whole.keys(), schema)
    try:
        given = _decode_object(arguments.strip() or "{}")
    except _UNREADABLE:
        return False
    return _has(given.keys(), schema)


def _fits(text: str, schema: bytes) -> bool:
    """Whether ``text`` is JSON, and of its schema the outermost: its type object, and the names that it requires."""
    try:
        if _is_of_objects(schema):
            return _has(_decode_object(text).keys(), schema)
        _decode_any(text)
        return True
    except _UNREADABLE:
        return False


def _is_of_objects(schema: bytes) -> bool:
    try:
        return bytes(_decode_object(schema or b"{}").get("type", b"")) == b'"object"'
    except _UNREADABLE:
        return False


def _has(given: Any, schema: bytes) -> bool:
    if not schema:
        return True
    try:
        required = _decode_names(_decode_object(schema).get("required", b"[]"))
    except _UNREADABLE:
        return True  # no schema that could be held against an answer
    return all(name in given for name in required)


def mended(text: str) -> str:
    """``text`` with the halves of characters put together that came in two pieces; what stays half is U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
