"""What takes a canary out without any other process: breaker, block and lapsed lease."""

import asyncio
import json

import pytest

from schemas.v1.common import Outcome
from services.router.domain import breaker as breaker_rules
from services.router.domain import lease as lease_rules
from tests.harness import NatsServer, eventually
from tests.service.router.rig import Rig, bearer, running


async def status(rig: Rig, test_id: str) -> str:
    response = await rig.client.get(f"/v1/ab-testing/tests/{test_id}", headers=bearer("admin"))
    return str(response.json()["status"])


async def variants(rig: Rig, count: int) -> list[str | None]:
    """Headers of so many requests, each of a unit of its own."""
    responses = await asyncio.gather(*(rig.post() for _ in range(count)))
    assert {response.status_code for response in responses} == {200}
    return [response.headers.get("x-ab-test-variant") for response in responses]


async def alerts(rig: Rig, rule: str = "") -> list[dict[str, object]]:
    """Every alert, or those of one rule."""
    nc = await rig.nats.connect("alerts")
    try:
        js = nc.jetstream()
        last = (await js.stream_info("ALERTS")).state.last_seq
        found = [json.loads((await js.get_msg("ALERTS", n)).data or b"")["data"] for n in range(1, last + 1)]
        return [alert for alert in found if not rule or alert["rule"] == rule]
    finally:
        await nc.close()


async def test_a_canary_that_fails_everything_is_rolled_back_and_no_user_sees_it(rig: Rig) -> None:
    await rig.worker("stable")
    canary = await rig.worker("canary", mode="status:500")
    test_id = await rig.start_test(traffic_split_percent=20, tags={"team": "ml"})
    for _ in range(100):
        await variants(rig, 10)
        if await status(rig, test_id) == "rolled_back":
            break
    assert await status(rig, test_id) == "rolled_back"
    seen = len(canary.bodies)
    assert await variants(rig, 50) == [None] * 50
    assert len(canary.bodies) == seen
    facts = await rig.facts()
    charged = [fact for fact in facts if fact.variant == "b"]
    assert len(charged) == seen
    assert all(fact.fallback and fact.outcome == Outcome.ERROR_BEFORE_FIRST_TOKEN for fact in charged)
    (told,) = await eventually(lambda: alerts(rig, "consecutive_errors"))
    assert "'stable' serves everything and the test is being rolled back" in told["message"]
    assert told["tags"] == {"team": "ml", "model_a": "stable", "model_b": "canary"}


async def test_without_auto_rollback_the_breaker_only_holds_the_canary_at_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker_rules, "PROBE_EVERY_S", 600.0)
    await rig.worker("stable")
    canary = await rig.worker("canary", mode="status:500")
    test_id = await rig.start_test(traffic_split_percent=50, auto_rollback=False)
    for _ in range(50):
        await variants(rig, 10)
        if rig.path.arms.open_breakers():
            break
    seen = len(canary.bodies)
    assert set(await variants(rig, 20)) == {"a"}
    assert len(canary.bodies) == seen
    assert await status(rig, test_id) == "running"
    live = rig.router.control.experiments.by_id(test_id)  # type: ignore[union-attr]
    assert live
    assert rig.path.effective_share_bp(live) == 0
    held = [fact for fact in await rig.facts() if fact.share_bp == 0]
    assert len(held) >= 20
    assert {fact.variant for fact in held} == {"a"}
    (raised,) = await eventually(lambda: alerts(rig, "consecutive_errors"))
    assert raised["level"] == "CRITICAL"  # an emergency of a test means its rollback
    assert "the test goes on without the canary until it answers again" in raised["message"]


async def test_a_blocked_canary_gets_nothing_at_once(rig: Rig) -> None:
    await rig.worker("stable")
    canary = await rig.worker("canary")
    test_id = await rig.start_test(traffic_split_percent=100)
    assert set(await variants(rig, 5)) == {"b"}
    rig.path.block(test_id)
    assert set(await variants(rig, 5)) == {"a"}
    assert len(canary.bodies) == 5


