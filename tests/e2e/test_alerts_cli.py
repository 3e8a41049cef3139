"""`cypria alerts` and `cypria integrations` against a running system whose destination and webhook fail at first."""

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


async def cypria(
    system: System, *arguments: str, key: str | None = None, group: str = "alerts"
) -> subprocess.CompletedProcess[str]:
    env = environment(CYPRIA_URL=system.url, CYPRIA_API_KEY=key or system.key, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "services.cli", group, *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=200, check=False
    )


def requests(receiver: Receiver, test_id: str) -> int:
    """Of both variants, in the windows of figures."""
    told = [got.body["data"] for got in receiver.got if got.path == "/events" and "metric_window" in got.body["type"]]
    assert {(one["test_id"], one["model_a"], one["model_b"]) for one in told} <= {(test_id, "stable", "canary")}
    return sum(variant["requests"] for one in told for variant in one["variants"].values())


async def integrations(system: System, receiver: Receiver, test_id: str) -> None:
    """Those of the running test: its start was refused at first."""

    async def refused() -> bool:
        states = (await system.api("GET", "integrations"))["integrations"]
        return any((one["integration"], one["dead_letters"]) == ("lake", 1) for one in states)

    await eventually(refused, every_s=0.2)
    doctor = await cypria(system, group="doctor")
    assert "lake has 1 dead letters" in " ".join(doctor.stdout.split())
    listed = await cypria(system, "list", group="integrations")
    assert "HTTP 404" in listed.stdout, listed.stderr
    assert (await cypria(system, "test", "--integration", "lake", group="integrations")).returncode == 0
    events = [got for got in receiver.got if got.path == "/events"]
    redriven = await cypria(system, "redrive", "--integration", "lake", group="integrations")
    assert "sent back 1" in redriven.stdout, redriven.stderr
    await eventually(lambda: len([got for got in receiver.got if got.path == "/events"]) > len(events))
    last = next(got for got in reversed(receiver.got) if got.path == "/events")
    assert (last.body["type"], last.body["data"]["test_id"]) == ("cypria.test.started.v1", test_id)
    status = json.loads((await cypria(system, "list", "--json", group="integrations")).stdout)["integrations"]
    assert [(one["integration"], one["dead_letters"]) for one in status] == [("lake", 0), ("dtesn", 0)]
    for _ in range(20):
        body = {"model": "stable", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert (await system.client.post("/v1/chat/completions", json=body)).status_code == 200
    await eventually(lambda: requests(receiver, test_id) == 20)
    await system.api("POST", "rollback", {"test_id": test_id})
    told = {"action": "invalidate_model", "targets": ["org/canary"], "force": False}
    await eventually(lambda: told in [got.body for got in receiver.got if got.path == "/v1/dtesn/cache/control"])
    unknown = await cypria(system, "test", "--integration", "nobody", group="integrations")
    assert (unknown.returncode, "nobody" in unknown.stderr) == (1, True)


@pytest.mark.timeout(420)  # a shell starts some fifteen times
async def test_test_alerts_and_dead_letters_from_the_shell(
    tmp_path_factory: pytest.TempPathFactory, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    async with Receiver(lambda _n, _got: (404, {}, {})).running() as receiver:
        config = engine_config(*upstreams)
        hook = {"type": "webhook", "name": "hook", "url": f"{receiver.url}/hidden-path", "secret": "hidden-word"}
        config["alerts"] = {"destinations": [{"type": "log"}, hook]}
        lake = {"type": "webhook", "name": "lake", "url": f"{receiver.url}/events", "secret": "hidden-word",
                "events": ["test.*", "metric_window"], "window_seconds": 1}  # fmt: skip
        config["integrations"] = [lake, {"type": "dtesn", "url": receiver.url, "model_names": {"canary": "org/canary"}}]
        async with running(tmp_path_factory.mktemp("alerts"), config) as system:
            done = await cypria(system, "test", "--json")
            outcomes = {one["destination"]: one for one in json.loads(done.stdout)["destinations"]}
            assert done.returncode == 1
            assert outcomes["log"]["outcome"] == "sent"
            assert outcomes["hook"]["outcome"] == "failed"
            assert outcomes["hook"]["reason"].endswith("nothing takes messages at this address: check url")

            started = await system.client.post(
                "/v1/ab-testing/start", json={"model_a": "stable", "model_b": "canary"}
            )
            assert started.status_code == 200, started.text

            async def gave_up() -> bool:
                listed = (await system.api("GET", "monitoring/alerts"))["alerts"]
                states = [d["status"] for item in listed for d in item["deliveries"] if d["destination"] == "hook"]
                return "failed" in states

            await eventually(gave_up, 60, 0.2)
            shown = json.loads((await cypria(system, "list", "--json")).stdout)["alerts"]
            assert shown == (await system.api("GET", "monitoring/alerts?limit=20"))["alerts"]
            receiver.reply = lambda _n, _got: (200, {}, {})
            assert (await cypria(system, "test")).returncode == 0
            sent = len(receiver.got)
            redriven = await cypria(system, "redrive", "--destination", "hook")
            assert "sent back 1" in redriven.stdout, redriven.stderr
            await eventually(lambda: any("Test started" in str(got.body["data"].get("title")) for got in receiver.got[sent:]))
            await integrations(system, receiver, started.json()["test_id"])
            unknown = await cypria(system, "redrive", "--destination", "nobody")
            assert unknown.returncode == 1
            assert "nobody" in unknown.stderr
            config_shown = await system.client.get("/v1/ab-testing/config")
            for text in (config_shown.text, system.log.read_text()):
                assert "hidden-path" not in text
                assert "hidden-word" not in text
