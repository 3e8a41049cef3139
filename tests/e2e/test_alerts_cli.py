"""`cypria alerts list|test|redrive` against a running system with a destination that fails at first."""

import asyncio
import json
import subprocess
import sys

import pytest

from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import environment, eventually
from tests.service.alerts.receivers import Receiver
from tests.system import ROOT, System, running


async def cypria(system: System, *arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    env = environment(CYPRIA_URL=system.url, CYPRIA_API_KEY=key or system.key, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "services.cli", "alerts", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=60, check=False
    )


async def test_test_alerts_and_dead_letters_from_the_shell(
    tmp_path_factory: pytest.TempPathFactory, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    async with Receiver(lambda _n, _got: (404, {}, {})).running() as receiver:
        config = engine_config(*upstreams)
        hook = {"type": "webhook", "name": "hook", "url": f"{receiver.url}/hidden-path", "secret": "hidden-word"}
        config["alerts"] = {"destinations": [{"type": "log"}, hook]}
        async with running(tmp_path_factory.mktemp("alerts"), config) as system:
            done = await cypria(system, "test", "--json")
            outcomes = {one["destination"]: one for one in json.loads(done.stdout)["destinations"]}
            assert done.returncode == 1
            assert outcomes["log"]["outcome"] == "sent"
            assert (outcomes["hook"]["outcome"], outcomes["hook"]["reason"]) == ("failed", "HTTP 404")

            started = await system.client.post(
                "/v1/ab-testing/start", json={"model_a": "stable", "model_b": "canary"}
            )
            assert started.status_code == 200, started.text

            async def gave_up() -> bool:
                listed = json.loads((await cypria(system, "list", "--json")).stdout)["alerts"]
                states = [d["status"] for item in listed for d in item["deliveries"] if d["destination"] == "hook"]
                return "failed" in states

            await eventually(gave_up, 40)
            receiver.reply = lambda _n, _got: (200, {}, {})
            assert (await cypria(system, "test")).returncode == 0
            sent = len(receiver.got)
            redriven = await cypria(system, "redrive", "--destination", "hook")
            assert "sent back 1" in redriven.stdout, redriven.stderr
            await eventually(lambda: len(receiver.got) > sent, 40)
            assert "Test started" in receiver.got[-1].body["data"]["title"]
            unknown = await cypria(system, "redrive", "--destination", "nobody")
            assert unknown.returncode == 1
            assert "nobody" in unknown.stderr
            shown = await system.client.get("/v1/ab-testing/config")
            for text in (shown.text, system.log.read_text()):
                assert "hidden-path" not in text
                assert "hidden-word" not in text
