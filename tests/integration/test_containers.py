"""What the images run, as plain processes with the environment and the files of compose.yaml; on a real nats-server with
its configuration, and a ClickHouse server.
"""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import clickhouse_connect
import httpx
import pytest

from infra import make_secrets
from schemas.streams import SERVICES
from services.metrics.adapters.clickhouse_http import Front
from tests.containers import Container
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import NatsServer, eventually
from tests.system import ROOT


class ComposedNats(NatsServer):
    """The server of compose.yaml on a free port."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        super().__init__(folder)
        port = self.url.rsplit(":", 1)[1]
        (folder / "passwords.conf").write_text((secrets / "nats-passwords.conf").read_text())
        text = (ROOT / "infra" / "nats" / "nats.conf").read_text()
        for there, instead in (("0.0.0.0:4222", f"127.0.0.1:{port}"), ("http: 127.0.0.1:8222", "http: 127.0.0.1:-1"), ("/data", str(folder / "store"))):
            assert there in text
            text = text.replace(there, instead)
        (folder / "nats.conf").write_text(text)
        self.embedded.command[-1] = str(folder / "nats.conf")


@pytest.fixture
async def clickhouse(tmp_path: Path) -> AsyncIterator[int]:
    """A ClickHouse server on the real engine; its port."""
    client = clickhouse_connect.get_client(dsn=f"chdb://{tmp_path / 'server'}")
    client.command("CREATE DATABASE IF NOT EXISTS other")
    password = (tmp_path / "secrets" / "clickhouse-password").read_text()
    front = Front(str(tmp_path / "server"), "other", make_secrets.DATABASE, password, writable=True)
    yield await front.start("127.0.0.1", 0)
    await front.stop()
    client.close()


@pytest.fixture(autouse=True)
def secrets(tmp_path: Path) -> Path:
    make_secrets.write(tmp_path / "secrets")
    return tmp_path / "secrets"


@pytest.mark.timeout(300)
async def test_every_container_does_what_it_is_for_and_stops_without_cutting_anybody_off(
    tmp_path: Path, secrets: Path, clickhouse: int
) -> None:
    dsn = (secrets / "clickhouse-dsn").read_text().replace("@clickhouse:8123", f"@127.0.0.1:{clickhouse}")
    (secrets / "clickhouse-dsn").unlink()
    (secrets / "clickhouse-dsn").write_text(dsn)
    nats = ComposedNats(tmp_path / "nats", secrets)
    nats.start()
    async with FakeOpenAI() as upstream:
        models = f'[{{"name": "stable", "engine": "openai", "base_url": "{upstream.base_url}"}}]'
        instead = {
            "CYPRIA_NATS__SERVERS": f'["{nats.url}"]', "CYPRIA_MODELS": models, "CYPRIA_HTTP__PORT": "0", "CYPRIA_OPS__PORT": "0",
            "CYPRIA_HTTP__HOST": "127.0.0.1", "CYPRIA_OPS__HOST": "127.0.0.1", "CYPRIA_ALERTS__DESTINATIONS": "[{type: log}]",
        }  # fmt: skip
        provision = Container("provision", tmp_path, secrets, instead)
        containers = {name: Container(name, tmp_path, secrets, instead) for name in SERVICES}
        try:
            provision.start()
            assert provision.process
            assert await asyncio.to_thread(provision.process.wait, 120) == 0, provision.log.read_text()
            for one in containers.values():
                one.start()
            for one in containers.values():
                await eventually(lambda c=one: asyncio.to_thread(c.healthy), 90, 0.5)
            async with httpx.AsyncClient(timeout=60) as client:
                edge = f"http://127.0.0.1:{containers['router'].told()['port']}"

                async def ready() -> bool:
                    answers = [await client.get(f"http://127.0.0.1:{one.told()['port']}/ready") for one in containers.values()]
                    return all(answer.status_code == 200 for answer in answers)

                await eventually(ready, 60, 0.2)
                client.headers["Authorization"] = f"Bearer {(secrets / 'app-key').read_text()}"
                # longer than what is in flight gets where nothing is configured
                upstream.behaviour.latency_s = 6
                asked = {"model": "stable", "messages": [{"role": "user", "content": "hello"}]}
                slow = asyncio.create_task(client.post(f"{edge}/v1/chat/completions", json=asked))
                await eventually(lambda: upstream.seen.running == 1)
                router = containers["router"].process
                assert router
                router.send_signal(signal.SIGTERM)
                answer = await slow
                assert answer.status_code == 200, answer.text
                assert await asyncio.to_thread(router.wait, 60) == 0
            for name in ("inference", "metrics", "monitor", "alerts"):
                process = containers[name].process
                assert process
                process.send_signal(signal.SIGTERM)
            for name, one in containers.items():
                assert one.process
                assert await asyncio.to_thread(one.process.wait, 60) == 0, f"{name}\n{one.log.read_text()[-2000:]}"
        finally:
            for one in (provision, *containers.values()):
                one.kill()
            nats.kill()


def test_a_health_check_tells_what_is_wrong(tmp_path: Path) -> None:
    container = Container("monitor", tmp_path, tmp_path / "secrets", {})
    done = subprocess.run(container.health, env=container.env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"no service has said in {tmp_path / 'monitor'}/run where it listens" in done.stderr
