import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters.engine import Engine, EngineHead, EngineRequest
from services.inference.adapters.engines import make_engine
from services.inference.domain import requests
from services.inference.domain.sse import SseSplitter, data_of
from tests.fakes.openai_server import FakeOpenAI

MODELS = Path(__file__).parents[3] / "infra" / "models"


@dataclass
class Answer:
    head: EngineHead
    body: bytes
    request: EngineRequest

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        splitter = SseSplitter()
        data = [data_of(event) for event in splitter.feed(self.body)]
        assert splitter.rest == b""
        assert data[-1] == b"[DONE]"
        return [json.loads(item) for item in data[:-1]]

    @property
    def text(self) -> str:
        parts = []
        for event in self.events:
            for choice in event["choices"]:
                parts.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
        return "".join(parts)


@dataclass
class Subject:
    """An engine under test; ``cancelled`` tells how many generations it has stopped early."""

    engine: Engine
    running: Callable[[], int]
    fake: FakeOpenAI | None = None

    def request(self, route: str, **body: Any) -> EngineRequest:
        raw = json.dumps({"model": "m", **body}).encode()
        return EngineRequest(route, raw, requests.read(raw), bool(body.get("stream")))

    async def ask(self, route: str, **body: Any) -> Answer:
        request = self.request(route, **body)
        head, pieces = None, []
        async for piece in self.engine.generate(request):
            if isinstance(piece, EngineHead):
                assert head is None
                head = piece
            else:
                pieces.append(piece)
        assert head is not None
        return Answer(head, b"".join(pieces), request)

    async def chat(self, content: str = "Tell me a story.", **body: Any) -> Answer:
        return await self.ask("chat", messages=[{"role": "user", "content": content}], **body)


@pytest.fixture(params=["openai", "transformers"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        if request.param == "openai":
            fake = await stack.enter_async_context(FakeOpenAI())
            fake.behaviour.chunk_delay_s = 0.002
            engine = make_engine(Model(name="m", engine="openai", base_url=fake.base_url, timeout_seconds=20))
            found = Subject(engine, lambda: fake.seen.running, fake)
        else:
            engine = make_engine(Model(name="m", engine="transformers", path=MODELS / "stable"))
            found = Subject(engine, lambda: engine.running)  # type: ignore[attr-defined]
        await engine.load()
        await engine.warm()
        stack.push_async_callback(engine.close)
        yield found
