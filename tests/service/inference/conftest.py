import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import KeyNotFoundError

from schemas import subjects
from schemas.v1.inference import (
    CHUNK,
    FINAL,
    HEAD,
    SINGLE,
    Final,
    Flow,
    Heartbeat,
    InferRequest,
    ReplyHead,
    SingleHead,
    decode_heartbeat,
    encode,
    pack,
    unpack,
)  # fmt: skip
from schemas.v1.models import ModelEntry
from services._runtime.bus import Bus
from services.inference import settings as inference_settings
from services.inference.adapters.engines import MakeEngine
from services.inference.adapters.models import Models
from services.inference.adapters.nats_worker import NatsWorker
from services.inference.app import Parts
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import NatsServer, eventually

ROUTER = "r00000001"


@dataclass
class Reply:
    """The frames of one request as the router gets them."""

    id: str
    kinds: list[bytes] = field(default_factory=list)
    body: bytes = b""
    head: ReplyHead | None = None
    final: Final | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, msg: Msg) -> None:
        kind = msg.data[:1]
        self.kinds.append(kind)
        assert self.final is None, "a frame after the last one"
        if kind == SINGLE:
            single, self.body = unpack(msg.data, SingleHead)
            self.head, self.final = single.head, single.final
        elif kind == HEAD:
            self.head, body = unpack(msg.data, ReplyHead)
            self.body += body
        elif kind == FINAL:
            self.final, body = unpack(msg.data, Final)
            self.body += body
        else:
            assert kind == CHUNK
            self.body += msg.data[1:]
        if self.final is not None:
            self.ended.set()

    @property
    def pieces(self) -> int:
        """Those that used credit."""
        return sum(kind in {HEAD, CHUNK} for kind in self.kinds)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def end(self) -> "Reply":
        async with asyncio.timeout(60):
            await self.ended.wait()
        return self

    @property
    def done(self) -> Final:
        assert self.final is not None
        return self.final


class RouterEnd:
    """Speaks the router's half of the frame protocol, as the router's user."""

    def __init__(self, nc: Client, worker: str) -> None:
        self.nc = nc
        self.worker = worker
        self.beats: list[Heartbeat] = []
        self.alive_every_s = 1.0
        self._n = 0
        self._alive: asyncio.Task[None] | None = None

    async def start(self) -> None:
        async def beat(msg: Msg) -> None:
            self.beats.append(decode_heartbeat(msg.data))

        await self.nc.subscribe(subjects.HEARTBEAT, cb=beat)
        await self.nc.flush()
        self._alive = asyncio.create_task(self._keep_alive())

    def fall_silent(self) -> None:
        """No keep-alive any more."""
        assert self._alive is not None
        self._alive.cancel()

    async def _keep_alive(self) -> None:
        while True:
            await self.flow()
            await asyncio.sleep(self.alive_every_s)

    async def flow(self, **fields: Any) -> None:
        await self.nc.publish(subjects.flow(self.worker), encode(Flow(router=ROUTER, **fields)))

    async def send(self, route: str = "chat", *, model: str = "m", head: dict[str, Any] | None = None, **body: Any) -> Reply:
        raw = json.dumps({"model": model, **body}).encode()
        return await self.send_raw(raw, route, model=model, stream=bool(body.get("stream")), **(head or {}))

    async def send_raw(self, raw: bytes, route: str = "chat", *, model: str = "m", **head: Any) -> Reply:
        self._n += 1
        request_id = head.pop("id", f"q{self._n}")
        reply = Reply(request_id)
        inbox = f"_INBOX.router.{ROUTER}.{self._n}"
        await self.nc.subscribe(inbox, cb=reply.take)
        frame = pack(HEAD, InferRequest(id=request_id, router=ROUTER, route=route, **head), raw)
        await self.nc.publish(subjects.infer(model, self.worker), frame, reply=inbox)
        await self.nc.flush()
        return reply

    async def chat(self, content: str = "Tell me a story.", **body: Any) -> Reply:
        return await self.send("chat", messages=[{"role": "user", "content": content}], **body)

    async def beaten(self, times: int) -> None:
        """So many heartbeats (four a second for each model) have come since."""
        until = len(self.beats) + times
        await eventually(lambda: len(self.beats) >= until)

    async def state(self, model: str, state: str) -> Heartbeat:
        """The first heartbeat of ``model`` in ``state`` from now on."""
        start = len(self.beats)

        def find() -> Heartbeat | None:
            return next((b for b in self.beats[start:] if (b.model, b.state) == (model, state)), None)

        beat = await eventually(find, 180)
        assert isinstance(beat, Heartbeat)
        return beat


@dataclass
class Stack:
    router: RouterEnd
    parts: Parts
    bus: Bus
    fake: FakeOpenAI

    @property
    def worker(self) -> NatsWorker:
        return self.parts.worker

    @property
    def models(self) -> Models:
        return self.parts.models

    async def load(self) -> None:
        await eventually(lambda: self.models.missing() is None, 60)

    async def want(self, name: str, spec: dict[str, Any] | None = None, **fields: Any) -> ModelEntry:
        """Write the registry's entry of a model, as routers do; by default to be loaded, of the next generation."""
        kv = await self.router.nc.jetstream().key_value("models")
        try:
            before = ModelEntry.model_validate_json((await kv.get(subjects.token(name))).value or b"").generation
        except KeyNotFoundError:
            before = 0
        full = None if spec is None else {"name": name, **spec}
        entry = ModelEntry(**{"name": name, "spec": full, "stage": "changing", "generation": before + 1, **fields})
        await kv.put(subjects.token(name), entry.model_dump_json().encode())
        return entry

    async def beat(self, name: str, check: Callable[[Heartbeat], Any], start: int | None = None) -> Heartbeat:
        """The first heartbeat of a model from now on, or from that one on, that is as it should be."""
        start = len(self.router.beats) if start is None else start

        def find() -> Heartbeat | None:
            return next((b for b in self.router.beats[start:] if b.model == name and check(b)), None)

        beat = await eventually(find)
        assert isinstance(beat, Heartbeat)
        return beat


StackFactory = Callable[..., Any]


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as server:
        yield server


@pytest.fixture
def stack(nats_server: NatsServer, fake: FakeOpenAI) -> StackFactory:
    """`async with stack(max_concurrency=1) as s`: a worker with one openai model "m" (or ``models=[...]``).

    ``sections`` are further sections of the configuration, ``make`` makes engines other than the real ones,
    ``wait``: until all that is preloaded is ready.
    """

    @asynccontextmanager
    async def build(
        *, models: list[dict[str, Any]] | None = None, wait: bool = True, sections: dict[str, Any] | None = None,
        make: MakeEngine | None = None, worker: str = "w00000001", **model: Any,
    ) -> AsyncIterator[Stack]:
        configs = [{"name": "m", "engine": "openai", "base_url": fake.base_url, **model}] if models is None else models
        async with nats_server.bus("inference", models=configs, **(sections or {})) as bus:
            nc = await nats_server.connect("router")
            own = replace(inference_settings.read(bus.settings), worker=worker, drain_s=0.1)
            parts = Parts(bus, own, make)
            router = RouterEnd(nc, worker)
            await router.start()
            await parts.start()
            found = Stack(router, parts, bus, fake)
            try:
                if wait:
                    await found.load()
                yield found
            finally:
                router.fall_silent()
                await parts.stop()
                await nc.close()

    return build
