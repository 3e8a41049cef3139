"""A system with keys of all four roles in front of two upstreams, and how the contract's tests talk to it."""

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import nats
from nats.aio.msg import Msg

from tests.fakes.openai_server import Behaviour, FakeOpenAI
from tests.harness import environment, eventually
from tests.system import ROOT, System

ROLES = ("client", "viewer", "operator", "admin")
KEYS = {role: f"cyp-{role}-SECRETMARK" for role in ROLES}
SLASHED = "meta-llama/Meta-Llama-3.1-8B.v2"
UNICODE = "模型-ü"


class Keyed(System):
    """A system with configured keys."""

    @property
    def key(self) -> str:
        return KEYS["admin"]


class Product:
    """The system and its two upstreams."""

    def __init__(self, system: Keyed, stable: FakeOpenAI, canary: FakeOpenAI) -> None:
        self.system = system
        self.stable = stable
        self.canary = canary

    async def call(self, method: str, path: str, role: str | None = "admin", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEYS[role]}" if role else "", **options.pop("headers", {})}
        url = path if path.startswith("/") else f"/v1/ab-testing/{path}"
        return await self.system.client.request(method, url, headers=headers, **options)

    async def chat(self, model: str = "stable", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "PROMPTMARK hello"}]
        body = {"model": model, "messages": messages, "max_tokens": 4, **fields}
        return await self.call("POST", "/v1/chat/completions", "client", json=body, headers=headers or {})

    async def variant(self, **fields: Any) -> str:
        response = await self.chat(**fields)
        assert response.status_code == 200, response.text
        return response.headers["x-ab-test-variant"]

    @contextlib.asynccontextmanager
    async def test(self, model_a: str = "stable", model_b: str = "canary", **fields: Any) -> AsyncIterator[str]:
        """A running test that is stopped in the end."""
        body = {"model_a": model_a, "model_b": model_b, "auto_rollback": False, **fields}
        test_id = (await self.system.api("POST", "start", body))["test_id"]
        try:
            yield test_id
        finally:
            await self.call("POST", "stop", json={"test_id": test_id})

    async def figures(self, test_id: str) -> dict[str, Any]:
        """Of both variants, once metrics tells them: a busy one does not answer in time."""

        async def told() -> dict[str, Any]:
            return (await self.system.status(test_id))["metrics"] or {}

        return dict(await eventually(told, every_s=0.2))

    @contextlib.contextmanager
    def behaving(self, stable: Behaviour | None = None, canary: Behaviour | None = None) -> Any:
        self.stable.behaviour, self.canary.behaviour = stable or Behaviour(), canary or Behaviour()
        try:
            yield
        finally:
            self.stable.behaviour, self.canary.behaviour = Behaviour(), Behaviour()

    async def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Send these bytes; all that comes back until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.system.port)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                if half_close:
                    writer.write_eof()
            async with asyncio.timeout(60):
                return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Caller:
    """An outside caller on the bus; ``denied`` is what the server refused it."""

    def __init__(self, nc: nats.NATS, denied: list[str]) -> None:
        self.nc = nc
        self.denied = denied

    async def ask(self, subject: str, content: Any, role: str | None = "client", **headers: str) -> list[Msg]:
        """All messages of the answer."""
        inbox = self.nc.new_inbox()
        sub = await self.nc.subscribe(inbox)
        key = {"Authorization": f"Bearer {KEYS[role]}"} if role else {}
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self.nc.publish(subject, payload, reply=inbox, headers={**key, **headers})
        found: list[Msg] = []
        while not found or (
            subject.startswith("cypria.request") and (found[-1].headers or {}).get("Cypria-Final") != "1"
        ):
            found.append(await sub.next_msg(60))
        await sub.unsubscribe()
        return found

    async def status(self, subject: str, content: Any, role: str | None = "client") -> str:
        """The status of the answer."""
        return (await self.ask(subject, content, role))[-1].headers["Cypria-Status"]


@contextlib.asynccontextmanager
async def bus_caller(system: System) -> AsyncIterator[Caller]:
    """Connected as the user `caller` with its own password."""
    folder = system.data_dir / "nats"
    password = json.loads((folder / "passwords.json").read_text())["caller"]
    port = next(line.split()[1] for line in (folder / "nats.conf").read_text().splitlines() if line.startswith("port:"))
    denied: list[str] = []

    async def on_error(exc: Exception) -> None:
        denied.append(str(exc))

    nc = await nats.connect(
        f"nats://127.0.0.1:{port}", user="caller", password=password, inbox_prefix="_INBOX.caller", error_cb=on_error
    )
    try:
        yield Caller(nc, denied)
    finally:
        await nc.close()


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a refusal, in its one shape."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


@contextlib.asynccontextmanager
async def running_product(folder: Path, **sections: Any) -> AsyncIterator[Product]:
    """The product, up and running with these sections of the configuration beside its own; stopped in the end.

    Of ``security``, what it has of its own stays.
    """
    async with FakeOpenAI() as stable, FakeOpenAI() as canary:
        served = (("stable", stable, None), ("canary", canary, None), ("s2", stable, None), ("c2", canary, None),
                  (SLASHED, stable, None), (UNICODE, canary, "upstream/name"))  # fmt: skip
        models: list[dict[str, Any]] = [
            {"name": name, "engine": "openai", "base_url": upstream.base_url, "timeout_seconds": 2,
             **({"upstream_model": other} if other else {})}
            for name, upstream, other in served
        ]  # fmt: skip
        # With a digest that its files do not have, and loaded only when a test asks for it.
        models.append({"name": "tampered", "engine": "transformers", "path": str(ROOT / "infra" / "models" / "stable"),
                       "digest": "sha256:" + "0" * 64, "preload": False})  # fmt: skip
        keys = [
            {"name": role, "role": role, "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
            for role, key in KEYS.items()
        ]
        limits = {"control_per_minute": 0, "control_burst": 1000}
        security = {"api_keys": keys, "rate_limit": limits, **sections.get("security", {})}
        config = {"models": models, **sections, "security": security}
        system = Keyed(folder, config)
        try:
            await system.start()
            yield Product(system, stable, canary)
        finally:
            await system.client.aclose()
            await asyncio.to_thread(system.stop)


async def run(*command: str, **variables: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)."""
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=200, cwd=ROOT, check=False,
        env=environment(PYTHONPATH=str(ROOT), **variables),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def cypria(product: Product, *arguments: str, **variables: str) -> tuple[int, str, str]:
    known = {"CYPRIA_URL": product.system.url, "CYPRIA_API_KEY": KEYS["admin"], **variables}
    return await run(sys.executable, "-m", "services.cli", *arguments, **known)
