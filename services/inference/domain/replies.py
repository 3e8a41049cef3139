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
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


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


_decode = msgspec.json.Decoder(_Reply).decode
_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_DONE = b"[DONE]"


class Inspector:
    """Follows one reply with status 2xx. Times are seconds of the caller's monotonic clock."""

    __slots__ = (
        "_calls", "_cut", "_embedded", "_finished", "_texts", "_wants", "cached_tokens", "completion_tokens",
        "content_events", "error", "first_at", "last_at", "prompt_tokens", "usage_seen",
    )  # fmt: skip

    def __init__(self, wants: Wants) -> None:
        self._wants = wants
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[tuple[int, int], _Call] = {}
        self._cut = False
        self._embedded = False
        self.error: Any = None
        self._finished = False
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

    def error_status(self) -> int:
        """The HTTP status that fits the error inside the reply: its own code when it is one, else 500."""
        code = self.error.get("code") if isinstance(self.error, dict) else None
        return code if isinstance(code, int) and 400 <= code <= 599 else 500

    @property
    def finished(self) -> bool:
        """Whether the engine said that the reply is complete."""
        return self._finished

    def event(self, event: bytes, now: float) -> bool:
        """Read one event of a stream; False when it is the usage event that only Cypria asked for."""
        data = data_of(event)
        if not data:
            return True
        if data == _DONE:
            self._finished = True
            return True
        reply = self._parse(data)
        if reply is None:
            return True
        if reply.choices:
            if self._choices(reply.choices):
                self.content_events += 1
                self.last_at = now
                if self.first_at is None:
                    self.first_at = now
            return True
        return not (reply.usage is not None and not self._wants.include_usage)

    def whole(self, body: bytes, now: float) -> None:
        """Read a reply that is not streamed."""
        reply = self._parse(body)
        self._finished = True
        if reply is None:
            return
        if reply.data is not None:
            self._embedded = bool(reply.data)
        elif self._choices(reply.choices):
            self.first_at = self.last_at = now

    def _parse(self, data: bytes) -> _Reply | None:
        try:
            reply = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # what we cannot read we do not judge; it passes as it is
        usage = reply.usage
        if usage is not None:
            self.usage_seen = True
            self.prompt_tokens = usage.prompt_tokens or 0
            self.completion_tokens = usage.completion_tokens or 0
            if usage.prompt_tokens_details is not None:
                self.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0
        if reply.error is not None:
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
                self._texts.setdefault(choice.index, []).append(text)
            if part is not None:
                if part.tool_calls:
                    content = True
                    self._tool_calls(choice.index, part.tool_calls)
                elif not text and (part.reasoning_content or part.reasoning):
                    content = True
            if choice.finish_reason:
                self._finished = True
                self._cut = self._cut or choice.finish_reason == "length"
        return content

    def _tool_calls(self, choice: int, calls: list[_ToolCall]) -> None:
        for position, call in enumerate(calls):
            key = (choice, call.index if call.index >= 0 else position)
            known = self._calls.setdefault(key, _Call())
            if call.function:
                known.name = known.name or call.function.name or ""
                known.arguments += call.function.arguments or ""

    def _tool_calls_valid(self) -> bool:
        offered = self._wants.tools
        for call in self._calls.values():
            if not call.name or (offered is not None and call.name not in offered):
                return False
            try:
                _decode_object(call.arguments or "{}")
            except msgspec.DecodeError:
                return False
        return True

    def outcome(self) -> Outcome:
        """What the reply amounts to, once the engine has sent its last byte."""
        if self.error is not None or not self._finished:
            return outcomes.broken_off(content=self.has_content)
        if self._embedded:
            return Outcome.OK
        texts = ["".join(parts) for parts in self._texts.values()]
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


def _is_json(text: str) -> bool:
    try:
        _decode_any(text)
    except msgspec.DecodeError:
        return False
    return True
