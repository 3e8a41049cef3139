"""Somebody tries keys: over HTTP to models and to the control API, and on the bus."""

import json

import httpx
import nats
from nats.aio.msg import Msg

from schemas import subjects
from tests.harness import NatsServer, eventually
from tests.service.router.rig import Rig, bearer, chat, running
from tests.service.router_control.sides import stream_messages


def told(reply: httpx.Response) -> tuple[int, str]:
    assert (reply.status_code != 429) or 1 <= int(reply.headers["retry-after"]) <= 60
    return reply.status_code, reply.json()["error"]["code"] if reply.status_code >= 400 else ""


async def guess(rig: Rig, key: str, path: str, source: str = "127.0.0.1") -> tuple[int, str]:
    transport = httpx.AsyncHTTPTransport(local_address=source)
    async with httpx.AsyncClient(transport=transport, base_url=rig.url, timeout=20) as client:
        headers = {"Authorization": f"Bearer {key}"}
        if path.startswith("/v1/chat"):
            return told(await client.post(path, json=chat(), headers=headers))
        return told(await client.get(path, headers=headers))


async def test_wrong_keys_are_counted_together_wherever_they_are_tried(nats_server: NatsServer) -> None:
    async with running(nats_server) as rig:
        await rig.worker("stable")
        assert (await rig.post()).status_code == 200  # the client's key is known from here
        paths = ("/v1/chat/completions", "/v1/ab-testing/status", "/v1/models")
        for n in range(21):
            assert await guess(rig, f"wrong-{n}", paths[n % 3]) == (401, "invalid_api_key")
        for path in paths:
            assert await guess(rig, "wrong", path) == (429, "too_many_failed_keys")
            assert await guess(rig, "viewer-key", path) == (429, "too_many_failed_keys"), "not even compared"
            assert (await guess(rig, "viewer-key", path, source="127.0.0.2"))[0] == 200
        assert (await rig.post()).status_code == 200
        large = await rig.client.post("/v1/ab-testing/start", content=b" " * 100, headers=bearer("viewer"))
        assert told(large) == (429, "too_many_failed_keys")
        metrics = (await rig.client.get("/metrics")).text
        assert "\ncypria_router_guessing_sources 1.0\n" in metrics
        assert "\ncypria_router_peers 1.0\n" in metrics

        caller = await nats_server.connect("caller")
        assert await ask(caller, subjects.control("status"), "viewer-key") == "200", "the bus is another place"
        for n in range(21):
            subject = subjects.request("chat") if n % 2 else subjects.control("status")
            assert await ask(caller, subject, f"wrong-{n}") == "401"
        for subject in (subjects.request("chat"), subjects.control("status")):
            assert await ask(caller, subject, "wrong") == "429"
        assert await ask(caller, subjects.control("status"), "viewer-key") == "200"
        assert await ask(caller, subjects.control("status"), "admin-key") == "429"
        assert await guess(rig, "admin-key", "/v1/ab-testing/status", source="127.0.0.2") == (200, "")
        await caller.close()

        async def shut_out() -> list[str] | None:
            found = await stream_messages(nats_server, "metrics", "AUDIT", subjects.audit("router"))
            records = [json.loads(message.data)["data"] for message in found]
            sources = [r["source"] for r in records if r["action"] == "key-guessing"]
            return sources if len(sources) >= 2 else None

        first, second = await eventually(shut_out)
        assert (len(first), second) == (16, "bus"), "each is told once, and no address is"


async def ask(nc: nats.NATS, subject: str, key: str) -> str:
    reply: Msg = await nc.request(subject, b"{}", timeout=20, headers={"Authorization": f"Bearer {key}"})
    if reply.headers["Cypria-Status"] == "429":
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
    return reply.headers["Cypria-Status"]
