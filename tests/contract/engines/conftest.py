import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services._runtime.settings_engines import Model
from services.inference.adapters.engine import Engine, EngineHead, EngineRequest
from services.inference.adapters.engines import make_engine
from services.inference.domain import requests
from services.inference.domain.sse import SseSplitter, data_of
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import alive

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
    """An engine under test; ``running`` counts the generations that go on in it, ``kill`` ends it as a crash would."""

    engine: Engine
    running: Callable[[], int]
    fake: FakeOpenAI | None = None
    kill: Callable[[], Awaitable[None]] | None = None

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


VLLM_ARGS = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
KINDS = ["openai", "transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])]


@asynccontextmanager
async def engine_of(kind: str, **options: Any) -> AsyncIterator[Subject]:
    """A loaded engine of a kind; ``options`` go into vLLM's entry."""
    async with AsyncExitStack() as stack:
        if kind == "openai":
            fake = await stack.enter_async_context(FakeOpenAI())
            fake.behaviour.chunk_delay_s = 0.002
            engine = make_engine(Model(name="m", engine="openai", base_url=fake.base_url, timeout_seconds=20))
            found = Subject(engine, lambda: fake.seen.running, fake, fake.stop)
        elif kind == "transformers":
            engine = make_engine(Model(name="m", engine="transformers", path=MODELS / "stable"))
            found = Subject(engine, lambda: engine.health().running, kill=engine.close)
        else:
            # As fast for models of this size, and it leaves the other core to other tests.
            stack.enter_context(pytest.MonkeyPatch.context()).setenv("OMP_NUM_THREADS", "1")
            options = {"path": MODELS / "stable", "engine_args": VLLM_ARGS, **options}
            engine = make_engine(Model(name="m", engine="vllm", **options))
            found = Subject(engine, lambda: engine.health().running)

            async def kill() -> None:
                os.kill(engine.health().pids[0], signal.SIGKILL)

            found.kill = kill
        stack.push_async_callback(engine.close)
        await engine.load()
        await engine.warm()
        pids = engine.health().pids
        yield found
        await engine.close()
        assert not alive(pids)


@pytest_asyncio.fixture(params=KINDS, scope="module", loop_scope="module")
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """An engine that all tests of a file share, of which the last may kill it: vLLM takes half a minute to load."""
    async with engine_of(request.param) as found:
        yield found
