"""The old `/generate` route, spoken in terms of `/completions`.

A body is `{"prompt", "max_tokens", "temperature", "stream", ...}`, all but the prompt optional; the reply is
`{"text": [...]}` with each text led by its prompt, streamed as one such object a line, each with all of the
text so far.
"""

import msgspec

from services.inference.domain.requests import BadRequestError, Raw, fields
from services.inference.domain.sse import data_of


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice] = []


_prompt = msgspec.json.Decoder(str | list[int])
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Reply).decode
_ABSENT = Raw(b"null")


def to_completions(body: bytes) -> tuple[bytes, str]:
    """(the same request for `/completions`, the prompt that the reply repeats).

    A prompt of token ids is not repeated. Raises BadRequestError when there is no usable prompt.
    """
    values = fields(body)
    try:
        prompt = _prompt.decode(values.get("prompt", _ABSENT))
    except msgspec.DecodeError:
        raise BadRequestError("'prompt' must be a text or a list of token ids", "prompt") from None
    return _encode(values), prompt if isinstance(prompt, str) else ""


class LegacyReply:
    """Turns a reply of `/completions` into one of `/generate`."""

    __slots__ = ("_prompt", "_texts")

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._texts: dict[int, str] = {}

    def whole(self, body: bytes) -> bytes:
        """A reply that is not streamed; one that is no completion passes unchanged."""
        try:
            choices = _decode(body).choices
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return body
        return _encode({"text": [self._prompt + (choice.text or "") for choice in choices]})

    def event(self, event: bytes) -> bytes:
        """The line for one event, empty when the event brings no text."""
        try:
            choices = _decode(data_of(event)).choices
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""
        new = [choice for choice in choices if choice.text]
        if not new:
            return b""
        for choice in new:
            self._texts[choice.index] = self._texts.get(choice.index, "") + (choice.text or "")
        return _encode({"text": [self._prompt + self._texts[index] for index in sorted(self._texts)]}) + b"\n"
