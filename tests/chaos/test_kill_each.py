"""kill -9 of every part under load, at moments drawn from a seed: totals stay exact, nothing happens twice."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator

import pytest

from services._cli.load import Load, Tally, drive
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import eventually
from tests.system import System, running

SEED = int(os.environ.get("CHAOS_SEED", "20"))
VICTIMS = ("metrics", "monitor", "alerts", "inference", "nats-server")
RATE = 30


@pytest.fixture
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    stable, canary = FakeOpenAI(), FakeOpenAI()
    await stable.start()
    await canary.start()
    config = engine_config(stable, canary, processes={"inference": 2})
    async with running(tmp_path_factory.mktemp("chaos"), config) as system:
        yield system
    await stable.stop()
    await canary.stop()


async def back(system: System, service: str, count: int, gone: int) -> bool:
    pids = system.pids(service)
    return len(pids) >= count and gone not in pids and await system.ready()


async def exact(system: System, test_id: str, tally: Tally) -> bool:
    metrics = (await system.status(test_id))["metrics"] or {}
    return {name[-1]: figures["request_count"] for name, figures in metrics.items()} == {
        variant: count for variant, count in tally.by_variant.items() if variant != "-"
    }


@pytest.mark.timeout(400)
async def test_totals_stay_exact_through_every_death(system: System) -> None:
    rng = random.Random(SEED)
    test_id = await system.start_test(traffic_split_percent=20)
    tally = Tally()
    done = asyncio.Event()
    load = asyncio.create_task(
        drive(Load(system.url, system.key, "stable", RATE, stream=True), seconds=240, tally=tally, stop=done.is_set)
    )
    for victim in rng.sample(VICTIMS, len(VICTIMS)):
        await asyncio.sleep(rng.uniform(0.5, 2.5))  # the moment of death is the point
        count = len(system.pids(victim))
        gone = system.signal(victim, signal.SIGKILL, rng.randrange(count))
        await eventually(lambda v=victim, c=count, g=gone: back(system, v, c, g), 40, 0.1)
    await asyncio.sleep(1)
    done.set()
    await load
    await eventually(lambda: exact(system, test_id, tally), 40, 0.3)
    assert (await system.status(test_id))["status"] == "running"
    alerts = (await system.api("GET", "monitoring/alerts?limit=1000"))["alerts"]
    ids = [alert["id"] for alert in alerts]
    assert len(ids) == len(set(ids))
    assert not [alert for alert in alerts if alert["level"] == "EMERGENCY"]
    assert tally.failed <= RATE * 3, tally.by_status


@pytest.mark.timeout(400)
async def test_a_killed_router_loses_at_most_one_flush_interval(system: System) -> None:
    test_id = await system.start_test(traffic_split_percent=20)
    tally = await drive(Load(system.url, system.key, "stable", 100), requests=300)
    gone = system.signal("router", signal.SIGKILL)
    await eventually(lambda: back(system, "router", 1, gone), 40, 0.1)
    more = await drive(Load(system.url, system.key, "stable", 100), requests=100)
    served = sum(tally.by_variant.values()) + sum(more.by_variant.values())

    async def settled() -> int:
        metrics = (await system.status(test_id))["metrics"] or {}
        total = sum(figures["request_count"] for figures in metrics.values())
        # at 100 requests/s one flush interval of 0.1 s holds about 10 of them; twice that is the slack of the clock
        return total if served - 20 <= total <= served else 0

    assert await eventually(settled, 30, 0.3)
    assert (await system.status(test_id))["status"] == "running"


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_every_part_may_freeze_for_twenty_seconds(system: System) -> None:
    test_id = await system.start_test(traffic_split_percent=20)
    tally = Tally()
    done = asyncio.Event()
    load = asyncio.create_task(
        drive(Load(system.url, system.key, "stable", RATE), seconds=800, tally=tally, stop=done.is_set)
    )
    for victim in VICTIMS:
        frozen = system.signal(victim, signal.SIGSTOP)
        await asyncio.sleep(20)
        os.kill(frozen, signal.SIGCONT)
        await eventually(system.ready, 40, 0.1)
    done.set()
    await load
    await eventually(lambda: exact(system, test_id, tally), 60, 0.3)
    alerts = (await system.api("GET", "monitoring/alerts?limit=1000"))["alerts"]
    assert len({alert["id"] for alert in alerts}) == len(alerts)
