"""The metrics service as a process that can be killed, and questions to it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nats
import yaml

from schemas import subjects
from schemas.v1.common import Message
from services._runtime.nats_server import free_port
from services._runtime.server import die_with_parent
from tests.harness import NatsServer, environment, eventually


def _child() -> None:
    die_with_parent(signal.SIGKILL)


class Process:
    """One child process that dies with this one."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment(), preexec_fn=_child
            )

    def kill(self, sig: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(sig)
        return self.process.wait(60)

    def signal(self, sig: int) -> None:
        assert self.process is not None
        self.process.send_signal(sig)

    def log(self) -> str:
        return self._log.read_text()


class Metrics(Process):
    """`python -m services.metrics` on a nats-server and a DSN."""

    def __init__(self, server: NatsServer, folder: Path, dsn: str, **sections: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "metrics.yaml"
        self.port = free_port()
        self.folder = folder
        self.config = {
            "nats": {"servers": [server.url], "user": "metrics", "password": server.embedded.passwords["metrics"]},
            "clickhouse": {"dsn": dsn}, "data_dir": str(folder), "ops": {"port": self.port}, **sections,
        }  # fmt: skip
        config.write_text(yaml.safe_dump(self.config))
        super().__init__([sys.executable, "-m", "services.metrics", "--config", str(config)], folder / "log")

    async def ready(self) -> None:
        def check() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()[-3000:]
            return self.get("/ready")[0] == 200

        await eventually(lambda: asyncio.to_thread(check), 90, 0.1)

    def get(self, path: str) -> tuple[int, Any]:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def front(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "clickhouse-http.json").read_text())
        return found


async def ask(nc: nats.NATS, name: str, question: Message | bytes) -> tuple[bool, bytes]:
    """(failed, body) of the answer to a question."""
    body = question if isinstance(question, bytes) else question.model_dump_json().encode()
    reply = await nc.request(subjects.query(name), body, timeout=60)
    return bool(reply.headers and "Cypria-Error" in reply.headers), reply.data


def seed() -> int:
    """The seed of random kill moments: CYPRIA_TEST_SEED, else a fixed one."""
    return int(os.environ.get("CYPRIA_TEST_SEED", "20240601"))
