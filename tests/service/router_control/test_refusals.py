"""Roles, limits and bad input: a clear error each, in one shape, naming the field."""

import asyncio
import json

import pytest

from schemas import subjects
from schemas.v1.alerts import AuditRecord
from services.router.adapters.nats_audit import AuditLog
from services.router.control import recorder
from services.router.control.base import BUS, Call
from services.router.control.verbs import BY_TOKEN
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import KEYS, ROLES, SECURITY, Side, others, side, stream_messages

NEEDS = {
    "viewer": [("GET", "/status"), ("GET", "/history"), ("GET", "/tests/x"), ("GET", "/models"), ("GET", "/events"),
               ("GET", "/models/meta-llama/x"), ("POST", "/models/plan"),
               ("GET", "/monitoring/status"), ("GET", "/monitoring/alerts")],
    "operator": [("POST", "/start"), ("POST", "/stop"), ("POST", "/rollback"), ("PATCH", "/traffic-split"),
                 ("POST", "/pause"), ("POST", "/resume"), ("POST", "/approve"), ("POST", "/monitoring/start"),
                 ("POST", "/monitoring/stop")],
    "admin": [("GET", "/config"), ("GET", "/audit"), ("POST", "/models/meta-llama/x/load"), ("POST", "/models/x/unload"),
              ("POST", "/models"), ("DELETE", "/models/meta-llama/x")],
}  # fmt: skip


def error(reply) -> dict:
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert reply.headers["x-request-id"]
    return body["error"]


async def test_each_endpoint_needs_its_role(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        for needed, endpoints in NEEDS.items():
            for method, path in endpoints:
                reply = await router.call(method, path, role=None)
                assert (reply.status_code, error(reply)["type"]) == (401, "authentication_error"), path
                assert reply.headers["www-authenticate"].startswith("Bearer")
                for role in ROLES[: ROLES.index(needed)]:
                    reply = await router.call(method, path, role=role)
                    assert (reply.status_code, error(reply)["type"]) == (403, "permission_error"), (path, role)
                    assert needed in error(reply)["message"]


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"model_a": "stable", "model_b": "stable"}, 400, "model_b", "compares two models"),
        ({"model_a": "stable", "model_b": "nobody"}, 404, "model_b", "'nobody' is unknown"),
        ({"model_a": "stable"}, 422, "model_b", "is missing"),
        ({"model_a": "stable", "model_b": "canary", "traffic_split_percent": 101}, 422, "traffic_split_percent", "100"),
        ({"model_a": "stable", "model_b": "canary", "traffic_split_percent": "10"}, 422, "traffic_split_percent", "number"),
        ({"model_a": "stable", "model_b": "canary", "traffic_split_percent": 0.001}, 422, "traffic_split_percent", "0.01"),
        ({"model_a": "stable", "model_b": "canary", "test_duration_minutes": 0}, 422, "test_duration_minutes", "greater"),
        ({"model_a": "stable", "model_b": "canary", "test_duration_minutes": 1e5}, 422, "test_duration_minutes", "1440"),
        ({"model_a": "stable", "model_b": "canary", "auto_rollback": "yes"}, 422, "auto_rollback", "true or false"),
        ({"model_a": "stable", "model_b": "canary", "variants": []}, 422, "variants", "comes in a later version"),
        ({"model_a": "stable", "model_b": "canary", "shadow": True}, 422, "shadow", "comes in a later version"),
        (
            {"model_a": "stable", "model_b": "canary", "failure_criteria": {"max_latency_ms": -1}},
            422, "failure_criteria.max_latency_ms", "greater than 0",
        ),
        (
            {"model_a": "stable", "model_b": "canary", "failure_criteria": {"max_latency": 5}},
            422, "failure_criteria.max_latency", "known here: max_consecutive_errors, max_error_rate_percent, max_latency_ms)",
        ),
        (
            {"model_a": "stable", "model_b": "canary", "failure_criteria": {"max_latency_ms": 1e300}},
            422, "failure_criteria.max_latency_ms", "less than or equal",
        ),
        (
            {"model_a": "stable", "model_b": "canary", "ramp": {"steps": [{"traffic_split": 5}]}},
            422, "ramp.steps.0.traffic_split_percent", "is missing",
        ),
        (
            {"model_a": "stable", "model_b": "canary", "ramp": {"steps": [{"traffic_split_percent": 5, "soak": 1}]}},
            422, "ramp.steps.0.soak", "known here: gate, min_requests, soak_minutes, traffic_split_percent)",
        ),
        (
            {"model_a": "stable", "model_b": "canary", "guardrails": [{"metric": "speed"}]},
            422, "guardrails.0.metric", "'inter_token'",
        ),
        (
            {"model_a": "stable", "model_b": "canary", "ramp": {"steps": [{"traffic_split_percent": p} for p in (5, 5)]}},
            422, "ramp.steps.1.traffic_split_percent", "rising order",
        ),
        ({"model_a": "stable", "model_b": "canary", "preset": "bold"}, 422, "preset", "'conservative' or 'aggressive'"),
        ({"model_a": "stable", "model_b": "canary", "tags": {"a": "x" * (9 << 20)}}, 422, "tags.a", "1024"),
        ({"model_a": "stable", "model_b": "canary", "tags": {str(n): "" for n in range(65)}}, 422, "tags", "64"),
    ],
)  # fmt: skip
async def test_start_refuses(nats_server: NatsServer, body: dict, status: int, param: str, says: str) -> None:
    async with side(nats_server) as router:
        reply = await router.call("POST", "/start", json=body)
        assert reply.status_code == status, reply.text
        assert error(reply)["param"] == param
        assert says in error(reply)["message"]
        assert router.control.experiments.live() == []


