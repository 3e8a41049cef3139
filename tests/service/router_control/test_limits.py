"""One limit for each key over all routers."""

import asyncio

from schemas import subjects
from schemas.v1.routers import RouterBeat
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import SECURITY, Side, side

LIMITED = {"security": {**SECURITY, "rate_limit": {"control_per_minute": 1, "control_burst": 6, "inference_per_minute": 12}}}


async def allowed(router: Side, role: str, times: int = 8) -> int:
    replies = [await router.call("GET", "/status", role=role) for _ in range(times)]
    over = [reply for reply in replies if reply.status_code == 429]
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in over)
    return times - len(over)


async def test_a_limit_is_shared_by_the_routers_that_live(nats_server: NatsServer) -> None:
    async with side(nats_server, **LIMITED) as one:
        async with side(nats_server, **LIMITED) as two, side(nats_server, **LIMITED) as three:
            await eventually(lambda: [s.control.peers.routers for s in (one, two, three)] == [3, 3, 3])
            assert [await allowed(s, "viewer") for s in (one, two, three)] == [2, 2, 2]
            said = [await one.call("POST", "/feedback", role="client", json={"token": "x", "thumbs": "up"}) for _ in range(2)]
            assert [reply.status_code for reply in said] == [200, 429], "feedback is counted apart: 2 at once, over 3 routers"
        await eventually(lambda: one.control.peers.routers == 1, 3.0)  # one that falls silent counts for 3.5 s
        assert await allowed(one, "operator") == 6, "those who stop leave their share at once"


async def test_one_that_falls_silent_is_gone_and_one_that_cannot_be_heard_is_not(nats_server: NatsServer) -> None:
    async with side(nats_server, **LIMITED) as one, side(nats_server, **LIMITED) as two:
        await eventually(lambda: one.control.peers.routers == two.control.peers.routers == 2)
        await one.bus.nc.publish(subjects.peer("rghost"), RouterBeat(router="rghost").model_dump_json().encode())
        await one.bus.nc.publish(subjects.peer("rbroken"), b"{")
        await eventually(lambda: two.control.peers.routers == 3, 3.0)
        await eventually(lambda: one.control.peers.routers == two.control.peers.routers == 2)
        nats_server.kill()
        await eventually(lambda: not one.bus.connected and not two.bus.connected)
        seen = set()
        for _ in range(45):
            seen |= {one.control.peers.routers, two.control.peers.routers}
            await asyncio.sleep(0.1)
        nats_server.start()
        await eventually(lambda: one.bus.connected and two.bus.connected)
        for _ in range(15):
            seen |= {one.control.peers.routers, two.control.peers.routers}
            await asyncio.sleep(0.1)
        assert seen == {2}
