"""Several control sides at once, and a nats-server that dies under them."""

import asyncio
import json

from schemas import streams, subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.events import RollbackRequested
from schemas.v1.experiment import RollbackOrder
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import others, side, stream_messages


def order(rule: str = "error_rate") -> RollbackOrder:
    return RollbackOrder(rule=rule, reason="errors 40 % of 20", actor="monitor", at_ms=5, decided_on=1)


async def command(server: NatsServer, test_id: str, payload: bytes | None = None) -> None:
    """What the monitor publishes."""
    nc = await server.connect("monitor")
    asked = RollbackRequested(test_id=test_id, model_a="stable", order=order())
    event_id = f"{test_id}.1.rollback"
    body = payload if payload is not None else dump(envelope("rollback.requested", event_id, "monitor", 5, asked))
    await nc.jetstream().publish(subjects.rollback(test_id), body, headers={"Nats-Msg-Id": event_id})
    await nc.close()


async def test_of_two_starts_at_once_exactly_one_wins(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        for n in range(5):
            body = {"model_a": "stable", "model_b": "canary", "tags": {"round": str(n)}}
            replies = await asyncio.gather(*(s.call("POST", "/start", json=body) for s in (one, two, one, two)))
            assert sorted(r.status_code for r in replies) == [200, 409, 409, 409]
            (won,) = [r.json()["test_id"] for r in replies if r.status_code == 200]
            await eventually(lambda won=won: all(s.control.experiments.by_id(won) for s in (one, two)))
            await one.post("/rollback")
            await eventually(lambda: not two.control.experiments.live())


async def test_no_update_is_lost_between_two_sides(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        test_id = await one.start_test()
        await eventually(lambda: two.control.experiments.by_id(test_id))
        splits = [(s, percent / 10) for percent in range(11, 41) for s in (one, two)]
        replies = await asyncio.gather(
            *(s.call("PATCH", "/traffic-split", json={"traffic_split_percent": p}) for s, p in splits)
        )
        assert {r.status_code for r in replies} == {200}
        # Each side knows its own writes at once, so both together know the last one.
        entries = [lambda s=s: s.control.experiments.by_id(test_id) for s in (one, two)]
        await eventually(lambda: entries[0]() == entries[1]() and not entries[0]().outbox)
        entry = entries[0]()
        events = [
            json.loads(m.data)["data"]["version"]
            for m in await stream_messages(nats_server, "router", "EVENTS", "cypria.event.test.*")
        ]
        assert sorted(events) == list(range(1, entry.version + 1))


async def test_a_monitors_order_is_taken_by_every_router_and_written_once(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        test_id = await one.start_test()
        await eventually(lambda: two.control.experiments.by_id(test_id))
        await command(nats_server, test_id)
        await eventually(lambda: one.path.blocked == two.path.blocked == [test_id])
        for router in (one, two):
            ended = await router.control.experiments.ended(test_id, 60)
            assert ended is not None
            assert (ended.status, ended.version, ended.rollback) == ("rolled_back", 2, order())
        await command(nats_server, test_id)  # repeated until the monitor sees the end: nothing happens twice
        await eventually(lambda: not one.control.experiments.by_id(test_id).outbox)
        events = await stream_messages(nats_server, "router", "EVENTS", "cypria.event.test.rolled_back")
        assert [json.loads(m.data)["id"] for m in events] == [f"{test_id}.2.1"]


async def test_an_order_that_cannot_be_read_is_dead_lettered_and_stops_nothing(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        test_id = await router.start_test()
        await command(nats_server, test_id, b"{broken")
        await eventually(lambda: _dead(nats_server))
        nc = await nats_server.connect("monitor")
        asked = RollbackRequested(test_id=test_id, model_a="stable", order=order())
        await nc.publish(subjects.rollback(test_id), dump(envelope("rollback.requested", "x.1.r", "monitor", 5, asked)))
        await nc.close()
        assert await router.control.experiments.ended(test_id, 60)


async def _dead(server: NatsServer) -> bool:
    nc = await server.connect("provision")
    try:
        info = await nc.jetstream().stream_info(streams.DLQ.name)
        return info.state.messages == 1
    finally:
        await nc.close()


async def test_state_and_commands_survive_a_killed_nats_server(nats_server: NatsServer) -> None:
    async with side(nats_server, answer_s=2) as one, side(nats_server, answer_s=2) as two:
        test_id = await one.start_test()
        await eventually(lambda: two.control.experiments.by_id(test_id))
        nats_server.kill()
        await eventually(lambda: not one.bus.connected and not two.bus.connected)
        assert one.control.experiments.current("stable").test_id == test_id
        # An operator's command waits for the bus instead of failing.
        split = asyncio.create_task(one.call("PATCH", "/traffic-split", json={"traffic_split_percent": 42}))
        nats_server.start()
        reply = await split
        assert reply.status_code == 200, reply.text
        await eventually(lambda: two.control.experiments.by_id(test_id).share_bp == 4200)
        await eventually(lambda: not two.control.experiments.by_id(test_id).outbox)
        async with others(nats_server):
            assert (await two.post("/rollback"))["status"] == "rolled_back"
            await eventually(lambda: one.path.blocked == [test_id])
            ended = await one.control.experiments.ended(test_id, 60)
            assert ended is not None


async def test_a_rollback_ordered_while_the_bus_is_away_is_carried_out_when_it_returns(nats_server: NatsServer) -> None:
    async with side(nats_server, answer_s=2) as router:
        test_id = await router.start_test()
        nats_server.kill()
        await eventually(lambda: not router.bus.connected)
        router.control.experiments.request_rollback(test_id, order("monitor_down"))
        assert router.path.blocked == [test_id]
        nats_server.start()
        ended = await router.control.experiments.ended(test_id, 60)
        assert ended is not None
        assert ended.rollback.rule == "monitor_down"


async def test_a_new_router_finds_the_state(nats_server: NatsServer) -> None:
    async with side(nats_server) as one:
        test_id = await one.start_test(model_a="other")
        rolled = await one.start_test()
        await one.post("/rollback", {"test_id": rolled})
    async with others(nats_server), side(nats_server) as two:
        assert [t.test_id for t in two.control.experiments.live()] == [test_id]
        assert (await two.get("/history"))["tests"][0]["test_id"] == rolled
        second = await two.start_test()
        await two.post("/rollback", {"test_id": second})
        # The result of the first test moved to the entry's recent ones.
        assert [t["test_id"] for t in (await two.get("/history"))["tests"]] == [second, rolled]
        assert (await two.get(f"/tests/{rolled}"))["status"] == "rolled_back"
