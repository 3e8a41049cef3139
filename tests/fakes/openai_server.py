"""A small but real OpenAI-compatible server: deterministic text over HTTP, and every way of failing."""

import asyncio
import json
import random
import ssl
import uuid
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

CONTEXT = 512
WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "larch",
    "maple", "north", "ocean", "plume", "quartz", "river", "stone", "thorn", "upland", "violet", "willow", "zephyr",
)  # fmt: skip


@dataclass
class Behaviour:
    """What the server does; may be changed at any moment.

    ``latency_s`` is a median where ``latency_sigma`` (lognormal, of ln seconds) is not 0; ``bad_users``: the users whose
    requests all fail; ``status``: answer everything with this error; ``error_rate``: share of requests answered with 500;
    ``die_after``: close the connection after so many chunks; ``error_after``: an error event then;
    ``hang``: never answer; ``hang_after``: never go on after so many chunks; ``text``: say this instead;
    ``tool_call``: (name, arguments) instead of text; ``usage``: whether usage is reported at all;
    ``raw``: these very bytes instead of an answer, ``raw_open_s`` before the connection is closed;
    ``echo``: say the prompt back, in answers and in errors; ``gate``: no answer before it is set.
    """

    latency_s: float = 0.0
    latency_sigma: float = 0.0
    bad_users: frozenset[str] = frozenset()
    chunk_delay_s: float = 0.0
    status: int = 0
    retry_after: str = ""
    error_rate: float = 0.0
    die_after: int | None = None
    error_after: int | None = None
    hang: bool = False
    hang_after: int | None = None
    text: str | None = None
    tool_call: tuple[str, str] | None = None
    usage: bool = True
    no_end: bool = False
    crlf: bool = False
    raw: bytes = b""
    raw_open_s: float = 0.0
    echo: bool = False
    gate: asyncio.Event | None = None


