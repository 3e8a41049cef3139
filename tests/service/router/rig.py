"""A whole router on a real port and a real nats-server, with scripted workers and a reader of its facts."""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn

from schemas.v1.facts import Fact, FactBatch
from services._runtime.settings_model import Settings
from services.router.app import UVICORN_OPTIONS, Router, RouterApp, build_app
from tests.fakes.frame_worker import FrameWorker
from tests.harness import NatsServer, eventually

KEYS = {"admin": "admin-key", "client": "client-key", "viewer": "viewer-key"}
SECURITY = {
    "rate_limit": {"control_per_minute": 0},
    "api_keys": [
        {"name": name, "role": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
        for name, key in KEYS.items()
    ],
}
MODELS = [
    {"name": name, "engine": "openai", "base_url": "http://127.0.0.1:9/v1", "preload": False}
    for name in ("stable", "canary")
]


def bearer(role: str = "client") -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[role]}"}


def chat(model: str = "stable", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}


class Rig:
    """One router process's worth of parts, in this loop."""

    def __init__(self, server: NatsServer, **sections: Any) -> None:
        self.nats = server
        self.settings: Settings = server.settings("router", **{"security": SECURITY, "models": MODELS, **sections})
        app = build_app(self.settings)
        assert isinstance(app, RouterApp)
        self.app = app
        self.router: Router = app._router
        self.workers: list[FrameWorker] = []
        self._sock = socket.create_server(("127.0.0.1", 0))
        # As the product's own loop does: a small answer would wait 40 ms for the acknowledgement of the piece before it.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = int(self._sock.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.AsyncClient(base_url=self.url, timeout=60, headers=bearer())

    @property
    def path(self) -> Any:
        assert self.router.path
        return self.router.path

    async def start(self) -> None:
        config = uvicorn.Config(
            self.app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5,
            server_header=False, date_header=False, **UVICORN_OPTIONS,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server._serve(sockets=[self._sock]))
        await eventually(lambda: self._server.started or self._task.done())
        assert self._server.started, "the router did not start"

    async def stop(self) -> None:
        await self.client.aclose()
        self._server.should_exit = True
        await asyncio.wait_for(self._task, 60)
        self._sock.close()
        for worker in self.workers:
            await worker.stop()

    async def worker(self, model: str, name: str | None = None, mode: str = "ok", **options: Any) -> FrameWorker:
        worker = FrameWorker(model, name or f"w{len(self.workers):08x}", mode, **options)
        await worker.start(await self.nats.connect("inference"))
        self.workers.append(worker)
        wanted = worker.worker
        if worker.state == "ready":
            await eventually(lambda: wanted in self.path.table._models.get(model, {}))
        return worker

    async def post(self, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {})
        return await self.client.post(path, json=chat(**fields), headers=headers)

    async def start_test(self, **body: Any) -> str:
        response = await self.client.post(
            "/v1/ab-testing/start", json={"model_a": "stable", "model_b": "canary", **body}, headers=bearer("admin")
        )
        assert response.status_code == 200, response.text
        return str(response.json()["test_id"])

    async def facts(self) -> list[Fact]:
        """All facts that METRICS holds, after a flush."""
        return [fact for batch in await self.batches() for fact in batch.facts]

    async def batches(self) -> list[FactBatch]:
        await self.path.flush_facts(10)
        return await read_batches(self.nats)


async def read_batches(server: NatsServer) -> list[FactBatch]:
    """Every batch in METRICS, read as the metrics service is allowed to."""
    nc = await server.connect("metrics")
    try:
        js = nc.jetstream()
        info = await js.stream_info("METRICS")
        found = []
        for sequence in range(1, info.state.last_seq + 1):
            raw = await js.get_msg("METRICS", sequence, direct=False)
            found.append(FactBatch.model_validate(json.loads(raw.data or b"")))
        return found
    finally:
        await nc.close()


@contextlib.asynccontextmanager
async def running(server: NatsServer, **sections: Any) -> AsyncIterator[Rig]:
    rig = Rig(server, **sections)
    await rig.start()
    try:
        yield rig
    finally:
        await rig.stop()


def events(text: str) -> list[str]:
    """Data of the server-sent events of a body."""
    return [line[6:] for line in text.splitlines() if line.startswith("data: ")]


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer client-key\r\n"


class Raw:
    """A client that can do everything wrong."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split(" ", 2)[1])
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, json.loads(body)

    async def closed(self) -> bool:
        async with asyncio.timeout(60):
            return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def raw(rig: Rig) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def serves(rig: Rig) -> None:
    """The router still does its work."""
    assert (await rig.post()).status_code == 200
