"""Every way in which a test may end, and a stable model that is bad meanwhile, as a person hears of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services._cli.load import Load, Tally, drive
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import Behaviour, FakeOpenAI
from tests.harness import eventually
from tests.service.alerts.receivers import Receiver
from tests.system import System, running

Told = tuple[str, str, bool]


class Heard:
    """What arrived of a test, in the order in which it came: level, title, whether it is over."""

    def __init__(self, system: System, receiver: Receiver) -> None:
        self.system = system
        self._receiver = receiver

    def of(self, test_id: str) -> list[Told]:
        alerts = [got.body["data"] for got in self._receiver.got if got.body["data"].get("test_id") == test_id]
        return [(one["level"], one["title"], one.get("resolved", False)) for one in alerts]

    async def until(self, test_id: str, level: str, title: str, *, over: bool = False, patience_s: float = 40) -> None:
        await eventually(
            lambda: any(told[0] == level and title in told[1] and told[2] == over for told in self.of(test_id)), patience_s
        )


@pytest.fixture
async def heard(
    tmp_path_factory: pytest.TempPathFactory, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> AsyncIterator[Heard]:
    async with Receiver().running() as receiver:
        config = engine_config(*upstreams)
        hook = {"type": "webhook", "url": receiver.url, "secret": "s"}
        config["alerts"] = {"destinations": [hook], "public_url": "https://cypria.company.com"}
        async with running(tmp_path_factory.mktemp("stories"), config) as system:
            done = asyncio.Event()
            load = Load(system.url, system.key, "stable", 20)
            traffic = asyncio.create_task(drive(load, seconds=3000, tally=Tally(), stop=done.is_set))
            try:
                yield Heard(system, receiver)
            finally:
                done.set()
                await traffic


async def test_every_end_of_a_test_and_a_bad_stable_model_are_told_once(
    heard: Heard, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    system, (stable, canary) = heard.system, upstreams
    expires = await system.start_test(traffic_split_percent=50, test_duration_minutes=0.05)
    await heard.until(expires, "INFO", "Test completed")

    stopped = await system.start_test(traffic_split_percent=50)
    stable.behaviour = Behaviour(status=500)
    await heard.until(stopped, "CRITICAL", "The stable model is bad")
    stable.behaviour = Behaviour()
    await heard.until(stopped, "INFO", "The stable model is well again", over=True, patience_s=90)
    await system.api("POST", "stop", {"test_id": stopped})
    await heard.until(stopped, "INFO", "Test completed")

    by_hand = await system.start_test(traffic_split_percent=50)
    await system.api("POST", "rollback", {"test_id": by_hand, "reason": "looks odd"})
    await heard.until(by_hand, "WARNING", "Canary rolled back by an operator")

    automatic = await system.start_test(traffic_split_percent=50)
    canary.behaviour = Behaviour(status=500)
    await heard.until(automatic, "EMERGENCY", "")
    canary.behaviour = Behaviour()

    async def over() -> bool:
        return (await system.status(automatic))["status"] == "rolled_back"

    await eventually(over, 40)
    for test_id in (expires, stopped, by_hand, automatic):
        told: list[Any] = heard.of(test_id)
        assert len(told) == len(set(told)), told
        assert sum(level == "EMERGENCY" for level, _, _ in told) == (test_id == automatic), told