async def test_what_is_not_json_is_400_and_other_bodies_too_large_413(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        for content in (b"{", b"[1]", b'"x"', b"\xff\xfe", b'{"model_a": NaN}', b"[" * 100_000):
            reply = await router.call("POST", "/start", content=content)
            assert (reply.status_code, error(reply)["code"]) == (400, "invalid_json"), content[:20]
        reply = await router.call("POST", "/start", content=b" " * (11 << 20))
        assert (reply.status_code, error(reply)["code"]) == (413, "body_too_large")
        assert (await router.call("GET", "/status", role="viewer")).status_code == 200


async def test_without_a_key_no_body_is_taken_in(nats_server: NatsServer) -> None:
    taken = 0

    async def endless():
        nonlocal taken
        while taken < 100:
            taken += 1
            yield b" " * 65_536

    async with side(nats_server) as router:
        reply = await router.call("POST", "/start", role=None, content=endless())
        assert (reply.status_code, error(reply)["code"]) == (401, "missing_api_key")
        assert taken <= 1


async def test_nothing_running_is_404_and_status_all_null(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        for method, path, body in (
            ("POST", "/stop", None), ("POST", "/rollback", None), ("PATCH", "/traffic-split", {"traffic_split_percent": 5}),
            ("POST", "/pause", {}), ("POST", "/resume", {}), ("POST", "/approve", {}), ("POST", "/stop", {"test_id": "x"}),
        ):  # fmt: skip
            reply = await router.call(method, path, json=body)
            assert (reply.status_code, error(reply)["type"]) == (404, "not_found_error"), path
        status = await router.get("/status")
        assert set(status.values()) == {None}
        assert {"test_id", "status", "elapsed_minutes", "traffic_split_percent", "metrics", "models"} <= set(status)


async def test_a_second_test_on_the_same_model_is_409(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        test_id = await router.start_test()
        reply = await router.call("POST", "/start", json={"model_a": "stable", "model_b": "other"})
        assert reply.status_code == 409
        assert test_id in error(reply)["message"]
        assert error(await router.call("POST", "/resume"))["code"] == "not_paused"
        assert error(await router.call("POST", "/approve"))["code"] == "nothing_to_approve"
        reply = await router.call("POST", "/models/canary/unload")
        assert (reply.status_code, error(reply)["code"]) == (409, "model_in_use")


async def test_switched_off_start_is_409(nats_server: NatsServer) -> None:
    async with side(nats_server, ab_testing={"enabled": False}) as router:
        reply = await router.call("POST", "/start", json={"model_a": "stable", "model_b": "canary"})
        assert (reply.status_code, error(reply)["code"]) == (409, "ab_testing_disabled")


async def test_a_rollback_at_no_time_to_come_is_refused_naming_the_field(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        await router.start_test()
        for at in ("2020-01-01T00:00:00Z", "2300-01-01T00:00:00Z", "soon", "2030-01-01", "2030-01-01T00:00:00"):
            reply = await router.call("POST", "/rollback", json={"at": at})
            assert (reply.status_code, error(reply)["param"]) == (422, "at"), reply.text
        assert error(await router.call("POST", "/rollback", json={"speed": "slow"}))["param"] == "speed"


async def test_unknown_paths_methods_and_query_parameters(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router:
        assert error(await router.call("GET", "/nothing"))["code"] == "unknown_path"
        reply = await router.call("DELETE", "/status")
        assert (reply.status_code, error(reply)["code"]) == (405, "method_not_allowed")
        assert reply.headers["allow"] == "GET, HEAD"
        reply = await router.call("GET", "/history", params={"limt": "5"})
        assert (reply.status_code, error(reply)["param"]) == (422, "limt")
        assert error(await router.call("GET", "/history", params={"limit": "0"}))["param"] == "limit"
        reply = await router.call("POST", "/monitoring/stop?check_interval_seconds=" + "[" * 20_000, json={"actor": "x"})
        assert (reply.status_code, error(reply)["code"]) == (422, "invalid_value"), reply.text
        assert error(await router.call("GET", "/audit", params={"since": "yesterday"}))["param"] == "since"
        assert (await router.call("GET", "/tests/ab_test_none")).status_code == 404
        assert (await router.call("GET", "/status", params={"test_id": "ab_test_none"})).status_code == 404


async def test_a_part_that_is_away_is_503_and_status_goes_on(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        await router.start_test()
        status = await router.get("/status")
        assert status["status"] == "running"
        assert status["metrics"] is None
        assert [word.split(":")[0] for word in status["degraded"]] == ["metrics", "monitor"]
        for path in ("/history", "/monitoring/alerts", "/audit"):
            reply = await router.call("GET", path)
            assert reply.status_code == 503, path
            assert reply.headers["retry-after"]


async def test_over_the_limit_is_429_with_a_time_to_wait(nats_server: NatsServer) -> None:
    limited = {**SECURITY, "rate_limit": {"control_per_minute": 1, "control_burst": 3}}
    async with side(nats_server, security=limited) as router:
        replies = [await router.call("GET", "/models", role="viewer") for _ in range(4)]
        assert [r.status_code for r in replies] == [200, 200, 200, 429]
        assert int(replies[-1].headers["retry-after"]) >= 1
        assert error(replies[-1])["type"] == "rate_limit_error"
        assert (await router.call("GET", "/models", role="admin")).status_code == 200


async def audited(router: Side, server: NatsServer, count: int) -> list[dict]:
    async def records() -> list[dict] | None:
        found = await stream_messages(server, "metrics", "AUDIT", subjects.audit("router"))
        return [json.loads(m.data)["data"] for m in found] if len(found) >= count else None

    return await eventually(records)


async def test_commands_and_refusals_are_audited_without_bodies_or_addresses(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        await router.call("GET", "/status", role=None)
        await router.call("POST", "/start", role="viewer", json={"model_a": "stable", "model_b": "canary"})
        test_id = await router.start_test()
        await router.call("POST", "/start", json={"model_a": "stable", "model_b": "canary"})
        await router.call("POST", "/pause", json={"test_id": "x"}, headers={"X-Request-ID": "mine-1"})
        await router.get("/status")
        everything = await audited(router, nats_server, 6)
        (first_use,) = [r for r in everything if r["action"] == "key-use"]
        assert (first_use["actor"], first_use["outcome"], first_use["target"]) == ("admin", "first_use", "start")
        records = [r for r in everything if r["action"] != "key-use"]
        assert [(r["action"], r["actor"], r["status"], r["outcome"]) for r in records] == [
            ("status", "anonymous", 401, "missing_api_key"),
            ("start", "viewer", 403, "insufficient_role"),
            ("start", "admin", 200, "ok"),
            ("start", "admin", 409, "test_already_running"),
            ("pause", "admin", 404, "test_not_running"),
        ]
        assert records[2]["test_id"] == test_id
        assert records[2]["target"] == "stable"
        assert (records[4]["test_id"], records[4]["request_id"]) == ("x", "mine-1")
        assert all("127.0.0.1" not in str(r) and len(r["source"]) == 16 for r in records)
        assert all(key not in str(r) for r in records for key in KEYS.values())


async def test_a_flood_of_refusals_is_counted_and_neither_floods_the_audit_nor_holds_up_commands(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MAX_UNSTORED", 20)
    monkeypatch.setattr(recorder, "monotonic", lambda: 0.0)
    async with side(nats_server) as router:
        nobody = [router.call("GET", "/status", role=None) for _ in range(200)]
        viewers = [router.call("POST", "/stop", role="viewer", json={"test_id": "x"}) for _ in range(100)]
        *refused, _started = await asyncio.gather(*nobody, *viewers, router.start_test())
        assert [reply.status_code for reply in refused] == [401] * 200 + [403] * 100

        async def told() -> tuple[list[dict], list[dict]] | None:
            records = await audited(router, nats_server, 2)
            alone = [r for r in records if r["status"] in {401, 403}]
            further = [r for r in records if r["action"] == "further-refusals"]
            return (alone, further) if len(alone) + sum(r["after"]["refused"] for r in further) >= 300 else None

        alone, further = await eventually(told)
        assert 20 <= len(alone) <= 160
        assert len([r for r in alone if r["status"] == 401]) <= 60
        for r in further:
            by_status = sum(count for name, count in r["after"].items() if name.startswith("status_"))
            assert r["after"]["refused"] == r["after"]["for_key_role_or_rate"] == by_status
            assert (r["actor"], r["source"], r["outcome"]) == ("anonymous", alone[0]["source"], "counted")
        assert len(alone) + sum(r["after"]["refused"] for r in further) == 300


async def test_what_is_counted_when_a_router_stops_is_told_before_it_has_stopped(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "monotonic", lambda: 0.0)
    async with side(nats_server) as router:
        for _ in range(70):
            await router.call("GET", "/status", role=None)
    records = await stream_messages(nats_server, "metrics", "AUDIT", subjects.audit("router"))
    counted = [json.loads(m.data)["data"] for m in records][60:]
    assert sum(r["after"]["refused"] for r in counted) == 10


async def test_refusals_on_the_bus_leave_room_for_commands_while_they_wait_for_their_records(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        class Never(AuditLog):
            def record(self, record: AuditRecord) -> asyncio.Future[bool]:
                return asyncio.get_running_loop().create_future()

        router.control.recorder._audit = Never(router.bus)
        calls = [Call(None, "r", BUS) for _ in range(33)]
        waiting = [asyncio.create_task(router.control.dispatcher.dispatch(BY_TOKEN["stop"], call)) for call in calls]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1, "one more than may wait"
        assert {(await task).status for task in waiting} == {401}
