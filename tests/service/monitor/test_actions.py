"""Ramps, pauses, steps down and retries on a real nats-server; the router's rules carry out what the monitor asks for."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from schemas.v1.common import AlertLevel, TestStatus
from schemas.v1.experiment import Experiment
from schemas.v1.record import RecordReply
from schemas.v1.windows import Cell
from services._runtime.clock import now_ms
from services.monitor.settings import MonitorSettings
from services.router.domain.commands import Approve
from tests.harness import NatsServer, eventually
from tests.service.monitor.rig import Rig, app, rig
from tests.service.monitor.router_side import RouterSide
from tests.service.monitor.test_monitor import replica
from tests.unit.monitor.rollout import ramped
from tests.unit.monitor.synthetic import TEST, Arm, Traffic

STEPPING: dict[str, Any] = {
    "guardrails": [{"metric": "error_rate", "margin_percent": 300, "action": "step_down"}],
    "retry": {"max_retries": 1, "backoff_minutes": 0.05},
    "failure_criteria": {"max_error_rate_percent": 90}, "thresholds": {"critical_error_rate": 90},
}  # fmt: skip


@pytest.fixture
async def bench(nats_server: NatsServer) -> AsyncIterator[Rig]:
    async with rig(nats_server) as made:
        yield made


def ramping(*shares_bp: int, **fields: Any) -> Experiment:
    now = now_ms()
    times = {"started_ms": now, "created_ms": now, "ends_ms": now + 86_400_000}
    test = ramped(*shares_bp, soak_minutes=0, min_requests=5, **fields, **times)
    assert test.ramp is not None
    test.ramp.since_ms = now
    return test


class AtTheSplit(Traffic):
    """Traffic at the split of the moment; the canary fails from a share on."""

    router: RouterSide
    bad_from_bp: int

    def cells(self, second: int) -> list[Cell]:
        self.share_bp = self.router.test.share_bp
        self.b = Arm(errors=0.6 if self.share_bp >= self.bad_from_bp else 0.02)
        return super().cells(second)


async def fed(bench: Rig, router: RouterSide, until: Callable[[], Any], *, bad_from_bp: int = 20_000) -> None:
    traffic = AtTheSplit(bench.second + 1, per_second=60, a=Arm(errors=0.02))
    traffic.router, traffic.bad_from_bp = router, bad_from_bp
    await bench.feed(traffic, until)


def asked(router: RouterSide) -> list[tuple[str, int]]:
    """(action, version it was decided on), each once, in order."""
    return list(dict.fromkeys((event.data.action, event.data.order.decided_on) for event in router.asked))


async def test_up_down_up_again_and_out_and_a_replay_agrees(bench: Rig) -> None:
    router = RouterSide(bench, ramping(1000, 3000, **STEPPING))
    await router.start()
    async with app(bench.server):
        await fed(bench, router, lambda: not router.test.live, bad_from_bp=3000)
        for _ in range(3):
            await bench.publish([])
    assert [action for action, _ in asked(router)] == ["advance", "step_down", "retry"]
    assert {event.id for event in router.asked} == {f"{TEST}.{version}.{action}" for action, version in asked(router)}
    assert router.test.status is TestStatus.ROLLED_BACK
    assert router.test.result is not None
    recorded = router.test.result.verdict
    assert recorded is not None
    assert recorded.rule == "error_rate_increase"
    assert "2nd failure after 1 retry" in recorded.reason
    stepped = [alert for alert in await bench.alerts() if alert.title.startswith("Step down")]
    assert [alert.level for alert in stepped] == [AlertLevel.WARNING]
    assert "retry 1 of 1 in 0.05 minutes" in stepped[0].message
    async with app(bench.server):  # another process than the one that decided

        async def ask() -> RecordReply | None:
            try:
                headers, body = await bench.ask(
                    "record", {"test_id": TEST, "until": recorded.details["windows_seq"]}, timeout=60
                )
            except Exception:
                return None
            assert "Cypria-Error" not in headers, body
            return RecordReply.model_validate(body)

        reply = await eventually(ask, every_s=0.1)
    assert reply.state == "complete"
    assert reply.verdict == recorded
    kinds = [change.kind for change in reply.changes]
    assert kinds == [
        "started", "ramped", "stepped_down", "split_changed", "retried", "rollback_requested", "rolled_back",
    ]  # fmt: skip
    rules = {change.kind: change.rule for change in reply.changes}
    assert (rules["ramped"], rules["stepped_down"], rules["retried"]) == ("ramp", "error_rate_increase", "retry")
    assert [change.share_bp for change in reply.changes][:5] == [1000, 3000, 3000, 1000, 3000]


async def test_an_approval_is_asked_for_once_and_its_step_taken(bench: Rig) -> None:
    router = RouterSide(bench, ramping(1000, 5000, gate="manual"))
    await router.start()
    async with app(bench.server):

        async def asked_for() -> bool:
            return any(alert.rule == "approval" for alert in await bench.alerts())

        await fed(bench, router, asked_for)
        _, status = await bench.ask("status", {"test_id": TEST})
        assert "waits for approval" in status["ramp"]["waits_for"]
        assert router.asked == []
        await router.command(Approve(TEST, actor="ops"))
        await fed(bench, router, lambda: router.test.share_bp == 5000)
    (alert,) = [alert for alert in await bench.alerts() if alert.rule == "approval"]
    assert alert.level is AlertLevel.INFO
    assert "`cypria approve`" in alert.message
    assert [action for action, _ in asked(router)] == ["advance"]


async def test_a_successor_goes_on_asking_in_the_same_words(bench: Rig) -> None:
    router = RouterSide(bench, ramping(1000, 5000))
    router.deaf = True
    await router.start()
    quick = MonitorSettings(checkpoint_s=0.5)
    async with replica(bench.server, "one", quick, kill=True):
        await fed(bench, router, lambda: len(router.asked) >= 2)
    first = router.asked[0]
    sent = len(router.asked)
    async with replica(bench.server, "two", quick):
        await fed(bench, router, lambda: len(router.asked) > sent + 1)
        assert {event.model_dump_json() for event in router.asked} == {first.model_dump_json()}
        # Another version makes it another decision.
        router.deaf = False
        router.test = router.test.model_copy(update={"version": router.test.version + 4})
        await bench.put(router.test)
        await fed(bench, router, lambda: router.test.share_bp == 5000)
    assert asked(router) == [("advance", 3), ("advance", 7)]
    stored = [event["id"] for event in await bench.stored("EVENTS") if event["type"] == "cypria.verdict.action.v1"]
    assert stored == [f"{TEST}.3.advance", f"{TEST}.7.advance"]


async def test_stopped_monitoring_asks_for_nothing(bench: Rig) -> None:
    await bench.set_monitoring(active=False)
    router = RouterSide(bench, ramping(1000, 5000))
    await router.start()
    async with app(bench.server):

        async def due() -> bool:
            reply = await bench.ask("status", {"test_id": TEST})
            return bool((reply[1].get("ramp") or {}).get("due"))

        await fed(bench, router, lambda: bench.leases)
        await fed(bench, router, due)
        leases = len(bench.leases)
        await fed(bench, router, lambda: len(bench.leases) > leases + 1)
        assert router.asked == []
        await bench.set_monitoring(active=True)
        await fed(bench, router, lambda: router.test.share_bp == 5000)
