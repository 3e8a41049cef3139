"""Keys over HTTP and the bus, on two routers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas import streams, subjects
from schemas.v1.alerts import Alert
from schemas.v1.keys import KeyEntry
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services.router.adapters import nats_notices
from services.router.adapters.nats_alerts import publish_alert
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Side, WallClock, side, stream_messages
from tests.service.router_control.test_bus import ask, told

HASHES = ("sha256", "previous_sha256")


async def status(router: Side, key: str, path: str = "/status") -> int:
    reply = await router.call("GET", path, headers={"Authorization": f"Bearer {key}"})
    return reply.status_code


async def refused(router: Side, path: str, body: Any, expected: int, code: str) -> str:
    reply = await router.call("POST", path, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (expected, code), reply.text
    return str(error["message"])


async def test_a_key_lives_and_ends_on_both_routers(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        made = await one.post("/keys", {"name": "ci", "role": "viewer"})
        key = made["key"]
        assert (key[:4], len(key) >= 47, made["state"], made["source"], made["created_by"]) == ("cyp_", True, "active", "api", "admin")
        assert await status(one, key) == 200
        await eventually(lambda: _is(two, key, 200))
        assert await status(two, key, "/keys") == 403

        turned = await two.post("/keys/ci/rotate", {"overlap_seconds": 60})
        assert turned["key"] != key
        assert turned["previous_until"] > turned["rotated_at"]
        assert {await status(two, k) for k in (key, turned["key"])} == {200}
        await eventually(lambda: _is(one, turned["key"], 200))
        assert await status(one, key) == 200, "until the overlap is over"
        last = (await one.post("/keys/ci/rotate", {"overlap_seconds": 0}))["key"]
        assert [await status(one, k) for k in (key, turned["key"], last)] == [401, 401, 200]

        ended = await one.post("/keys/ci/revoke", {})
        assert (ended["state"], ended["revoked_by"]) == ("revoked", "admin")
        assert await status(one, last) == 401
        await eventually(lambda: _is(two, last, 401))
        assert (await two.post("/keys/ci/revoke", {}))["revoked_at"] == ended["revoked_at"]
        again = await two.post("/keys", {"name": "ci", "role": "client"})
        assert (again["role"], await status(two, last)) == ("client", 401)


async def _is(router: Side, key: str, expected: int) -> bool:
    return await status(router, key) == expected


async def test_keys_expire_by_the_clock(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock(monkeypatch)
    async with side(nats_server) as one, side(nats_server) as two:
        short = await one.post("/keys", {"name": "short", "role": "viewer", "expires_in_days": 1})
        turned = await one.post("/keys", {"name": "turned", "role": "viewer"})
        after = await one.post("/keys/turned/rotate", {"overlap_seconds": 3600})
        for key in (short, turned, after):
            await eventually(lambda k=key: _is(two, k["key"], 200))
        clock.ahead_ms = 86_400_000
        for router in (one, two):
            await eventually(lambda r=router: _is(r, short["key"], 401))
            await eventually(lambda r=router: _is(r, turned["key"], 401))
            assert await status(router, after["key"]) == 200
        shown = {key["name"]: key for key in (await one.get("/keys"))["keys"]}
        assert (shown["short"]["state"], shown["turned"]["state"], shown["turned"]["previous_until"]) == ("expired", "active", None)
        await refused(one, "/keys/short/rotate", {}, 409, "key_expired")


async def by_hand(*routers: Side) -> None:
    """From now on keys are looked at when the test says, not at the time that it is meanwhile."""
    for router in routers:
        await end(router.control.expiring._task)


async def test_whoever_looks_tells_the_same_once_of_a_key_that_ends_soon_and_of_its_end(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        await by_hand(one, two)
        begun, day = now_ms(), 86_400_000
        for name in ("ci", "night", "old"):
            await one.post("/keys", {"name": name, "role": "operator", "expires_in_days": 30})
        await one.post("/keys", {"name": "brief", "role": "viewer", "expires_in_days": 2})
        await eventually(lambda: len(two.control.parts.keys.entries()) == 4)

        def look(days: float) -> None:
            for router in (one, two):
                router.control.expiring.look(round(begun + days * day))

        async def told() -> list[tuple[str, str, bool]]:
            events = [json.loads(m.data)["data"] for m in await stream_messages(nats_server, "alerts", "ALERTS", "cypria.alert.>")]
            return sorted((e["incident"], e["level"], e["resolved"]) for e in events)

        def raised(*names: str) -> list[tuple[str, str, bool]]:
            return sorted((f"key.{name}.expiry", "WARNING", False) for name in names)

        def over(*names: str) -> list[tuple[str, str, bool]]:
            return sorted((f"key.{name}.expiry", "INFO", True) for name in names)

        look(0.9)
        look(1.1)
        await eventually(lambda: _holds(told, raised("brief")))
        look(23.1)
        await eventually(lambda: _holds(told, [*raised("brief", "ci", "night", "old"), *over("brief")]))
        turned = await one.post("/keys/ci/rotate", {"expires_in_days": 60})
        assert turned["expires_at"] > turned["rotated_at"]
        await one.post("/keys/night/revoke", {})
        await eventually(lambda: {e.name for e in two.control.parts.keys.entries() if e.rotated_ms or e.revoked_ms} == {"ci", "night"})
        look(23.2)
        look(30.1)
        await eventually(lambda: _holds(told, [*raised("brief", "ci", "night", "old"), *over("brief", "ci", "night", "old")]))


async def expiries(server: NatsServer) -> list[str]:
    """What was told of the ends of keys, `NAME.raised` or `NAME.resolved`, in the order of the stream."""
    events = await stream_messages(server, "alerts", "ALERTS", "cypria.alert.>")
    ids = [json.loads(message.data)["id"].split(".") for message in events]
    return [f"{name}.{what}" for _, name, _, what, _ in ids]


async def test_a_warning_that_the_bus_was_away_for_is_told_when_it_is_back(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_notices, "ROUND_S", 0.2)
    monkeypatch.setattr(nats_notices, "PAUSE_S", 0.1)
    async with side(nats_server, answer_s=2) as one, side(nats_server, answer_s=2) as two:
        await by_hand(one, two)
        begun, day = now_ms(), 86_400_000
        for name, days in (("ci", 30), ("night", 30), ("long", 40)):
            await one.post("/keys", {"name": name, "role": "operator", "expires_in_days": days})
        await eventually(lambda: len(two.control.parts.keys.entries()) == 3)

        def look(days: float) -> None:
            for router in (one, two):
                router.control.expiring.look(round(begun + days * day))

        nats_server.kill()
        await eventually(lambda: not one.bus.connected and not two.bus.connected)
        with capture_logs() as logged:
            look(24)
            await eventually(lambda: sum(line["event"] == "notice_waits" for line in logged) == 4)  # each has given up once
        look(30.1)  # they have expired, and nobody was warned
        look(34)  # and the next one will
        nats_server.start()
        for router in (one, two):
            await eventually(lambda router=router: not router.control.expiring._notices._tasks)
        found = await expiries(nats_server)
        assert len(found) == 5
        for name, told in (("ci", ["raised", "resolved"]), ("night", ["raised", "resolved"]), ("long", ["raised"])):
            assert [one.partition(".")[2] for one in found if one.startswith(name)] == told, "each once, in its order"


async def test_whoever_is_late_looks_whether_another_has_told_it(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_notices, "PAUSE_S", 0.01)
    admin = await nats_server.connect("provision")
    alerts = (await admin.jetstream().stream_info(streams.ALERTS.name)).config
    await admin.jetstream().update_stream(alerts.evolve(duplicate_window=0.1))  # the server has forgotten the ids
    await admin.close()
    async with side(nats_server) as one, side(nats_server) as two:
        await by_hand(one, two)
        begun, day = now_ms(), 86_400_000
        await one.post("/keys", {"name": "ci", "role": "operator", "expires_in_days": 30})
        await eventually(two.control.parts.keys.entries)
        one.control.expiring.look(begun + 24 * day)
        await eventually(lambda: not one.control.expiring._notices._tasks)
        failed: list[str] = []

        async def once_in_vain(bus: Bus, alert: Alert, patience_s: float) -> None:
            if alert.incident not in failed:
                failed.append(alert.incident)
                raise TimeoutError
            await publish_alert(bus, alert, patience_s)

        monkeypatch.setattr(nats_notices, "publish_alert", once_in_vain)
        for days, told in ((24, ["ci.raised"]), (30.1, ["ci.raised", "ci.resolved"])):
            two.control.expiring.look(round(begun + days * day))
            await eventually(lambda: not two.control.expiring._notices._tasks)
            assert await expiries(nats_server) == told
        assert failed == ["key.ci.expiry"]


async def _holds(told: Callable[[], Awaitable[list[tuple[str, str, bool]]]], expected: list[tuple[str, str, bool]]) -> bool:
    return await told() == sorted(expected)


async def test_configured_keys_are_listed_and_revoked_but_not_rotated(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        listed = (await one.get("/keys"))["keys"]
        assert [(k["name"], k["role"], k["source"], k["state"]) for k in listed] == [
            (role, role, "config", "active") for role in ("admin", "client", "operator", "viewer")
        ]
        assert "restart" in await refused(one, "/keys/viewer/rotate", {}, 409, "key_is_configured")
        await refused(one, "/keys", {"name": "viewer", "role": "admin"}, 409, "key_exists")
        assert "create another admin's key" in await refused(one, "/keys/admin/revoke", {}, 409, "last_admin_key")
        assert (await one.post("/keys/viewer/revoke", {}))["state"] == "revoked"
        await eventually(lambda: _is(two, "secret-viewer", 401))
        shown = {key["name"]: key["state"] for key in (await two.get("/keys"))["keys"]}
        assert shown == {"admin": "active", "client": "active", "operator": "active", "viewer": "revoked"}
        async with side(nats_server) as late:  # a restart does not bring it back
            assert await status(late, "secret-viewer") == 401
        kept = json.dumps([e.model_dump() for e in one.control.parts.keys.entries()])
        assert "secret-viewer" not in kept


async def test_two_admins_that_revoke_each_other_at_once_leave_one(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        name, key = "admin", "secret-admin"
        for n in range(4):
            headers = {"Authorization": f"Bearer {key}"}
            spare = (await one.post("/keys", {"name": f"spare{n}", "role": "admin"}, headers=headers))["key"]
            await eventually(lambda k=spare: _is(two, k, 200))
            first, second = await asyncio.gather(
                one.call("POST", f"/keys/spare{n}/revoke", json={}, headers=headers),
                two.call("POST", f"/keys/{name}/revoke", json={}, headers={"Authorization": f"Bearer {spare}"}),
            )
            assert {first.status_code, second.status_code} in ({200, 409}, {409}, {200, 401}), (first.text, second.text)
            if second.status_code == 200:
                name, key = f"spare{n}", spare
            for router in (one, two):
                await eventually(lambda r=router, k=key: _is(r, k, 200))
            if first.status_code == second.status_code:  # each saw the other: both have stayed
                await one.post(f"/keys/spare{n}/revoke", {}, headers=headers)


async def test_what_is_asked_wrongly_is_refused_naming_the_field(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        for body, param in (
            ({"role": "viewer"}, "name"), ({"name": "a"}, "role"), ({"name": "a", "role": "root"}, "role"),
            ({"name": "a b", "role": "viewer"}, "name"), ({"name": "..", "role": "viewer"}, "name"),
            ({"name": "x" * 129, "role": "viewer"}, "name"),
            ({"name": "a", "role": "viewer", "expires_in_days": 0}, "expires_in_days"),
            ({"name": "a", "role": "viewer", "expires_in_days": 5000}, "expires_in_days"),
            ({"name": "a", "role": "viewer", "expires_at": "tomorrow"}, "expires_at"),
            ({"name": "a", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
            ({"name": "a", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z", "expires_in_days": 1}, "expires_in_days"),
            ({"name": "a", "role": "viewer", "key": "mine"}, "key"),
            ({"name": "a", "role": "viewer", "requests_per_minute": 0}, "requests_per_minute"),
            ({"name": "a", "role": "viewer", "control_per_minute": 1.5}, "control_per_minute"),
        ):  # fmt: skip
            reply = await router.call("POST", "/keys", json=body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (422, param), body
        reply = await router.call("POST", "/keys", json={"name": "a", "role": "viewer", "expires_in_days": 400})
        assert "at most 366 days, or a later end as expires_at" in reply.json()["error"]["message"]
        reply = await router.call("POST", "/keys/a/rotate", json={"overlap_seconds": -1})
        assert (reply.status_code, reply.json()["error"]["param"]) == (422, "overlap_seconds")
        for verb in ("rotate", "revoke"):
            await refused(router, f"/keys/nobody/{verb}", {}, 404, "key_not_found")
        assert (await router.get("/keys"))["keys"][0]["name"] == "admin"
        for role in ("client", "viewer", "operator"):
            for method, path in (("GET", "/keys"), ("POST", "/keys"), ("POST", "/keys/a/rotate"), ("POST", "/keys/a/revoke")):
                assert (await router.call(method, path, role=role, json={})).status_code == 403


async def test_the_same_over_the_bus_and_neither_key_nor_hash_is_kept_in_the_record(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        nc = await nats_server.connect("caller")
        code, made = told(await ask(nc, "keys-create", {"name": "bus", "role": "viewer"}))
        assert (code, made["key"][:4]) == (200, "cyp_")
        assert await status(router, made["key"]) == 200
        code, turned = told(await ask(nc, "keys_rotate", {"name": "bus"}))
        assert code == 200
        assert told(await ask(nc, "keys-revoke", {"name": "bus"}))[0] == 200
        assert [k["state"] for k in told(await ask(nc, "keys"))[1]["keys"] if k["name"] == "bus"] == ["revoked"]
        assert told(await ask(nc, "keys-create", {"name": "bus", "role": "viewer"}, role="operator"))[0] == 403
        await nc.close()

        async def audited() -> list[bytes]:
            found = await stream_messages(nats_server, "metrics", "AUDIT", subjects.AUDIT)
            acts = [m.data for m in found if json.loads(m.data)["data"]["action"] != "key-use"]
            return acts if len(acts) == 4 else []

        records = await eventually(audited)
        shown = [json.loads(r)["data"] for r in records]
        assert [(r["action"], r["target"], r["status"]) for r in shown] == [
            ("keys-create", "bus", 200), ("keys-rotate", "bus", 200), ("keys-revoke", "bus", 200), ("keys-create", "bus", 403),
        ]  # fmt: skip
        assert [r.get("before") for r in shown] == [None, shown[0]["after"], shown[1]["after"], None]
        assert [r.get("after", {}).get("state") for r in shown] == ["active", "active", "revoked", None]
        assert shown[1]["after"]["previous_until"] > shown[1]["after"]["rotated_at"]
        kept = b"".join(records)
        (entry,) = router.control.parts.keys.entries()
        for secret in (made["key"], turned["key"], entry.sha256, entry.previous_sha256):
            assert secret.encode() not in kept
        stored = entry.model_dump_json()
        assert made["key"] not in stored
        assert turned["key"] not in stored


async def test_without_a_bus_a_router_keeps_what_it_knows_and_catches_up(nats_server: NatsServer) -> None:
    async with side(nats_server, answer_s=2) as one, side(nats_server, answer_s=2) as two:
        key = (await one.post("/keys", {"name": "ci", "role": "viewer"}))["key"]
        await eventually(lambda: _is(two, key, 200))
        nats_server.kill()
        await eventually(lambda: not one.bus.connected and not two.bus.connected)
        assert [await status(r, k, "/config") for r in (one, two) for k in (key, "secret-admin")] == [403, 200, 403, 200]
        nats_server.start()
        await one.post("/keys/ci/revoke", {})
        await eventually(lambda: _is(two, key, 401))


async def test_names_of_old_keys_are_forgotten_with_the_next_one(nats_server: NatsServer) -> None:
    async with side(nats_server, privacy={"retention_days": 1}) as router:
        old = KeyEntry(name="old", role="client", sha256="0" * 64, created_ms=1, revoked_ms=now_ms() - 86_400_000 - 1)
        kv = await router.bus.js.key_value(streams.KEYS.name)
        await kv.put("old", old.model_dump_json().encode())
        await eventually(lambda: len(router.control.parts.keys.entries()) == 1)
        await router.post("/keys", {"name": "new", "role": "client"})
        await eventually(lambda: [e.name for e in router.control.parts.keys.entries()] == ["new"])


async def test_entries_that_cannot_be_read_stop_nothing_and_are_mended_by_the_next_change(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        key = (await router.post("/keys", {"name": "ci", "role": "viewer"}))["key"]
        test_id = await router.start_test()
        for bucket, name in (("keys", "ci"), ("keys", "noise"), ("experiments", "stable"), ("experiments", "other")):
            await router.bus.js.publish(f"$KV.{bucket}.{name}", b'{"stream": "KV_alert_state", "seq": 350}')
        assert await status(router, key) == 200
        assert (await router.get("/status"))["test_id"] == test_id
        assert (await router.post("/keys/ci/revoke", {}))["state"] == "revoked"
        assert await status(router, key) == 401
        assert (await router.post("/stop", {"test_id": test_id}))["test_id"] == test_id
        await router.start_test(model_a="other", model_b="canary")
