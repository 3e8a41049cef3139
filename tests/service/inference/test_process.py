"""The service as a process: `python -m services.inference`, its bus verbs, and SIGTERM."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from nats.aio.client import Client

from schemas import subjects
from schemas.v1.inference import FINAL
from services._runtime.server import die_with_parent
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import NatsServer, environment, eventually
from tests.service.inference.conftest import RouterEnd

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def process(server: NatsServer, tmp_path: Path, models: list[dict[str, Any]]) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    config = tmp_path / "cypria.yaml"
    nats = {"servers": [server.url], "user": "inference", "password": server.embedded.passwords["inference"]}
    config.write_text(yaml.safe_dump({"nats": nats, "models": models, "data_dir": str(tmp_path / "data")}))
    log = (tmp_path / "log").open("wb")
    running = subprocess.Popen(
        [sys.executable, "-m", "services.inference", "--config", str(config)], cwd=ROOT, env=environment(), stderr=log,
        stdout=log, preexec_fn=lambda: die_with_parent(signal.SIGKILL),
    )  # fmt: skip
    try:
        [file] = await eventually(lambda: list((tmp_path / "data" / "run").glob("inference.*.json")), 60)
        where = json.loads(file.read_text())
        yield running, f"http://{where['host']}:{where['port']}"
    finally:
        running.kill()
        running.wait()
        log.close()


async def ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def verb(nc: Client, name: str, **body: str) -> tuple[Any, bool]:
    msg = await nc.request(subjects.models(name), json.dumps(body).encode(), timeout=60)
    return json.loads(msg.data), bool(msg.headers and msg.headers.get("Cypria-Error"))


async def test_from_start_to_sigterm(nats_server: NatsServer, tmp_path: Path) -> None:
    stable = ROOT / "infra" / "models" / "stable"
    async with FakeOpenAI() as fake, aiohttp.ClientSession() as http:
        models = [
            {"name": "m", "engine": "openai", "base_url": fake.base_url},
            {"name": "tiny", "engine": "transformers", "path": str(stable)},
        ]
        async with process(nats_server, tmp_path, models) as (running, url):
            await eventually(lambda: ready(http, url), 90)
            nc = await nats_server.connect("router")
            router = RouterEnd(nc, "")
            await router.start()
            await eventually(lambda: {beat.model for beat in router.beats} == {"m", "tiny"})
            router.worker = router.beats[0].worker

            listed, failed = await verb(nc, "list")
            assert not failed
            assert {(m["model"], m["engine"], m["state"]) for m in listed["models"]} == {
                ("m", "openai", "ready"), ("tiny", "transformers", "ready"),
            }  # fmt: skip
            assert (await verb(nc, "unload", model="nobody")) == (
                {"message": "no model 'nobody' on this worker: add it to 'models', or register it with the router", "code": "model_not_found"}, True,
            )  # fmt: skip
            assert (await verb(nc, "load", model="m"))[0]["code"] == "conflict"
            assert (await verb(nc, "unload", model="tiny"))[0]["state"] == "draining"
            await router.state("tiny", "unloaded")
            assert (await verb(nc, "load", model="tiny", worker=router.worker))[0]["state"] == "verifying"
            await router.state("tiny", "ready")

            said = await (await router.chat(model="tiny", max_tokens=20, temperature=0)).end()
            assert said.done.completion_tokens > 0
            async with http.get(f"{url}/metrics") as response:
                text = await response.text()
            assert 'cypria_inference_model_state{model="tiny",state="ready"} 1.0' in text
            assert 'cypria_inference_requests_total{model="tiny"' in text

            fake.behaviour.chunk_delay_s = 0.02
            stream = await router.chat(stream=True, max_tokens=50)
            await eventually(lambda: stream.pieces > 0)
            running.send_signal(signal.SIGTERM)
            await router.state("m", "draining")
            await stream.end()
            assert (stream.kinds[-1], stream.done.outcome) == (FINAL, "length")
            # uvicorn raises the signal again once everything has stopped.
            assert await asyncio.to_thread(running.wait, 60) in {0, -signal.SIGTERM}
            await nc.close()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.count("unloaded") >= 3, "every model was closed"
    assert "Tell me a story" not in log
