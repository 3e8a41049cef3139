"""A rollout as operators see it: up a ramp, an approval, down by a guardrail, back by itself, out in steps."""

import asyncio
from typing import Any

from services._cli.load import Load, Tally, drive
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import eventually
from tests.system import System

RAMP = {
    "soak_minutes": 0.05, "min_requests": 30,
    "steps": [{"traffic_split_percent": 20, "gate": "manual"}, {"traffic_split_percent": 50}],
}  # fmt: skip


async def test_a_canary_goes_up_the_ramp_down_when_it_is_slow_and_back_when_it_has_rested(
    system: System, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    _, canary = upstreams
    for upstream in upstreams:
        upstream.behaviour.latency_s = 0.02
    test_id = await system.start_test(
        ramp=RAMP, guardrails=[{"metric": "latency", "margin_percent": 20, "action": "step_down"}],
        retry={"max_retries": 2, "backoff_minutes": 0.1}, test_duration_minutes=60,
    )  # fmt: skip
    tally, done = Tally(), asyncio.Event()
    load = asyncio.create_task(
        drive(Load(system.url, system.key, "stable", 60), seconds=600, tally=tally, stop=done.is_set)
    )

    async def status() -> dict[str, Any]:
        return await system.status(test_id)

    async def at(percent: float) -> dict[str, Any] | None:
        now = await status()
        return now if now["traffic_split_percent"] == percent and now["status"] == "running" else None

    async def asks() -> bool:
        return "approval" in ((await status())["waiting_for"] or "")

    try:
        await eventually(asks, 120, 0.3)
        assert (await status())["traffic_split_percent"] == 20
        await system.api("POST", "approve", {"test_id": test_id})
        top = await eventually(lambda: at(50), 120, 0.3)
        assert (top["ramp"]["step"], top["retry_at"]) == (2, None)

        canary.behaviour.latency_s = 0.2
        down = await eventually(lambda: at(20), 120, 0.3)
        assert down["ramp"]["step"] == 1
        assert down["retry_at"] is not None
        canary.behaviour.latency_s = 0.02
        back = await eventually(lambda: at(50), 120, 0.3)
        assert (back["ramp"]["step"], back["retry_at"]) == (2, None)

        await system.api("POST", "rollback", {"test_id": test_id, "speed": "gradual"})
        assert (await status())["status"] == "rolling_back"
        shares: list[float] = []

        async def smaller() -> bool:
            shares.append((await status())["traffic_split_percent"])
            return shares[-1] < 50

        await eventually(smaller, 120, 0.2)
        await system.api("POST", "rollback", {"test_id": test_id})
    finally:
        done.set()
        await load
    assert tally.failed == 0

    async def recorded() -> list[str]:
        report = await system.api("GET", f"tests/{test_id}/report")
        kinds = [change["kind"] for change in report["changes"] if change["kind"] != "rollback_requested"]
        return kinds if "rolled_back" in kinds else []

    assert (await eventually(recorded, every_s=0.3))[:8] == [
        "started", "approved", "ramped", "stepped_down", "split_changed", "retried", "rolling_back", "split_changed",
    ]  # fmt: skip

    async def told() -> bool:
        alerts = await system.api("GET", f"monitoring/alerts?test_id={test_id}")
        titles = {alert["title"] for alert in alerts["alerts"]}
        return {"Traffic split stepped down", "Traffic split raised by the ramp", "Gradual rollback begun"} <= titles

    await eventually(told, every_s=0.3)
