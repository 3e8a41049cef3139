"""What audit records say of what was changed: before, after, and of what was refused."""

import asyncio
import json
import signal
from typing import Any

from schemas import subjects
from schemas.v1.alerts import AuditRecord
from schemas.v1.common import rfc3339
from services._runtime.clock import now_ms
from services.router.control import audited
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Side, others, side, stream_messages


async def records(server: NatsServer, action: str, count: int = 1) -> list[dict[str, Any]]:
    """Records of one action, once there are so many."""

    async def there() -> list[dict[str, Any]] | None:
        found = await stream_messages(server, "metrics", "AUDIT", subjects.audit("router"))
        mine = [r for r in (json.loads(m.data)["data"] for m in found) if r["action"] == action]
        return mine if len(mine) >= count else None

    return await eventually(there)


async def one(server: NatsServer, action: str) -> dict[str, Any]:
    (record,) = await records(server, action)
    return record


async def refused(router: Side, method: str, path: str, **options: Any) -> None:
    assert (await router.call(method, path, **options)).status_code >= 400


async def test_each_command_on_a_test_tells_what_it_found_and_what_it_left(nats_server: NatsServer) -> None:
    later = rfc3339(now_ms() + 3_600_000)
    async with others(nats_server), side(nats_server) as router:
        test_id = await router.start_test(traffic_split_percent=10)
        await router.call("PATCH", "/traffic-split", json={"traffic_split_percent": 25})
        await router.post("/pause")
        await refused(router, "POST", "/pause")
        await router.post("/resume")
        await refused(router, "POST", "/start", json={"model_a": "stable", "model_b": "canary"})
        await router.post("/rollback", {"at": later})
        await router.post("/stop", {"reason": "seen enough"})

        begun, again = await records(nats_server, "start", 2)
        assert "before" not in begun
        assert {**begun["after"], "config_hash": ""} == {
            "test_id": test_id, "status": "running", "version": 1, "traffic_split_percent": 10.0, "model_a": "stable",
            "model_b": "canary", "duration_minutes": 1440.0, "auto_rollback": True, "config_hash": "",
        }  # fmt: skip
        assert (begun["needs"], begun["changes"]) == ("operator", True)
        split = await one(nats_server, "traffic-split")
        assert split["before"] == {"test_id": test_id, "status": "running", "version": 1, "traffic_split_percent": 10.0}
        assert split["after"] == {"test_id": test_id, "status": "running", "version": 2, "traffic_split_percent": 25.0}
        paused, twice = await records(nats_server, "pause", 2)
        assert (paused["before"]["status"], paused["after"]["status"]) == ("running", "paused")
        assert (twice["status"], twice["before"]["status"]) == (409, "paused")
        assert "after" not in twice
        assert (again["status"], again["before"]["test_id"]) == (409, test_id)
        assert (await one(nats_server, "resume"))["after"]["status"] == "running"
        planned = await one(nats_server, "rollback")
        assert "rollback_at" not in planned["before"]
        assert planned["after"]["rollback_at"] == later
        stopped = await one(nats_server, "stop")
        assert stopped["before"]["status"] == "running"
        assert (stopped["after"]["status"], stopped["after"]["decision"]) == ("completed", "promote_b")
        assert "seen enough" in stopped["after"]["reason"]


async def test_models_and_the_switch_of_monitoring_without_what_is_secret(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        entry = {
            "name": "m", "engine": "openai", "base_url": "http://user:hidden-1@127.0.0.1:1/v1",
            "engine_args": {"headers": {"X-Key": "hidden-2"}},
        }  # fmt: skip
        await router.post("/models", entry)
        await refused(router, "POST", "/models", json=entry)
        await router.post("/monitoring/stop?check_interval_seconds=7")

        made, again = await records(nats_server, "models-register", 2)
        assert "before" not in made
        assert made["after"]["desired"] == "loaded"
        assert made["after"]["spec"] == {"engine": "openai", "base_url": "http://**********@127.0.0.1:1/v1"}
        assert again["status"] == 409
        assert again["before"]["generation"] == made["after"]["generation"]
        switched = await one(nats_server, "monitoring-stop")
        assert switched["before"] == {"monitoring_active": True, "check_interval_seconds": 30.0}
        assert switched["after"] == {"monitoring_active": False, "check_interval_seconds": 7.0}
        assert not any("hidden" in str(record) for record in (made, again))


async def test_what_was_answered_is_on_record_and_without_the_bus_nobody_waits_for_ever(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        await router.start_test()
        for percent in (20, 30, 40):
            reply = await router.call("PATCH", "/traffic-split", json={"traffic_split_percent": percent})
            assert reply.status_code == 200
            found = await stream_messages(nats_server, "metrics", "AUDIT", subjects.audit("router"))
            assert json.loads(found[-1].data)["data"]["after"]["traffic_split_percent"] == percent
        audit = router.control.parts.audit
        nats_server.kill(signal.SIGSTOP)
        try:
            made = AuditRecord(
                at_ms=1, actor="a", role="admin", action="x", source="bus", status=200, outcome="ok", request_id="r"
            )
            stored = [audit.record(made) for _ in range(10_001)]
            assert await asyncio.wait_for(stored[0], 20) is False, "the oldest went for the newest"
            done, _waiting = await asyncio.wait({stored[-1]}, timeout=0.2)
            assert not done
        finally:
            nats_server.kill(signal.SIGCONT)
        assert await asyncio.wait_for(stored[1], 20) is True


def test_what_is_too_large_is_replaced_by_its_size() -> None:
    small, large = {"a": "x"}, {"a": "x" * 5000}
    assert audited.bounded(None) is None
    assert audited.bounded(small) == small
    assert audited.bounded(large) == {"left_out_bytes": 5009}
