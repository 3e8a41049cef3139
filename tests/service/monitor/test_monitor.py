"""The monitor on a real nats-server: windows in, leases, alerts, rollbacks and verdicts out."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas import subjects
from schemas.v1.common import AlertLevel, TestStatus
from schemas.v1.experiment import StopRequest
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services._runtime.server import die_with_parent
from services.monitor.settings import MonitorSettings
from services.monitor.watcher import Watcher
from tests.harness import NatsServer, environment, eventually
from tests.service.monitor.rig import Rig, app, dead, now_test, rig
from tests.unit.monitor.synthetic import TEST, Arm, Traffic

QUICK = MonitorSettings(checkpoint_s=0.5)


@pytest.fixture
async def bench(nats_server: NatsServer) -> AsyncIterator[Rig]:
    async with rig(nats_server) as made:
        yield made


@contextlib.asynccontextmanager
async def replica(
    server: NatsServer, name: str, settings: MonitorSettings = QUICK, *, kill: bool = False
) -> AsyncIterator[Watcher]:
    """A replica; with ``kill`` it ends without handing anything over."""
    bus = Bus(server.settings("monitor"), "monitor")
    await bus.connect()
    watcher = Watcher(bus, settings, name)
    await watcher.start()
    try:
        yield watcher
    finally:
        if kill:
            await bus.nc.close()
        await watcher.stop()
        await bus.close()


async def test_a_dead_canary_is_taken_out_once(bench: Rig) -> None:
    async with app(bench.server) as client:
        test = now_test()
        await bench.put(test)
        await bench.feed(dead(), lambda: len(bench.requests) >= 2)
        assert (await client.get("/ready")).status_code == 200
        request = bench.requests[0].data
        assert request.order.rule in {"error_rate_increase", "max_error_rate_percent"}
        assert request.order.verdict is not None
        assert request.order.verdict.tick is not None
        await bench.put(test.model_copy(update={"status": TestStatus.ROLLED_BACK, "version": 4}))
        headers, body = await eventually(lambda: _gone(bench))
        assert headers["Cypria-Error"] == "1"
        assert body["code"] == "test_not_found"
        metrics = (await client.get("/metrics")).text
    stored = [event for event in await bench.stored("EVENTS") if event["type"] == "cypria.rollback.requested.v1"]
    assert [event["id"] for event in stored] == [f"{TEST}.3.rollback"]
    assert {event.id for event in bench.requests} == {f"{TEST}.3.rollback"}
    emergencies = [alert for alert in await bench.alerts() if alert.level is AlertLevel.EMERGENCY]
    assert len(emergencies) == 1
    assert emergencies[0].rule == request.order.rule
    assert emergencies[0].numbers["log_e"] >= emergencies[0].numbers["limit"]
    assert "being taken out" in emergencies[0].message
    assert "cypria_monitor_rollback_requests_total" in metrics


async def _gone(bench: Rig) -> tuple[dict[str, str], dict[str, object]] | None:
    headers, body = await bench.ask("status", {"test_id": TEST})
    return (headers, body) if "Cypria-Error" in headers else None


@pytest.mark.parametrize("way", ["auto_rollback", "monitoring"])
async def test_switched_off_it_only_alerts(bench: Rig, way: str) -> None:
    if way == "monitoring":
        await bench.set_monitoring(active=False)
    await bench.put(now_test(auto_rollback=way != "auto_rollback"))
    async with app(bench.server):

        async def emergency() -> bool:
            return any(alert.level is AlertLevel.EMERGENCY for alert in await bench.alerts())

        await bench.feed(dead(), emergency)
        leases = len(bench.leases)
        await bench.feed(dead(), lambda: len(bench.leases) > leases + 1)
        assert bench.requests == []
        if way == "monitoring":
            assert (await bench.ask("monitoring", {}))[1]["monitoring_active"] is False
            await bench.set_monitoring(active=True)
            await bench.feed(dead(), lambda: bench.requests)


async def test_a_bad_stable_model_is_told_once_whoever_leads_and_resolved_when_it_is_well(
    bench: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.monitor.domain.stable.LATELY_S", 3)
    await bench.put(now_test())
    bad = Traffic(3, per_second=20, a=Arm(errors=0.9))

    async def told(*resolved: bool) -> bool:
        found = [alert for alert in await bench.alerts() if alert.rule == "stable_bad.errors"]
        return [alert.resolved for alert in found] == list(resolved)

    async with replica(bench.server, "one", kill=True):
        await bench.feed(bad, lambda: told(False))
    async with replica(bench.server, "two") as two:
        await bench.feed(bad, lambda: two.tracks and two.tracks[TEST].leads(asyncio.get_running_loop().time()))
        assert await told(False)
        await bench.feed(Traffic(4, per_second=20), lambda: told(False, True), every_s=0.25)
    first, last = [alert for alert in await bench.alerts() if alert.rule == "stable_bad.errors"]
    assert (first.level, first.incident) == (AlertLevel.CRITICAL, last.incident)
    assert last.level is AlertLevel.INFO
    assert bench.requests == []


async def test_the_lease_grows_while_windows_come_and_stops_without(bench: Rig) -> None:
    await bench.put(now_test())
    async with replica(bench.server, "one", MonitorSettings(blind_after_s=1.0)) as watcher:
        await bench.feed(Traffic(2), lambda: len(bench.leases) >= 3)
        counters = [lease.counter for lease in bench.leases]
        assert counters == sorted(set(counters))
        assert {lease.holder for lease in bench.leases} == {"one"}
        await eventually(lambda: not watcher.sighted())
        # The leader goes on beating, so the lead's counter tells that time has passed without a lease.
        track, sent = watcher.tracks[TEST], len(bench.leases)
        later = track.counter + 5
        await eventually(lambda: track.counter >= later)
        assert len(bench.leases) <= sent + 1


async def test_it_starts_from_nothing_in_the_middle_of_a_test(bench: Rig) -> None:
    await bench.put(now_test())
    traffic = Traffic(3, per_second=10)
    for second in range(40):
        await bench.publish(traffic.cells(second), second % subjects.PARTITIONS)
    await bench.publish([], 0)
    async with replica(bench.server, "one") as watcher:
        await eventually(lambda: TEST in watcher.tracks and watcher.tracks[TEST].ticker.sequence == bench.last)
        totals = watcher.tracks[TEST].as_of_now().totals
        assert {name: totals.of(name).done for name in "ab"} == traffic.requests


async def test_a_restart_goes_on_from_the_checkpoint(bench: Rig) -> None:
    await bench.put(now_test())
    traffic = Traffic(4, per_second=10, b=Arm(errors=0.1))
    async with replica(bench.server, "one", kill=True) as watcher:
        await bench.feed(traffic, lambda: TEST in watcher.tracks and watcher.tracks[TEST].evaluator.ticks >= 5)
        await bench.feed(traffic, lambda: "state." + TEST in watcher._state.mirror.entries)
    async with replica(bench.server, "two") as watcher:
        await bench.feed(traffic, lambda: TEST in watcher.tracks and watcher.tracks[TEST].joined)
        restored = watcher.tracks[TEST]
        await bench.feed(traffic, lambda: restored.leads(asyncio.get_running_loop().time()))
        ticks = restored.evaluator.ticks
        await bench.feed(traffic, lambda: restored.evaluator.ticks >= ticks + 2)
        await eventually(lambda: restored.ticker.sequence == bench.last)
        resumed = restored.as_of_now()
    assert {name: resumed.totals.of(name).done for name in "ab"} == traffic.requests
    async with replica(bench.server, "three") as fresh:
        fresh._state.checkpoint = lambda _test_id: None  # type: ignore[method-assign]
        await eventually(lambda: TEST in fresh.tracks and fresh.tracks[TEST].ticker.sequence == bench.last)
        again = fresh.tracks[TEST].as_of_now()
    assert [check.log_e() for check in again.checks] == [check.log_e() for check in resumed.checks]
    assert again.to_dict() == resumed.to_dict()


async def test_two_replicas_one_acts_and_the_other_takes_over(bench: Rig) -> None:
    await bench.put(now_test())
    healthy = Traffic(5)
    async with replica(bench.server, "two") as two:
        async with replica(bench.server, "one", kill=True) as one:
            await bench.feed(healthy, lambda: len(bench.leases) >= 2 and all(TEST in w.tracks for w in (one, two)))
            leader, other = (one, two) if bench.leases[0].holder == "one" else (two, one)
            await bench.feed(healthy, lambda: other.tracks[TEST].joined)
            assert {lease.holder for lease in bench.leases} == {leader.replica}
        # "one" is gone without a word: whoever led, "two" acts now.
        await bench.feed(healthy, lambda: bench.leases[-1].holder == "two")
        async with replica(bench.server, "three") as three:
            await bench.feed(healthy, lambda: TEST in three.tracks and three.tracks[TEST].joined)
            await bench.feed(dead(), lambda: three.tracks[TEST].evaluator.fired and len(bench.requests) >= 2)
            both = [w.tracks[TEST].evaluator for w in (two, three)]
            await eventually(lambda: all(w.tracks[TEST].ticker.sequence == bench.last for w in (two, three)))
            assert both[0].to_dict() == both[1].to_dict()
    assert len([e for e in await bench.stored("EVENTS") if "rollback" in e["type"]]) == 1
    assert len([a for a in await bench.alerts() if a.level is AlertLevel.EMERGENCY]) == 1


async def test_a_successor_repeats_the_request_under_its_own_id(bench: Rig) -> None:
    """The version may have moved on meanwhile: the id is that of the first decision."""
    test = now_test()
    await bench.put(test)
    async with replica(bench.server, "one", kill=True):
        await bench.feed(dead(), lambda: len(bench.requests) > 1)  # before it asks again it has noted what it asked for
    await bench.put(test.model_copy(update={"version": 9}))
    sent = len(bench.requests)
    async with replica(bench.server, "two"):
        await bench.feed(Traffic(6), lambda: len(bench.requests) > sent + 1)
    assert {event.id for event in bench.requests} == {f"{TEST}.3.rollback"}
    assert len([a for a in await bench.alerts() if a.level is AlertLevel.EMERGENCY]) == 1


async def test_final_verdict_waits_for_the_last_facts(bench: Rig) -> None:
    async with app(bench.server):
        test = now_test()
        await bench.put(test)
        traffic = Traffic(7)
        await bench.feed(traffic, lambda: _checked(bench))
        await bench.put(test.model_copy(update={"stopping": StopRequest(reason="r", actor="ops", at_ms=now_ms())}))
        flushed = {"r1-1": {0: bench.batches.get(0, 0) + 1}}
        asked = asyncio.create_task(
            bench.ask("final", {"test_id": TEST, "flushed": flushed, "deadline_ms": 20_000}, timeout=60)
        )
        other = asyncio.create_task(bench.ask("final", {"test_id": TEST, "flushed": flushed, "deadline_ms": 200}))
        headers, body = await other
        assert "Cypria-Error" not in headers
        assert body["complete"] is False
        assert body["verdict"]["details"]["incomplete"]
        assert not asked.done()
        await bench.publish(traffic.cells(999), 0)
        _, body = await asked
        assert body["complete"] is True
        assert body["verdict"]["decision"] == "inconclusive"
        assert "more requests" in body["verdict"]["reason"]
        assert {name: body["metrics_summary"][name]["request_count"] for name in "ab"} == traffic.requests
        _, status = await bench.ask("status", {"test_id": TEST})
        assert {g["name"] for g in status["guardrails"]} >= {"error_rate_increase", "latency_increase"}
        assert status["promotion"]["met"] is False
        _, health = await bench.ask("monitoring", {})
        assert health["monitoring_active"] is True
        assert health["leader_of"] == [TEST]
        assert health["checks_total"] > 0
        assert health["last_check"]


async def _checked(bench: Rig) -> bool:
    return bool(bench.leases) and (await bench.ask("monitoring", {}))[1]["checks_total"] > 0


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"test": 1}', b"\xff\xfe"])
async def test_bad_questions_get_an_answer(bench: Rig, body: bytes) -> None:
    async with app(bench.server) as client:
        await eventually(lambda: _ready(client))
        for name in ("status", "final"):
            reply = await bench.router.request(subjects.verdict(name), body, timeout=30)
            assert reply.headers["Cypria-Error"] == "1"
            assert b"bad_request" in reply.data


async def _ready(client: object) -> bool:
    return (await client.get("/ready")).status_code == 200  # type: ignore[attr-defined]


async def test_no_data_is_inconclusive(bench: Rig) -> None:
    async with app(bench.server):
        await bench.put(now_test())
        await bench.feed(Traffic(8, per_second=0), lambda: bench.leases)
        _, body = await bench.ask("final", {"test_id": TEST})
        assert body["verdict"]["decision"] == "inconclusive"
        assert body["verdict"]["rule"] == "no_data"


async def test_a_poisoned_window_stops_nothing(bench: Rig) -> None:
    await bench.put(now_test())
    async with replica(bench.server, "one") as watcher:
        await bench.feed(Traffic(9), lambda: TEST in watcher.tracks and watcher.tracks[TEST].joined)
        seq = await bench.publish([], 1, raw=b'{"partition": "no"}')
        await bench.feed(Traffic(9), lambda: watcher.sequence > seq)
        provision = await bench.server.connect("provision")
        js = provision.jetstream()
        info = await eventually(lambda: _messages(js, "DLQ"))
        assert info == 1
        await provision.close()


async def _messages(js: object, stream: str) -> int:
    return (await js.stream_info(stream)).state.messages  # type: ignore[attr-defined]


async def test_nats_dies_and_returns(bench: Rig) -> None:
    await bench.put(now_test())
    traffic = Traffic(10)
    async with replica(bench.server, "one") as watcher:
        await bench.feed(traffic, lambda: len(bench.leases) >= 1)
        bench.server.kill()
        bench.server.start()
        await eventually(lambda: bench.metrics.is_connected and bench.router.is_connected)
        sent = len(bench.leases)
        await eventually(lambda: _try_publish(bench, traffic))
        await bench.feed(traffic, lambda: len(bench.leases) > sent + 1)
        await bench.feed(dead(), lambda: bench.requests)
        assert watcher.tracks[TEST].evaluator.fired is not None


async def _try_publish(bench: Rig, traffic: Traffic) -> bool:
    try:
        await bench.publish(traffic.cells(1))
    except Exception:
        return False
    return True


async def test_the_process_is_killed_and_comes_back(bench: Rig, tmp_path: Path) -> None:
    """kill -9 of `python -m services.monitor` with a fired rollback pending: no second event, no second alert."""
    env = environment(
        CYPRIA_NATS__SERVERS=f'["{bench.server.url}"]', CYPRIA_NATS__USER="monitor",
        CYPRIA_NATS__PASSWORD=bench.server.embedded.passwords["monitor"], CYPRIA_DATA_DIR=str(tmp_path / "data"),
    )  # fmt: skip

    def spawn() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "services.monitor"], env=env, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )  # fmt: skip

    await bench.put(now_test())
    process = spawn()
    try:
        await bench.feed(dead(), lambda: bench.requests)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        sent = len(bench.requests)
        process = spawn()
        await bench.feed(dead(), lambda: len(bench.requests) > sent + 1)
        process.terminate()
        assert process.wait(60) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        process.wait(10)
    assert {event.id for event in bench.requests} == {f"{TEST}.3.rollback"}
    assert len([e for e in await bench.stored("EVENTS") if "rollback" in e["type"]]) == 1
    assert len([a for a in await bench.alerts() if a.level is AlertLevel.EMERGENCY]) == 1
