"""Reads an engine's reply as it passes: first token, usage, finish, and what it amounts to."""

from typing import Any

import msgspec

from schemas.v1.common import Outcome
from services.inference.domain import outcome as outcomes
from services.inference.domain.requests import Wants
from services.inference.domain.sse import data_of


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = -1
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
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    data: list[msgspec.Raw] | None = None


class _Call(msgspec.Struct):
    name: str = ""
    arguments: str = ""
    function: bool = True


_decode = msgspec.json.Decoder(_Reply).decode
_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_DONE = b"[DONE]"
_FUNCTION = frozenset({None, "function"})


class Inspector:
    """Follows one reply with status 2xx. Times are seconds of the caller's monotonic clock."""

    __slots__ = (
        "_calls", "_cut", "_embedded", "_ended", "_other", "_texts", "_wants", "cached_tokens", "completion_tokens",
        "content_events", "done", "error", "first_at", "last_at", "prompt_tokens", "usage_seen",
    )  # fmt: skip

    def __init__(self, wants: Wants) -> None:
        self._wants = wants
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[tuple[int, int], _Call] = {}
        self._cut = False
        self._embedded = False
        self._other = False
        self._ended: set[int] = set()
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
        return code if isinstance(code, int) and 400 <= code <= 599 else 500

    @property
    def finished(self) -> bool:
        """Whether the engine said that the reply is complete: at its end, or of each choice that it began."""
        return self.done or (bool(self._ended) and self._texts.keys() <= self._ended)

    def event(self, event: bytes, now: float) -> bool:
        """Read one event of a stream; False when it is the usage event that only Cypria asked for."""
        data = data_of(event)
        if not data:
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
            if self._choices(reply.choices):
                self._came(now)
            return True
        return not (reply.usage is not None and not self._wants.include_usage)

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
        elif self._choices(reply.choices):
            self.first_at = self.last_at = now
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
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # what we cannot read we do not judge; it passes as it is
        usage = reply.usage
        if usage is not None:
            self.usage_seen = True
            self.prompt_tokens = usage.prompt_tokens or 0
            self.completion_tokens = usage.completion_tokens or 0
            if usage.prompt_tokens_details is not None:
                self.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0
        if reply.error:
            self.error = reply.error
        return reply

    def _choices(self, choices: list[_Choice]) -> bool:
        """Take in the choices; True when one of them brought content."""
        content = False
        for choice in choices:
            part = choice.delta or choice.message
            text = choice.text if part is None else part.content or part.refusal
            if text:
                content = True
                if not isinstance(text, str):
                    text = self._text_of(text)
                self._texts.setdefault(choice.index, []).append(text)
            if part is not None:
                if part.tool_calls:
                    content = True
                    self._tool_calls(choice.index, part.tool_calls)
                elif part.function_call is not None:
                    content = True
                    self._tool_calls(choice.index, [_ToolCall(0, None, part.function_call)])
                elif part.audio:
                    content = self._other = True
                elif not text and (part.reasoning_content or part.reasoning):
                    content = True
            if choice.finish_reason:
                self._ended.add(choice.index)
                self._cut = self._cut or choice.finish_reason == "length"
        return content

    def _text_of(self, content: Any) -> str:
        """The text of a content that comes in parts; that there are others is remembered."""
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        found = [text for text in texts if isinstance(text, str)]
        self._other = self._other or len(found) < len(parts)
        return "".join(found)

    def _tool_calls(self, choice: int, calls: list[_ToolCall]) -> None:
        for position, call in enumerate(calls):
            key = (choice, call.index if call.index >= 0 else position)
            known = self._calls.setdefault(key, _Call())
            known.function = known.function and call.type in _FUNCTION
            if call.function:
                known.name = known.name or call.function.name or ""
                known.arguments += call.function.arguments or ""

    def _tool_calls_valid(self) -> bool:
        offered = self._wants.tools
        for call in self._calls.values():
            if not call.function:
                continue  # its input is text of any form
            if not call.name or (offered is not None and call.name not in offered):
                return False
            try:
                _decode_object(call.arguments or "{}")
            except msgspec.DecodeError:
                return False
        return True

    def outcome(self) -> Outcome:
        """What the reply amounts to, once the engine has sent its last byte."""
        if self.error is not None or not self.finished:
            return outcomes.broken_off(content=self.has_content)
        texts = ["".join(parts) for parts in self._texts.values()]
        if self._embedded or (self._other and not self._cut and not self._calls and not any(texts)):
            return Outcome.OK
        return outcomes.of_content(
            texts,
            cut=self._cut,
            tools_called=bool(self._calls),
            tools_valid=not self._calls or self._tool_calls_valid(),
            json_asked=self._wants.json,
            json_valid=not self._wants.json or all(_is_json(text) for text in texts),
        )

    def tokens_out(self) -> int:
        """Completion tokens: the engine's count, else the number of events that brought content."""
        return self.completion_tokens if self.usage_seen else self.content_events


def _is_object(data: bytes) -> bool:
    try:
        _decode_object(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        _decode_any(text)
    except msgspec.DecodeError:
        return False
    return True
