"""Starts and rollbacks at a time: once across replicas, and across restarts."""

import json

import pytest

from schemas.v1.common import rfc3339
from services._runtime.clock import now_ms
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import WallClock, others, side, stream_messages

HOUR_MS = 3_600_000


def soon(ms: int) -> str:
    return rfc3339(now_ms() + ms)


async def kinds(server: NatsServer) -> list[str]:
    return [json.loads(m.data)["type"].removeprefix("cypria.").removesuffix(".v1") for m in await stream_messages(server, "router", "EVENTS", "cypria.event.test.*")]


async def ids(server: NatsServer) -> list[str]:
    return [json.loads(m.data)["id"] for m in await stream_messages(server, "router", "EVENTS", "cypria.event.test.*")]


async def test_a_scheduled_start_happens_once_with_two_sides_and_a_restart_in_between(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WallClock(monkeypatch)
    async with others(nats_server):
        async with side(nats_server) as one:
            reply = await one.post("/start", {"model_a": "stable", "model_b": "canary", "schedule": soon(HOUR_MS)})
            assert reply["status"] == "scheduled"
            status = await one.get("/status")
            assert (status["status"], status["elapsed_minutes"]) == ("scheduled", 0)
            assert status["starts_at"]
        async with side(nats_server) as two, side(nats_server) as three:
            both = (two, three)
            clock.ahead_ms = HOUR_MS
            found = [lambda s=s: s.control.experiments.by_id(reply["test_id"]) for s in both]
            await eventually(lambda: all((e := f()) and e.status == "running" and not e.outbox for f in found))
            assert found[0]().version == 2
        assert (await ids(nats_server)) == [f"{reply['test_id']}.1.1", f"{reply['test_id']}.2.1"]


async def test_a_scheduled_start_can_be_stopped_before(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router:
        test_id = await router.start_test(schedule=soon(HOUR_MS))
        result = await router.post("/stop")
        assert (result["test_id"], result["status"]) == (test_id, "completed")
        reply = await router.call("POST", "/start", json={"model_a": "stable", "model_b": "canary", "schedule": "x"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (422, "schedule")


async def test_a_scheduled_rollback_survives_a_restart_and_happens_once(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WallClock(monkeypatch)
    async with others(nats_server):
        async with side(nats_server) as one:
            test_id = await one.start_test()
            assert await one.post("/rollback", {"at": soon(2 * HOUR_MS)}) == {"status": "scheduled", "test_id": test_id}
            # A later word takes the place of the one before.
            reply = await one.post("/rollback", {"at": soon(HOUR_MS), "reason": "maintenance"})
            assert reply["status"] == "scheduled"
            assert (await one.get("/status"))["rollback_at"]
            late = await one.call("POST", "/rollback", json={"at": soon(2 * 86_400_000)})
            assert (late.status_code, late.json()["error"]["param"]) == (422, "at")
        async with side(nats_server) as two, side(nats_server) as three:
            clock.ahead_ms = HOUR_MS
            for router in (two, three):
                ended = await router.control.experiments.ended(test_id, 60)
                assert ended is not None
                assert (ended.status, ended.rollback_at) == ("rolled_back", None)
                assert ended.result.reason == "maintenance"
            await eventually(lambda: not two.control.experiments.by_id(test_id).outbox)
        assert await kinds(nats_server) == [
            "test.started", "test.rollback_scheduled", "test.rollback_scheduled", "test.rolled_back",
        ]  # fmt: skip
        made = await ids(nats_server)
        assert len(set(made)) == len(made)


async def test_a_scheduled_rollback_may_be_gradual(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock(monkeypatch)
    async with others(nats_server), side(nats_server, step_s=0.2) as router:
        test_id = await router.start_test(traffic_split_percent=4)
        await router.post("/rollback", {"at": soon(HOUR_MS), "speed": "gradual"})
        clock.ahead_ms = HOUR_MS
        assert await router.control.experiments.ended(test_id, 60)
        await eventually(lambda: not router.control.experiments.by_id(test_id).outbox)
        assert (await kinds(nats_server)).count("test.split_changed") == 2
