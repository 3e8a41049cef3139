"""The same verbs on the bus."""

import json
from typing import Any

import nats
from nats.aio.msg import Msg

from schemas import subjects
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import others, side, stream_messages


async def ask(nc: nats.NATS, verb: str, body: Any = None, role: str | None = "admin", raw: bytes | None = None) -> Msg:
    headers = {"Authorization": f"Bearer secret-{role}"} if role else None
    payload = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
    return await nc.request(subjects.control(verb), payload, timeout=20, headers=headers)


def told(reply: Msg) -> tuple[int, Any]:
    return int(reply.headers["Cypria-Status"]), json.loads(reply.data)


async def test_a_test_over_the_bus_alone(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server), side(nats_server):
        nc = await nats_server.connect("caller")
        status, started = told(await ask(nc, "start", {"model_a": "stable", "model_b": "canary"}))
        assert (status, started["status"]) == (200, "started")
        test_id = started["test_id"]

        async def seen() -> bool:
            return told(await ask(nc, "status"))[1]["test_id"] == test_id

        await eventually(seen)
        assert told(await ask(nc, "split", {"traffic_split_percent": 33.33, "test_id": test_id}))[0] == 200
        assert told(await ask(nc, "tests", {"test_id": test_id}))[1]["status"] == "running"
        assert told(await ask(nc, "monitoring_stop"))[1]["monitoring_active"] is False
        status, result = told(await ask(nc, "stop", {"test_id": test_id}))
        assert (status, result["decision"]) == (200, "promote_b")

        async def listed() -> bool:
            return told(await ask(nc, "history", {"limit": 5}))[1]["total_tests"] == 1

        await eventually(listed)
        await nc.close()


async def test_the_same_refusals_and_roles(nats_server: NatsServer) -> None:
    async with side(nats_server):
        nc = await nats_server.connect("caller")
        for verb, role, body, raw, status, code in (
            ("status", None, None, None, 401, "missing_api_key"),
            ("start", "viewer", {}, None, 403, "insufficient_role"),
            ("start", "admin", {"model_a": "stable"}, None, 422, "missing_field"),
            ("start", "admin", None, b"{", 400, "invalid_json"),
            ("start", "admin", None, b"\xff", 400, "invalid_json"),
            ("stop", "operator", None, None, 404, "nothing_running"),
            ("dance", "admin", None, None, 404, "unknown_verb"),
            ("history", "viewer", {"limit": 0}, None, 422, "invalid_value"),
            ("status", "viewer", None, b" " * (10 << 20) + b" {}", 413, "body_too_large"),
            ("status", None, None, b" " * (10 << 20) + b" {}", 401, "missing_api_key"),
        ):
            got, body_ = told(await ask(nc, verb, body, role, raw))
            assert (got, body_["error"]["code"]) == (status, code), verb
        await nc.close()
        found = await eventually(lambda: _audit(nats_server, 5))
        assert {r["source"] for r in found} == {"bus"}


async def _audit(server: NatsServer, count: int) -> list[dict] | None:
    found = await stream_messages(server, "metrics", "AUDIT", subjects.audit("router"))
    return [json.loads(m.data)["data"] for m in found] if len(found) >= count else None


async def test_one_router_of_several_answers(nats_server: NatsServer) -> None:
    async with side(nats_server), side(nats_server):
        nc = await nats_server.connect("caller")
        inbox = nc.new_inbox()
        subscription = await nc.subscribe(inbox)
        for _ in range(10):
            await nc.publish(subjects.control("models"), b"", reply=inbox, headers={"Authorization": "Bearer secret-viewer"})
        replies = [await subscription.next_msg(timeout=60) for _ in range(10)]
        assert all(r.headers["Cypria-Status"] == "200" for r in replies)
        # Everything published is answered: one more round trip shows that no eleventh answer is on its way.
        await ask(nc, "models")
        assert subscription.pending_msgs == 0
        await nc.close()


async def test_nothing_is_done_for_a_caller_who_wants_the_answer_outside_its_inbox(nats_server: NatsServer) -> None:
    async with side(nats_server):
        nc, watcher = await nats_server.connect("caller"), await nats_server.connect("router")
        heard = await watcher.subscribe("cypria.rollback.*")
        await watcher.flush()
        body = json.dumps({"model_a": "stable", "model_b": "canary"}).encode()
        for reply in ("cypria.rollback.x", "$KV.experiments.stable", "_INBOX.router.x"):
            await nc.publish(subjects.control("start"), body, reply=reply, headers={"Authorization": "Bearer secret-admin"})
        assert told(await ask(nc, "status"))[1]["test_id"] is None
        await watcher.flush()
        assert heard.pending_msgs == 0
        await nc.close()
        await watcher.close()


async def test_a_request_id_that_fits_no_header_is_replaced(nats_server: NatsServer) -> None:
    async with side(nats_server):
        nc = await nats_server.connect("caller")
        for own, kept in (("mine-1", True), ("x" * 129, False), ("\u00fc", False)):
            headers = {"Authorization": "Bearer secret-admin", "X-Request-ID": own}
            reply = await nc.request(subjects.control("status"), b"", timeout=20, headers=headers)
            assert (reply.headers["X-Request-ID"] == own) is kept
        await nc.close()