async def test_a_lapsed_lease_takes_the_share_and_a_renewed_one_gives_it_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    test_id = await rig.start_test(traffic_split_percent=100)
    assert set(await variants(rig, 3)) == {"b"}
    live = rig.router.control.experiments.by_id(test_id)  # type: ignore[union-attr]
    assert live
    monkeypatch.setattr(lease_rules, "LEASE_S", 0.2)
    await eventually(lambda: rig.path.effective_share_bp(live) == 0)
    assert set(await variants(rig, 3)) == {"a"}
    monkeypatch.setattr(lease_rules, "LEASE_S", 15.0)
    monitor = await rig.nats.connect("monitor")
    try:
        message = {"test_id": test_id, "counter": 1, "holder": "m1"}
        await monitor.publish(f"cypria.lease.{test_id}", json.dumps(message).encode())
        await eventually(lambda: rig.path.effective_share_bp(live) == 10_000)
        assert set(await variants(rig, 3)) == {"b"}
    finally:
        await monitor.close()


async def test_a_monitor_that_stays_away_for_five_checks_ends_the_test(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_rules, "LEASE_S", 0.3)
    async with running(nats_server, monitoring={"check_interval_seconds": 0.2}) as rig:
        await rig.worker("stable")
        await rig.worker("canary")
        test_id = await rig.start_test(traffic_split_percent=50)

        async def ended() -> bool:
            return await status(rig, test_id) == "rolled_back"

        await eventually(ended, every_s=0.1)
        await eventually(lambda: alerts(rig, "monitor_down"))


async def test_with_the_policy_hold_a_lapsed_lease_changes_nothing(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_rules, "LEASE_S", 0.1)
    async with running(
        nats_server, policies={"on_monitor_down": "hold"}, monitoring={"check_interval_seconds": 0.1}
    ) as rig:
        await rig.worker("stable")
        await rig.worker("canary")
        test_id = await rig.start_test(traffic_split_percent=100)
        guard = await eventually(lambda: rig.path.arms._guards.get(test_id))
        await eventually(lambda: guard.lease.lapsed_for(asyncio.get_running_loop().time()) > 1)
        assert set(await variants(rig, 5)) == {"b"}
        assert await status(rig, test_id) == "running"
        monitor, counter = await rig.nats.connect("monitor"), 0

        async def said() -> list[tuple[object, object]]:
            nonlocal counter
            counter += 1
            message = {"test_id": test_id, "counter": counter, "holder": "m1"}
            await monitor.publish(f"cypria.lease.{test_id}", json.dumps(message).encode())
            found = [alert for alert in await alerts(rig) if alert["incident"] == f"{test_id}.unwatched"]
            return [(one["level"], one["resolved"]) for one in found][:2]

        async def both() -> bool:
            return await said() == [("WARNING", False), ("INFO", True)]

        await eventually(both, every_s=0.02)
        await monitor.close()


async def test_switched_off_it_is_a_pure_pass_through(nats_server: NatsServer) -> None:
    async with running(nats_server, ab_testing={"enabled": False}) as rig:
        await rig.worker("stable")
        response = await rig.client.post(
            "/v1/ab-testing/start", json={"model_a": "stable", "model_b": "canary"}, headers=bearer("admin")
        )
        assert response.status_code == 409
        assert await variants(rig, 3) == [None] * 3


async def test_the_stable_models_load_is_its_heartbeats_and_its_latency_the_answers_of_its_arm(rig: Rig) -> None:
    for model in ("stable", "canary"):
        worker = await rig.worker(model)
        worker.load, worker.queued = 3, 2
    await eventually(lambda: rig.path.load("stable").queued == 2)
    await rig.start_test(traffic_split_percent=50)
    seen = await variants(rig, 40)
    await rig.post(mode="status:500")
    slots = {model: gauge._slots for model, gauge in rig.path.loads._gauges.items()}
    assert 0 < sum(slot.answers for slot in slots["stable"]) == seen.count("a") < 40
    assert sum(slot.answers for slot in slots["canary"]) == 0
    assert 0 < sum(slot.running for slot in slots["stable"]) <= 3 * sum(slot.samples for slot in slots["stable"])
    found = rig.path.load("stable")
    assert (found.workers, found.capacity) == (1, 8)
    assert rig.path.load("nobody").workers == 0
