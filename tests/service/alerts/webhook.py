"""A webhook server as Slack has one: records every call and answers as it is told."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Behaviour = int | str
"""A status to answer with, ``429`` with Retry-After, or ``hang``: no answer until the client goes away."""


@dataclass
class Call:
    path: str
    body: dict[str, Any]
    answered: int | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        return str(self.body["blocks"][0]["text"]["text"])

    @property
    def text(self) -> str:
        return str(self.body["text"])

    @property
    def message(self) -> str:
        return str(self.body["blocks"][1]["text"]["text"])

    @property
    def id(self) -> str:
        """As it stands at the foot."""
        return str(self.body["blocks"][-1]["elements"][0]["text"]).rpartition(" ")[2]


@dataclass
class Webhook:
    """``behave`` names what to do with the n-th call (from 0) of a path; 200 where it says nothing."""

    behave: Callable[[str, int], Behaviour] = lambda _path, _n: 200
    calls: list[Call] = field(default_factory=list)
    delay_s: float = 0.0
    url: str = ""
    _runner: web.AppRunner | None = None
    _gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> "Webhook":
        app = web.Application()
        app.router.add_post("/{name}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        self._gate.set()
        if self._runner:
            await self._runner.cleanup()

    def of(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    def accepted(self, path: str = "hook") -> list[Call]:
        return [call for call in self.of(path) if call.answered == 200]

    async def _take(self, request: web.Request) -> web.Response:
        path = request.match_info["name"]
        number = len(self.of(path))
        call = Call(path, await request.json())
        self.calls.append(call)
        what = self.behave(path, number)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if what == "hang":
            await self._gate.wait()
            return web.Response(status=503)
        call.answered = int(what)
        headers = {"Retry-After": "1"} if call.answered == 429 else {}
        return web.Response(status=call.answered, text="ok" if call.answered == 200 else "no", headers=headers)
