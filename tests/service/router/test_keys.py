"""Keys made while two whole routers run: inference, event streams, the bus."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.router.edge import path
from tests.harness import NatsServer, eventually
from tests.service.router.rig import Rig, bearer, chat, running


class OneEach:
    """Routers are processes with a registry of their own; here two share one."""

    def __init__(self) -> None:
        self.of: dict[object, CollectorRegistry] = {}

    def register(self, meters: object) -> None:
        self.of[meters] = CollectorRegistry()
        self.of[meters].register(meters)

    def unregister(self, meters: object) -> None:
        self.of.pop(meters).unregister(meters)


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path, "REGISTRY", OneEach())



async def infer(rig: Rig, key: str) -> int:
    reply = await rig.client.post("/v1/chat/completions", json=chat(), headers={"Authorization": f"Bearer {key}"})
    return reply.status_code


async def manage(rig: Rig, path: str, **body: object) -> dict[str, str]:
    reply = await rig.client.post(f"/v1/ab-testing/keys{path}", json=body, headers=bearer("admin"))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def test_a_new_key_serves_and_a_revoked_one_ends_its_streams_on_every_router(nats_server: NatsServer) -> None:
    async with running(nats_server) as one, running(nats_server) as two:
        await one.worker("stable")
        await eventually(lambda: two.path.table.choose("stable") is not None)
        app = (await manage(one, "", name="app", role="client"))["key"]
        eye = (await manage(two, "", name="eye", role="viewer"))["key"]
        for rig in (one, two):
            await eventually(lambda r=rig: _serves(r, app, 200), 1.0)

        ended: list[str] = []

        async def watch(rig: Rig, name: str, key: str) -> None:
            headers = {"Authorization": f"Bearer {key}"}
            async with rig.client.stream("GET", "/v1/ab-testing/events", headers=headers) as reply:
                assert reply.status_code == 200
                async for line in reply.aiter_lines():
                    if line == ": connected":
                        ended.append(f"{name} connected")
            ended.append(name)

        streams = [
            asyncio.create_task(watch(two, "eye", eye)), asyncio.create_task(watch(one, "viewer", "viewer-key"))
        ]  # fmt: skip
        await eventually(lambda: len(ended) == 2)
        await manage(one, "/eye/revoke")
        await eventually(lambda: "eye" in ended, 1.0)
        assert "viewer" not in ended, "another key's stream goes on"
        await manage(two, "/viewer/revoke")
        await eventually(lambda: "viewer" in ended, 1.0)
        await asyncio.gather(*streams)

        short = (await manage(one, "", name="short", role="viewer", expires_in_days=1.5 / 86_400))["key"]
        await eventually(lambda: _serves(two, short, 200), 1.0)
        await asyncio.wait_for(watch(two, "short", short), 5)  # it ends by the clock

        turned = await manage(two, "/app/rotate", overlap_seconds=0)
        for rig in (one, two):
            await eventually(lambda r=rig: _serves(r, app, 401), 1.0)
            await eventually(lambda r=rig: _serves(r, turned["key"], 200), 1.0)


async def _serves(rig: Rig, key: str, expected: int) -> bool:
    return await infer(rig, key) == expected


async def test_a_router_that_starts_knows_every_key_before_it_is_ready(nats_server: NatsServer) -> None:
    async with running(nats_server) as one:
        await manage(one, "/client/revoke")
        key = (await manage(one, "", name="app", role="client"))["key"]
        await one.worker("stable")
        async with running(nats_server) as two:
            assert await infer(two, "client-key") == 401
            assert await infer(two, key) in {200, 503}  # its workers may not have been heard yet
