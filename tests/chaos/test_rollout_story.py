"""One test from its start to its end: ramp, warning, step down, retry, second failure, rollback, and after each of these
another service is killed. One consistent history must come of it.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services._cli.load import Load, Tally, drive
from tests.chaos.test_kill_each import back
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import eventually
from tests.system import System, running

BODY: dict[str, Any] = {
    "test_duration_minutes": 10,
    "ramp": {
        "soak_minutes": 0.05,
        "min_requests": 20,
        "steps": [{"traffic_split_percent": 10, "gate": "manual"}, {"traffic_split_percent": 30}],
    },
    # a wide margin, so that the warning (any increase at all) comes well before the step down
    "guardrails": [{"metric": "error_rate", "margin_percent": 300, "action": "step_down"}],
    "retry": {"max_retries": 1, "backoff_minutes": 0.1},
    # the guardrail is to decide, not an absolute limit or a router's own breaker
    "failure_criteria": {"max_error_rate_percent": 90, "max_consecutive_errors": 100_000},
}
LENIENT = {"thresholds": {"critical_error_rate": 90, "warning_error_rate": 90}}


@asynccontextmanager
async def traffic(system: System) -> AsyncIterator[Tally]:
    """Requests all the while; it ends with the block."""
    done, tally = asyncio.Event(), Tally()
    load = Load(system.url, system.key, "stable", 50, max_tokens=4)
    task = asyncio.create_task(drive(load, seconds=300, tally=tally, stop=done.is_set))
    try:
        yield tally
    finally:
        done.set()
        await task


class Story:
    """The test, and who has been killed."""

    def __init__(self, system: System, test_id: str) -> None:
        self.system = system
        self.test_id = test_id

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """The first status that has these fields."""

        async def reached() -> dict[str, Any] | None:
            status = await self.system.status(self.test_id)
            return status if all(status[name] == value for name, value in wanted.items()) else None

        return dict(await eventually(reached, 120, 0.1))

    async def kill(self, service: str) -> None:
        gone = self.system.signal(service, signal.SIGKILL)
        await eventually(lambda: back(self.system, service, 1, gone), 90, 0.1)

    async def report(self) -> dict[str, Any]:
        async def whole() -> dict[str, Any] | None:
            found = await self.system.api("GET", f"tests/{self.test_id}/report")
            ended = any(change["kind"] == "rolled_back" for change in found["changes"])
            return found if found["evidence"] == "complete" and ended else None

        return dict(await eventually(whole, 90, 0.3))


@pytest.mark.timeout(400)
async def test_one_history_of_a_rollout_through_the_death_of_every_part(tmp_path: Path) -> None:
    async with FakeOpenAI() as stable, FakeOpenAI() as canary:
        config = engine_config(stable, canary, monitoring=LENIENT)
        async with running(tmp_path, config) as system, traffic(system) as tally:
            story = Story(system, await system.start_test(**BODY))
            await story.until(traffic_split_percent=10.0, status="running")
            await story.kill("metrics")
            await system.api("POST", "approve", {"test_id": story.test_id})
            await story.until(traffic_split_percent=30.0)
            await story.kill("router")

            canary.behaviour.error_rate = 0.4
            stepped = await story.until(traffic_split_percent=10.0)
            assert stepped["status"] == "running"
            assert stepped["retry_at"]
            canary.behaviour.error_rate = 0.0
            await story.kill("monitor")
            await story.until(traffic_split_percent=30.0)
            await story.kill("nats-server")

            canary.behaviour.error_rate = 0.4
            await story.kill("inference")
            await story.until(status="rolled_back")
            await story.kill("alerts")
            report = await story.report()

            kinds = [change["kind"] for change in report["changes"]]
            order = ["started", "approved", "ramped", "stepped_down", "retried", "rollback_requested", "rolled_back"]
            assert [kind for kind in kinds if kind != "split_changed"] == order, kinds
            ids = [change["id"] for change in report["changes"]]
            assert len(ids) == len(set(ids))
            versions = [change["version"] for change in report["changes"] if change["kind"] != "rollback_requested"]
            assert versions == sorted(set(versions))
            assert report["result"]["verdict"]["rule"] == "error_rate_increase"

            async def alerted() -> list[dict[str, Any]] | None:
                answer = await system.client.get("/v1/ab-testing/monitoring/alerts?limit=1000")
                found = answer.json().get("alerts", [])  # an error while the service is not back yet
                mine = [alert for alert in found if alert["test_id"] == story.test_id]
                levels = {alert["level"] for alert in mine}
                return mine if {"INFO", "WARNING", "EMERGENCY"} <= levels else None

            alerts = await eventually(alerted, 90, 0.3)
            assert len({alert["id"] for alert in alerts}) == len(alerts)
            assert any(alert["rule"] == "error_rate_increase_warning" for alert in alerts)
            replay = await system.api("GET", f"tests/{story.test_id}/replay")
            assert replay["same"] is True, replay["differences"]
            assert tally.by_variant["b"] > 0
