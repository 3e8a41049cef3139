"""NATS or the monitor away for long, on the whole system; to the second it is in tests/unit/router/test_lease.py."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services._cli.load import Load, Tally, drive
from services._runtime.clock import monotonic
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import eventually
from tests.system import System, running

RATE = 20
CHECK_S = 2.0
pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.fixture
async def start(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    stable, canary = FakeOpenAI(), FakeOpenAI()
    await stable.start()
    await canary.start()

    def started(**sections: Any) -> Any:
        config = engine_config(stable, canary, monitoring={"check_interval_seconds": CHECK_S}, **sections)
        return running(tmp_path_factory.mktemp("away"), config)

    yield started
    await stable.stop()
    await canary.stop()


async def chat(system: System, model: str = "stable") -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    return await system.client.post("/v1/chat/completions", json=body)


async def served_by(system: System, model: str) -> set[str]:
    """Variants that twenty requests get."""
    found = await asyncio.gather(*(chat(system, model) for _ in range(20)))
    assert {response.status_code for response in found} == {200}
    return {response.headers["x-ab-test-variant"] for response in found}


async def test_nats_may_freeze_for_one_eight_and_thirty_seconds(start: Any) -> None:
    async with start() as system:
        test_id = await system.start_test(traffic_split_percent=20)
        tally, done = Tally(), asyncio.Event()
        load = Load(system.url, system.key, "stable", RATE, stream=True)
        traffic = asyncio.create_task(drive(load, seconds=500, tally=tally, stop=done.is_set))
        failed = {}
        for seconds in (1, 8, 30):
            await asyncio.sleep(2)
            before = tally.failed
            pid = system.signal("nats-server", signal.SIGSTOP)
            thawed = monotonic() + seconds
            if seconds > 5:
                await eventually(lambda: misses_the_bus(system))
            if seconds > 10:
                refused = await chat(system)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
            await asyncio.sleep(max(0.0, thawed - monotonic()))
            os.kill(pid, signal.SIGCONT)
            await eventually(system.ready)
            await asyncio.sleep(1)
            failed[seconds] = tally.failed - before
        assert failed[1] == 0, tally.by_status
        done.set()
        await traffic
        refused_here = 1  # the one above, which the generator did not send

        async def settled() -> bool:
            metrics = (await system.status(test_id))["metrics"] or {}
            counted = sum(figures["request_count"] for figures in metrics.values())
            return bool(counted == sum(n for variant, n in tally.by_variant.items() if variant != "-") + refused_here)

        await eventually(settled, every_s=0.3)
        assert (await system.status(test_id))["status"] == "running"
        alerts = (await system.api("GET", "monitoring/alerts?limit=1000"))["alerts"]
        assert not [alert for alert in alerts if alert["level"] == "EMERGENCY"]


@pytest.mark.parametrize("way", ["frozen", "killed"])
async def test_an_unwatched_canary_serves_nothing_and_is_taken_out(start: Any, way: str) -> None:
    """Two tests: one that may be rolled back, and one that may not, whose share returns with its monitor."""
    async with start() as system:
        ours = await system.start_test(traffic_split_percent=50)
        kept = await system.start_test(
            model_a="canary", model_b="stable", traffic_split_percent=50, auto_rollback=False
        )
        assert await served_by(system, "stable") == {"a", "b"}
        watched = asyncio.Event()
        death = asyncio.create_task(unwatched(system, way, watched))
        for test_id in (ours, kept):
            await eventually(lambda test_id=test_id: lapsed(system, test_id))
        assert await served_by(system, "stable") == {"a"}
        assert await served_by(system, "canary") == {"a"}

        async def ended() -> bool:
            return (await system.status(ours))["status"] == "rolled_back"

        await eventually(ended)
        result = await system.api("GET", f"tests/{ours}")
        assert "no monitor has watched the test" in result["reason"]
        assert (await system.status(kept))["status"] == "running"
        watched.set()
        await death

        async def shared() -> bool:
            return await served_by(system, "canary") == {"a", "b"}

        await eventually(shared, every_s=0.2)
        assert (await system.status(kept))["status"] == "running"
        alerts = (await system.api("GET", "monitoring/alerts?limit=1000"))["alerts"]
        assert len([alert for alert in alerts if alert["level"] == "EMERGENCY"]) == 1


async def test_with_the_policy_hold_an_unwatched_canary_goes_on(start: Any) -> None:
    async with start(policies={"on_monitor_down": "hold"}) as system:
        test_id = await system.start_test(traffic_split_percent=50)
        pid = system.signal("monitor", signal.SIGSTOP)
        await asyncio.sleep(15 + 5 * CHECK_S + 3)
        assert await served_by(system, "stable") == {"a", "b"}
        assert (await system.status(test_id))["status"] == "running"
        os.kill(pid, signal.SIGCONT)


async def misses_the_bus(system: System) -> bool:
    ready = await system.client.get("/ready")
    return ready.status_code == 503 and "bus" in ready.text


async def lapsed(system: System, test_id: str) -> bool:
    return bool((await system.status(test_id))["effective_split_percent"] == 0)


async def unwatched(system: System, way: str, until: asyncio.Event) -> None:
    """Keep the monitor from its work, by one long stop or by killing it whenever it is there."""
    if way == "frozen":
        pid = system.signal("monitor", signal.SIGSTOP)
        await until.wait()
        os.kill(pid, signal.SIGCONT)
        return
    while not until.is_set():
        for pid in system.pids("monitor"):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
