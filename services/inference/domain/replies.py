"""Reads an engine's reply as it passes: first token, usage, finish, and what it amounts to."""

import json
from typing import Any

import msgspec

from schemas.v1.common import Outcome
from services.inference.domain import outcome as outcomes
from services.inference.domain.choices import CallPart, Choice
from services.inference.domain.requests import Wants
from services.inference.domain.sse import data_of


class _Details(msgspec.Struct):
    cached_tokens: int | float | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
    prompt_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: int | float | None = None
    cached_tokens: int | float | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: Any = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    index: int | None = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    data: list[msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(_Reply).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_DONE = b"[DONE]"
_BROKEN = frozenset({"error", "abort", "insufficient_system_resource"})
"""Words for an end that is none: the engine gave the request up."""


class Inspector:
    """Follows one reply with status 2xx. Times are seconds of the caller's monotonic clock."""

    __slots__ = (
        "_choices", "_embedded", "_halves", "_other", "_wants", "cached_tokens", "completion_tokens", "content_events",
        "done", "error", "first_at", "last_at", "prompt_tokens", "usage_seen",
    )  # fmt: skip

    def __init__(self, wants: Wants) -> None:
        self._wants = wants
        self._choices: dict[int, Choice] = {}
        self._embedded = False
        self._other = False
        self._halves = False
        self.error: Any = None
        self.done = False
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.content_events = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.usage_seen = False

    @property
    def has_content(self) -> bool:
        """Whether anything of an answer has come."""
        return self.first_at is not None

    def error_message(self) -> str:
        """The engine's words for the error inside its reply."""
        error = self.error
        message = error.get("message") if isinstance(error, dict) else error
        return message if isinstance(message, str) and message else "the engine reported an error"

    def error_field(self, name: str) -> str | None:
        """Another field of that error, where it is a text."""
        value = self.error.get(name) if isinstance(self.error, dict) else None
        return value if isinstance(value, str) and value else None

    def error_status(self) -> int:
        """The HTTP status that fits the error inside the reply: its own code when it is one, else 500."""
        code = self.error.get("code") if isinstance(self.error, dict) else None
        if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
            code = int(code)
        return code if isinstance(code, int) and 400 <= code <= 599 else 500

    @property
    def finished(self) -> bool:
        """Whether the engine said that the reply is complete: at its end, or of each choice that it began."""
        return self.done or (bool(self._choices) and all(choice.finish for choice in self._choices.values()))

    def event(self, event: bytes, now: float) -> bool:
        """Read one event of a stream; False when it is the usage event that only Cypria asked for."""
        data = data_of(event)
        if not data:
            if event.startswith(b"error:"):  # llama.cpp's own kind of line
                self._bare(event[6:].strip(), error=True)
            return True
        if data == _DONE:
            self.done = True
            return True
        reply = self._parse(data)
        if reply is None:
            if self._other:
                self._came(now)
            return True
        if reply.choices:
            if self._take(reply.choices):
                self._came(now)
            return True
        if reply.usage is None:
            if reply.error is None:
                self._bare(data, error=event.startswith((b"event: error", b"event:error")))
            return True
        return self._wants.include_usage

    def whole(self, body: bytes, now: float) -> bool:
        """Read a reply that is not streamed; False when it is no JSON object."""
        reply = self._parse(body)
        self.done = True
        if reply is None:
            if self._other:
                self.first_at = self.last_at = now
            return self._other
        if reply.data is not None:
            self._embedded = bool(reply.data)
        elif reply.choices:
            if self._take(reply.choices):
                self.first_at = self.last_at = now
        elif not reply.error:
            self._bare(body, error=False)
        return True

    def _came(self, now: float) -> None:
        self.content_events += 1
        self.last_at = now
        if self.first_at is None:
            self.first_at = now

    def _parse(self, data: bytes) -> _Reply | None:
        try:
            reply = _decode(data)
        except msgspec.ValidationError:
            self._other = self._other or _is_object(data)  # an answer, in a form of its own
            return None
        except _UNREADABLE:
            found = _with_halves(data)
            if found is None:
                return None  # what we cannot read we do not judge; it passes as it is
            reply, self._halves = found, True
        usage = reply.usage
        if usage is not None:
            self.usage_seen = True
            self.prompt_tokens = int(usage.prompt_tokens or 0)
            self.completion_tokens = int(usage.completion_tokens or 0)
            details = usage.prompt_tokens_details
            cached = details.cached_tokens if details is not None else None
            self.cached_tokens = int(cached or usage.prompt_cache_hit_tokens or usage.cached_tokens or 0)
        if reply.error:
            self.error = reply.error
        return reply

    def _bare(self, data: bytes, *, error: bool) -> None:
        """An event without choices and usage: an error without its usual wrapping, if it is one."""
        try:
            found = _decode_object(data)
        except _UNREADABLE:
            found = {"message": data.decode("utf-8", "replace")[:2000]}
        if error or found.get("object") == "error":
            self.error = found.get("error") or found

    def _take(self, choices: list[_Choice]) -> bool:
        """Take in the choices; True when one of them brought content."""
        content = False
        for choice in choices:
            index = choice.index or 0
            known = self._choices.get(index)
            if known is None:
                known = self._choices[index] = Choice()
            part = choice.delta or choice.message
            text = choice.text if part is None else part.content
            if text:
                content = True
                known.texts.append(text if isinstance(text, str) else _text_of(text, known))
                if part is not None and (part.tool_calls or part.refusal or part.audio or part.function_call):
                    self._rest(part, known)
            elif part is not None and self._rest(part, known):
                content = True
            if choice.finish_reason:
                known.finish = choice.finish_reason
                if choice.finish_reason in _BROKEN and self.error is None:
                    self.error = f"the engine gave the request up ({choice.finish_reason})"
        return content

    @staticmethod
    def _rest(part: _Delta, known: Choice) -> bool:
        """What else than text a part may bring; True when it does."""
        found = False
        if thought := part.reasoning_content or part.reasoning:
            known.thoughts.append(thought)
            found = True
        if part.tool_calls:
            for position, call in enumerate(part.tool_calls):
                index = -1 if call.index is None else call.index
                found = known.call(position, CallPart(index, call.id or "", call.type, call.function)) or found
        elif part.function_call is not None:
            found = known.call(0, CallPart(0, "", None, part.function_call)) or found
        if part.refusal:
            found = known.refused = True
        if part.audio:
            found = known.other = True
        return found

    def outcome(self) -> Outcome:
        """What the reply amounts to, once the engine has sent its last byte."""
        if self.error is not None or not self.finished:
            return outcomes.broken_off(content=self.has_content)
        if self._embedded or (self._other and not self._choices):
            return Outcome.OK
        other, halves = self._other, self._halves
        return outcomes.worst(
            choice.outcome(self._wants, other=other, halves=halves) for choice in self._choices.values()
        )

    def tokens_out(self) -> int:
        """Completion tokens: the engine's count, else the number of events that brought content."""
        return self.completion_tokens or self.content_events

    def token_gap_s(self, tokens: int) -> float | None:
        """Seconds between one token and the next of the same choice, of ``tokens`` in all; None if unknown."""
        choices = max(1, len(self._choices))
        if self.first_at is None or self.last_at is None or tokens <= choices or self.content_events <= choices:
            return None
        return (self.last_at - self.first_at) * choices / (tokens - choices)


def _text_of(content: Any, choice: Choice) -> str:
    """The text of a content that comes in parts; that there are others is remembered."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    found = [text for text in texts if isinstance(text, str)]
    choice.other = choice.other or len(found) < len(parts)
    return "".join(found)


def _with_halves(data: bytes) -> _Reply | None:
    """A reply with half a character in it (one of two surrogates), which strict readers refuse."""
    if b"\\u" not in data:
        return None
    try:
        return msgspec.convert(json.loads(data), _Reply)
    except (ValueError, RecursionError):
        return None


def _is_object(data: bytes) -> bool:
    try:
        _decode_object(data)
    except _UNREADABLE:
        return False
    return True
