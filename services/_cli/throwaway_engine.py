"""A throw-away OpenAI-compatible engine on the loopback interface, for rehearsals: chat, streamed or not.

It is busy like a real one: an answer takes longer the longer the prompt is and the more requests run.
"""

import asyncio
import json
import random
from typing import Any

from aiohttp import web

_FIRST_S = 0.02
_TOKEN_S = 0.002
_WORD_S = 0.0002
_SPREAD = 0.25
_BUSY = 32
"""So many requests at once take twice as long."""


class ThrowawayEngine:
    """``error_share`` of its answers are errors, it takes ``slower`` times as long; both may change at any moment."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.error_share = 0.0
        self.slower = 1.0
        self.requests = 0
        self._running = 0
        self._random = random.Random(port)  # noqa: S311 - a play, not a secret
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """What `base_url` of a model takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Drop what it has."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests += 1
        self._running += 1
        try:
            return await self._answer(request, body)
        finally:
            self._running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        words = sum(len(str(one.get("content", "")).split()) for one in body.get("messages") or [])
        tokens = max(1, int(body.get("max_tokens") or 16))
        pace = self.slower * (1 + self._running / _BUSY) * self._random.lognormvariate(0, _SPREAD)
        await asyncio.sleep(pace * (_FIRST_S + words * _WORD_S))
        if self._random.random() < self.error_share:
            return web.json_response({"error": {"message": "rehearsed failure", "type": "server_error"}}, status=500)
        usage = {"prompt_tokens": words, "completion_tokens": tokens, "total_tokens": words + tokens}
        base = {"id": f"rehearsal-{self.requests}", "created": 0, "model": body.get("model")}
        if not body.get("stream"):
            await asyncio.sleep(pace * tokens * _TOKEN_S)
            message = {"role": "assistant", "content": "word " * tokens}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return web.json_response({**base, "object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(delta: dict[str, Any], reason: str | None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            chunk = {**base, "object": "chat.completion.chunk", "choices": [choice]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

        for _ in range(tokens):
            await send({"content": "word "}, None)
            await asyncio.sleep(pace * _TOKEN_S)
        await send({}, "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            last: dict[str, Any] = {**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            await response.write(f"data: {json.dumps(last)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response
