"""The whole product as its users run it: `cypria up` as a process, real parts, a client."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from services._runtime.nats_server import free_port
from tests.harness import environment, eventually

ROOT = Path(__file__).resolve().parents[1]


class System:
    """`cypria up` on a data dir of its own; ``config`` is the YAML file's content."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.port = free_port()
        self.config = folder / "cypria.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.log = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.AsyncClient(base_url=self.url, timeout=40)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    async def start(self, ready_s: float = 180) -> None:
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "up", "--config", str(self.config), "--data-dir", str(self.data_dir), "--port", str(self.port)],
                stdout=sink, stderr=sink, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT), CYPRIA_LOGGING__FORMAT="json"),
            )  # fmt: skip
        await eventually(self.ready, ready_s, 0.1)
        self.client.headers["Authorization"] = f"Bearer {self.key}"

    async def ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"cypria up ended:\n{self.log.read_text()[-3000:]}"
        with contextlib.suppress(httpx.TransportError):
            return (await self.client.get("/ready")).status_code == 200
        return False

    def stop(self) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def pids(self, service: str) -> list[int]:
        """Process ids of the running processes of a service (or ``nats-server``), children of `cypria up`."""
        assert self.process
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if (
                    f"services.{service}" in line or (service == "nats-server" and "nats-server" in line)
                ) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
        return found

    def signal(self, service: str, number: int, index: int = 0) -> int:
        pid = self.pids(service)[index]
        os.kill(pid, number)
        return pid

    async def api(self, method: str, path: str, body: dict[str, Any] | None = None, expect: int = 200) -> Any:
        response = await self.client.request(method, f"/v1/ab-testing/{path}", json=body)
        assert response.status_code == expect, response.text
        return response.json()

    async def start_test(self, **body: Any) -> str:
        return str((await self.api("POST", "start", {"model_a": "stable", "model_b": "canary", **body}))["test_id"])

    async def status(self, test_id: str) -> dict[str, Any]:
        return dict(await self.api("GET", f"status?test_id={test_id}"))

    def logs(self) -> list[dict[str, Any]]:
        lines = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines


@contextlib.asynccontextmanager
async def running(folder: Path, config: dict[str, Any], ready_s: float = 180) -> AsyncIterator[System]:
    """A system that is up, after at most ``ready_s`` seconds; it is stopped, and its log's tail shown when the test failed."""
    system = System(folder, config)
    try:
        await system.start(ready_s)
        yield system
    except BaseException:
        if system.log.exists():
            sys.stderr.write(system.log.read_text()[-6000:])
        raise
    finally:
        await system.client.aclose()
        if system.process:
            await asyncio.to_thread(system.stop)
