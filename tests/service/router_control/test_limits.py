"""One limit for each key over all routers."""

from collections import Counter
from typing import Any

import pytest

from schemas import subjects
from schemas.v1.routers import RouterBeat
from services._runtime.clock import monotonic
from services.router.adapters import nats_peers
from services.router.domain import peers
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import SECURITY, Side, side

LIMITED = {"security": {**SECURITY, "rate_limit": {"control_per_minute": 1, "control_burst": 6, "inference_per_minute": 12}}}


async def allowed(router: Side, role: str, times: int = 8) -> int:
    replies = [await router.call("GET", "/status", role=role) for _ in range(times)]
    over = [reply for reply in replies if reply.status_code == 429]
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in over)
    return times - len(over)


async def test_a_limit_is_shared_by_the_routers_that_live(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GONE_S", 600.0)  # nobody falls silent here
    async with side(nats_server, **LIMITED) as one:
        async with side(nats_server, **LIMITED) as two, side(nats_server, **LIMITED) as three:
            await eventually(lambda: [s.control.peers.routers for s in (one, two, three)] == [3, 3, 3])
            assert [await allowed(s, "viewer") for s in (one, two, three)] == [2, 2, 2]
            said = [await one.call("POST", "/feedback", role="client", json={"token": "x", "thumbs": "up"}) for _ in range(2)]
            assert [reply.status_code for reply in said] == [200, 429], "feedback is counted apart: 2 at once, over 3 routers"
        await eventually(lambda: one.control.peers.routers == 1)
        assert await allowed(one, "operator") == 6, "those who stop leave their share at once"


def counted(monkeypatch: pytest.MonkeyPatch, method: str) -> Counter[int]:
    """How often a method of `Peers` is called from now on, for each of them."""
    calls: Counter[int] = Counter()
    real = getattr(peers.Peers, method)

    def call(self: peers.Peers, *arguments: Any) -> Any:
        calls[id(self)] += 1
        return real(self, *arguments)

    monkeypatch.setattr(peers.Peers, method, call)
    return calls


async def test_one_that_falls_silent_is_gone_and_one_that_cannot_be_heard_is_not(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_s = 0.0
    monkeypatch.setattr(nats_peers, "monotonic", lambda: monotonic() + ahead_s)
    monkeypatch.setattr(nats_peers, "BEAT_S", 0.1)
    monkeypatch.setattr(peers, "GONE_S", 600.0)  # but for the clock, which is put on
    async with side(nats_server, **LIMITED) as one, side(nats_server, **LIMITED) as two:
        await eventually(lambda: one.control.peers.routers == two.control.peers.routers == 2)
        await one.bus.nc.publish(subjects.peer("rghost"), RouterBeat(router="rghost").model_dump_json().encode())
        await one.bus.nc.publish(subjects.peer("rbroken"), b"{")
        await eventually(lambda: one.control.peers.routers == two.control.peers.routers == 3)
        ahead_s += 1000
        await eventually(lambda: one.control.peers.routers == two.control.peers.routers == 2)
        nats_server.kill()
        await eventually(lambda: not one.bus.connected and not two.bus.connected)
        changes: list[int] = []
        for router in (one, two):
            monkeypatch.setattr(router.control.peers, "_changed", changes.append)
        for _ in range(3):
            ahead_s += 1000
            looked = counted(monkeypatch, "forgive")
            await eventually(lambda looked=looked: len(looked) == 2 and min(looked.values()) >= 2)
        nats_server.start()
        heard = counted(monkeypatch, "heard")
        await eventually(lambda: len(heard) == 2 and min(heard.values()) >= 3)
        assert (one.control.peers.routers, two.control.peers.routers, changes) == (2, 2, [])