@dataclass
class Seen:
    """What the server has noticed: whole bodies, headers, and how requests ended."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    finished: int = 0
    cancelled: int = 0
    running: int = 0
    most_running: int = 0
    chunks: int = 0


class FakeOpenAI:
    """Use as an async context manager; ``base_url`` is then what `models[].base_url` takes."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.behaviour = Behaviour()
        self.seen = Seen()
        self.port = port
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._random = random.Random(7)

    @property
    def base_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._guard)
        app.router.add_post("/v1/completions", self._guard)
        app.router.add_post("/v1/embeddings", self._guard)
        # A client that hangs up must cancel the handler: that is what an engine does, and what tests look at.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Drop every connection, as a killed server does."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _guard(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        seen, behaviour = self.seen, self.behaviour
        seen.raw.append(raw)
        seen.bodies.append(body)
        seen.headers.append(dict(request.headers))
        seen.paths.append(request.path)
        seen.running += 1
        seen.most_running = max(seen.most_running, seen.running)
        try:
            if behaviour.latency_s:
                await asyncio.sleep(behaviour.latency_s * self._random.lognormvariate(0.0, behaviour.latency_sigma))
            if behaviour.gate is not None:
                await behaviour.gate.wait()
            if behaviour.hang:
                await asyncio.Event().wait()
            try:
                response = await self._answer(request, body)
            except (AttributeError, KeyError, TypeError, ValueError) as exc:
                error = {"message": f"the body does not fit: {exc!r}", "type": "invalid_request_error", "param": None, "code": None}
                response = web.json_response({"error": error}, status=400)
            seen.finished += 1
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            seen.cancelled += 1
            raise
        finally:
            seen.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        behaviour = self.behaviour
        if behaviour.raw:
            assert request.transport is not None
            request.transport.write(behaviour.raw)
            await asyncio.sleep(behaviour.raw_open_s)
            request.transport.close()
            return web.Response()
        if behaviour.status:
            headers = {"Retry-After": behaviour.retry_after} if behaviour.retry_after else {}
            said = json.dumps(body, ensure_ascii=False) if behaviour.echo else "as you asked"
            error = {"message": said, "type": "fake_error", "param": None, "code": "fake"}
            return web.json_response({"error": error, "extra": 1}, status=behaviour.status, headers=headers)
        if self._random.random() < behaviour.error_rate or body.get("user") in behaviour.bad_users:
            return web.json_response({"error": {"message": "bad luck", "type": "server_error"}}, status=500)
        if request.path.endswith("/embeddings"):
            return self._embeddings(body)
        chat = "/chat/" in request.path
        prompt = _prompt(body, chat=chat)
        limit = body.get("max_tokens") or 16
        prompt_tokens = len(prompt.split())
        if prompt_tokens + limit > CONTEXT:
            message = f"This model's maximum context length is {CONTEXT} tokens."
            error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        choices = [self._choice(body, prompt, index) for index in range(body.get("n") or 1)]
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": sum(len(tokens) for tokens, _ in choices),
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        if body.get("stream"):
            return await self._stream(request, body, choices, usage, chat=chat)
        return self._whole(request, body, choices, usage, chat=chat)

    def _choice(self, body: dict[str, Any], prompt: str, index: int) -> tuple[list[str], str]:
        """(tokens, finish reason); the same for the same body."""
        if self.behaviour.text is not None:
            return [self.behaviour.text], "stop"
        if self.behaviour.echo:
            return [word + " " for word in prompt.split()], "stop"
        limit = body.get("max_tokens") or 16
        seed = f"{prompt}|{body.get('seed', 0)}|{index}"
        chosen = random.Random(seed if body.get("temperature", 1) else f"{prompt}|{index}")
        tokens = [chosen.choice(WORDS) + " " for _ in range(limit)]
        stops = body.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = "".join(tokens)
            if stop in text:
                before = text[: text.index(stop)]
                cut = before.split(" ")
                return [word + " " for word in cut[:-1]] + ([cut[-1]] if cut[-1] else []), "stop"
        return tokens, "length"

    def _base(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"id": f"fake-{uuid.uuid4().hex[:8]}", "object": kind, "created": 1, "model": body.get("model"), "x_fake": True}

    def _whole(self, request: web.Request, body: Any, choices: Any, usage: Any, *, chat: bool) -> web.Response:
        found = []
        for index, (tokens, reason) in enumerate(choices):
            text, finish = "".join(tokens), reason
            part: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            if chat and self.behaviour.tool_call:
                part["message"] = {"role": "assistant", "content": None, "tool_calls": [_call(*self.behaviour.tool_call)]}
                finish = "tool_calls"
            if chat and body.get("logprobs"):
                part["logprobs"] = {"content": [_logprob(token, body.get("top_logprobs") or 0) for token in tokens]}
            found.append({"index": index, "finish_reason": finish, **part})
        reply = {**self._base("chat.completion" if chat else "text_completion", body), "choices": found}
        if self.behaviour.usage:
            reply["usage"] = usage
        if self.behaviour.die_after is not None:
            assert request.transport is not None
            request.transport.close()
        return web.json_response(reply)

    async def _stream(self, request: web.Request, body: Any, choices: Any, usage: Any, *, chat: bool) -> web.StreamResponse:
        behaviour = self.behaviour
        end = "\r\n\r\n" if behaviour.crlf else "\n\n"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        base = self._base("chat.completion.chunk" if chat else "text_completion", body)

        async def send(data: Any) -> None:
            text = data if isinstance(data, str) else json.dumps({**base, **data})
            await response.write(f"data: {text}{end}".encode())

        sent = 0
        for index, (tokens, reason) in enumerate(choices):
            finish = reason
            if chat:
                await send({"choices": [{"index": index, "delta": {"role": "assistant", "content": ""}}]})
            parts: list[dict[str, Any]] = [{"delta": {"content": t}} if chat else {"text": t} for t in tokens]
            if chat and behaviour.tool_call:
                parts = [{"delta": {"tool_calls": [{"index": 0, **_call(*behaviour.tool_call)}]}}]
                finish = "tool_calls"
            for part in parts:
                if sent == behaviour.die_after:
                    assert request.transport is not None
                    request.transport.abort()
                    await asyncio.sleep(0)
                if sent == behaviour.error_after:
                    said = f"the engine fell over{json.dumps(body) if behaviour.echo else ''}"
                    await send({"error": {"message": said, "type": "server_error", "code": 500}})
                    return response
                if sent == behaviour.hang_after:
                    await asyncio.Event().wait()
                if behaviour.chunk_delay_s:
                    await asyncio.sleep(behaviour.chunk_delay_s)
                await send({"choices": [{"index": index, "finish_reason": None, **part}]})
                sent += 1
                self.seen.chunks += 1
            if not behaviour.no_end:
                await send({"choices": [{"index": index, "finish_reason": finish, **({"delta": {}} if chat else {"text": ""})}]})
        if (body.get("stream_options") or {}).get("include_usage") and behaviour.usage:
            await send({"choices": [], "usage": usage})
        if not behaviour.no_end:
            await send("[DONE]")
        return response

    def _embeddings(self, body: dict[str, Any]) -> web.Response:
        given = body["input"]
        texts = [given] if isinstance(given, str) else given
        data = []
        for index, text in enumerate(texts):
            source = random.Random(str(text))
            data.append({"object": "embedding", "index": index, "embedding": [source.uniform(-1, 1) for _ in range(8)]})
        tokens = sum(len(str(text).split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "model": body.get("model"), "usage": usage})


def _prompt(body: dict[str, Any], *, chat: bool) -> str:
    return " ".join(str(m.get("content")) for m in body["messages"]) if chat else str(body["prompt"])


def _logprob(token: str, alternatives: int) -> dict[str, Any]:
    top = [{"token": token if n == 0 else WORDS[n], "logprob": -0.5 - n} for n in range(alternatives)]
    return {"token": token, "logprob": -0.5, "top_logprobs": top}


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
