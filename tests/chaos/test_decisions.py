"""Parts die while a test is started, rolled back or stopped: it has one end, and every answer agrees with it."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services._cli.load import Load, Tally, drive
from tests.chaos.test_kill_each import SEED, back, heard
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import Behaviour, FakeOpenAI
from tests.harness import eventually
from tests.system import System, running

VICTIMS = ("router", "monitor", "metrics", "alerts", "nats-server")
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))


class Decisions:
    """A system under load whose parts die at moments of a seed."""

    def __init__(self, system: System, canary: FakeOpenAI) -> None:
        self.system = system
        self.canary = canary
        self.rng = random.Random(SEED)
        self.tally = Tally()

    async def killed(self, victims: list[str]) -> None:
        gone = {}
        for victim in victims:
            gone[victim] = self.system.signal(victim, signal.SIGKILL)
        for victim, pid in gone.items():
            await eventually(lambda v=victim, p=pid: back(self.system, v, 1, p), 90, 0.1)

    async def during(self, call: Any, victims: list[str], within_s: float) -> httpx.Response | None:
        """Make a call and kill ``victims`` while it goes on; its answer, if there was one."""
        answer = asyncio.create_task(call)
        await asyncio.sleep(self.rng.uniform(0, within_s))  # the moment of death is the point
        await self.killed(victims)
        try:
            return await answer
        except httpx.TransportError:
            return None

    def post(self, verb: str, **body: Any) -> Any:
        return self.system.client.post(f"/v1/ab-testing/{verb}", json=body)

    def start(self, **body: Any) -> Any:
        return self.post("start", model_a="stable", model_b="canary", traffic_split_percent=50, **body)

    async def running(self) -> list[str]:
        reply = await self.system.client.get("/v1/ab-testing/status")
        assert reply.status_code == 200, reply.text
        test_id = reply.json()["test_id"]
        return [test_id] if test_id else []

    async def result(self, test_id: str) -> dict[str, Any] | None:
        """What history says of a test, if it has ended; twice would be wrong."""
        reply = await self.system.client.get("/v1/ab-testing/history?limit=100")
        if reply.status_code != 200:
            return None
        found = [result for result in reply.json()["tests"] if result["test_id"] == test_id]
        assert len(found) <= 1, found
        return found[0] if found else None

    async def ended(self, test_id: str) -> dict[str, Any]:
        """The one result of a test; the same again a little later and in `tests/{id}`."""
        first: dict[str, Any] = await eventually(lambda: self.result(test_id), 90, 0.2)
        one = (await self.system.client.get(f"/v1/ab-testing/tests/{test_id}")).json()
        assert (one["status"], one["decision"]) == (first["status"], first["decision"])
        return first

    async def said(self, test_id: str) -> list[str]:
        """Emergencies about a test, one for each incident."""
        alerts = await heard(self.system)
        ids = [alert["id"] for alert in alerts]
        assert len(ids) == len(set(ids))
        return [alert["title"] for alert in alerts if alert["test_id"] == test_id and alert["level"] == "EMERGENCY"]


@pytest.fixture
async def decisions(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Decisions]:
    stable, canary = FakeOpenAI(), FakeOpenAI()
    await stable.start()
    await canary.start()
    async with running(tmp_path_factory.mktemp("decisions"), engine_config(stable, canary)) as system:
        found = Decisions(system, canary)
        done = asyncio.Event()
        load = Load(system.url, system.key, "stable", 20)
        traffic = asyncio.create_task(drive(load, seconds=3000, tally=found.tally, stop=done.is_set))
        try:
            yield found
        finally:
            done.set()
            await traffic
    await stable.stop()
    await canary.stop()


@pytest.mark.timeout(400 + 600 * (ROUNDS - 1))
async def test_a_test_has_one_beginning_and_one_end_whoever_dies_meanwhile(decisions: Decisions) -> None:
    for _ in range(ROUNDS):
        await one_start(decisions)
        await one_stop(decisions)
        await one_rollback(decisions)
        await one_automatic_rollback(decisions)


async def one_start(decisions: Decisions) -> None:
    answer = await decisions.during(decisions.start(), ["router"], 0.06)
    running = await decisions.running()
    if answer is not None and answer.status_code == 200:
        assert running == [answer.json()["test_id"]]
    again = await decisions.start()
    assert again.status_code == (409 if running else 200), again.text
    (test_id,) = await decisions.running()
    assert (await decisions.post("stop", test_id=test_id)).status_code == 200
    assert (await decisions.ended(test_id))["status"] == "completed"


async def one_stop(decisions: Decisions) -> None:
    test_id = (await decisions.start()).json()["test_id"]
    await asyncio.sleep(1)
    victims = decisions.rng.sample(VICTIMS, decisions.rng.choice((1, 2)))
    answer = await decisions.during(decisions.post("stop", test_id=test_id), victims, 1.2)
    if answer is None or answer.status_code != 200:
        again = await decisions.post("stop", test_id=test_id)
        assert again.status_code in {200, 404}, again.text
        answer = again if again.status_code == 200 else None
    result = await decisions.ended(test_id)
    assert result["status"] == "completed"
    if answer is not None:
        told = answer.json()
        assert (told["test_id"], told["decision"], told["reason"]) == (test_id, result["decision"], result["reason"])
    assert await decisions.running() == []
    assert await decisions.said(test_id) == []


async def one_rollback(decisions: Decisions) -> None:
    test_id = (await decisions.start()).json()["test_id"]
    victims = decisions.rng.sample(VICTIMS, decisions.rng.choice((1, 2)))
    answer = await decisions.during(decisions.post("rollback", test_id=test_id), victims, 0.06)
    if answer is None or answer.status_code != 200:
        again = await decisions.post("rollback", test_id=test_id)
        assert again.status_code in {200, 404}, again.text
    assert (await decisions.ended(test_id))["status"] == "rolled_back"
    assert len(await decisions.said(test_id)) <= 1


async def one_automatic_rollback(decisions: Decisions) -> None:
    test_id = (await decisions.start()).json()["test_id"]
    decisions.canary.behaviour = Behaviour(status=500)
    await asyncio.sleep(decisions.rng.uniform(0.5, 2.5))  # the moment of death is the point
    await decisions.killed(decisions.rng.sample(VICTIMS, decisions.rng.choice((1, 2))))
    result = await decisions.ended(test_id)
    decisions.canary.behaviour = Behaviour()
    assert (result["status"], result["decision"]) == ("rolled_back", "rollback")

    async def told() -> list[str]:
        return await decisions.said(test_id)

    assert len(await eventually(told, 60, 0.2)) == 1
