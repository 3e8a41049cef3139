"""OpenAI's replies, as bytes, for an engine of our own."""

import base64
import struct
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


class TokenLogprob(msgspec.Struct):
    """A token that was chosen: its text, its ln probability, and the likeliest alternatives."""

    token: str
    logprob: float
    top: list[tuple[str, float]] = []


class Reply:
    """Formats one reply, chat or text completion. ``created`` in Unix seconds."""

    def __init__(self, *, chat: bool, reply_id: str, model: str, created: int) -> None:
        self.chat = chat
        self._base: dict[str, Any] = {"id": reply_id, "created": created, "model": model}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        base = self._base
        return {
            "id": base["id"], "object": kind, "created": base["created"], "model": base["model"], "choices": choices,
        }  # fmt: skip

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def opening(self, index: int) -> bytes:
        """The event that opens a chat's choice; nothing for a completion."""
        if not self.chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return event(self._object(self._chunk, [choice]))

    def delta(self, index: int, text: str, finish: str | None, logprobs: list[TokenLogprob] | None) -> bytes:
        """One event of a stream."""
        choice: dict[str, Any] = {"index": index}
        if self.chat:
            choice["delta"] = {"content": text} if text else {}
        else:
            choice["text"] = text
        choice["logprobs"] = self._logprobs(logprobs)
        choice["finish_reason"] = finish
        return event(self._object(self._chunk, [choice]))

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The event with the usage, last before the end."""
        return event({**self._object(self._chunk, []), "usage": usage(prompt_tokens, completion_tokens)})

    def whole(self, choices: list[dict[str, Any]], prompt_tokens: int, completion_tokens: int) -> bytes:
        """A reply that is not streamed."""
        kind = "chat.completion" if self.chat else "text_completion"
        return _encode({**self._object(kind, choices), "usage": usage(prompt_tokens, completion_tokens)})

    def choice(self, index: int, text: str, finish: str, logprobs: list[TokenLogprob] | None) -> dict[str, Any]:
        """One choice of a whole reply."""
        body: dict[str, Any] = {"index": index}
        if self.chat:
            body["message"] = {"role": "assistant", "content": text}
        else:
            body["text"] = text
        body["logprobs"] = self._logprobs(logprobs)
        body["finish_reason"] = finish
        return body

    def _logprobs(self, logprobs: list[TokenLogprob] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        if self.chat:
            content = [
                {**_entry(item.token, item.logprob), "top_logprobs": [_entry(*top) for top in item.top]}
                for item in logprobs
            ]
            return {"content": content}
        return {
            "tokens": [item.token for item in logprobs],
            "token_logprobs": [item.logprob for item in logprobs],
            "top_logprobs": [dict(item.top) for item in logprobs],
        }


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + _encode(data) + b"\n\n"


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """The error body of the contract."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


class _Error(msgspec.Struct):
    message: str


class _Shaped(msgspec.Struct):
    error: _Error


_shaped = msgspec.json.Decoder(_Shaped).decode
_loose = msgspec.json.Decoder(dict[str, Any]).decode
_MAX_WORDS = 2000


def shaped(body: bytes, status: int) -> bytes | None:
    """An engine's error in the shape of the contract, its own words kept; None: it has that shape."""
    try:
        _shaped(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    else:
        return None
    try:
        fields = _loose(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = {}
    inner = fields.get("error")
    fields = inner if isinstance(inner, dict) else fields
    said = next((fields[name] for name in ("message", "error", "detail") if isinstance(fields.get(name), str)), None)
    text = body.decode("utf-8", "replace").strip()[:_MAX_WORDS]
    kind, code, param = (fields.get(name) for name in ("type", "code", "param"))
    return error(
        said or text or f"the engine answered {status} without a word",
        kind if isinstance(kind, str) else "engine_error",
        str(code) if isinstance(code, str | int) else None,
        param if isinstance(param, str) else None,
    )


def embeddings(vectors: list[list[float]], model: str, prompt_tokens: int, *, as_base64: bool) -> bytes:
    """The reply of `/embeddings`; base64 is of little-endian 32-bit floats."""
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return _encode({"object": "list", "data": data, "model": model, "usage": counts})


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
