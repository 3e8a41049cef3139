"""Commands over HTTP, on a real nats-server."""

import asyncio
import json

from schemas import streams, subjects
from schemas.v1.common import Decision
from schemas.v1.experiment import RollbackOrder, VariantSummary, VerdictRecord
from schemas.v1.query import FinalVerdict, TotalsReply
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import final, others, side, stream_messages


async def test_a_test_from_start_to_stop(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        started = await router.post("/start", {"model_a": "stable", "model_b": "canary", "traffic_split_percent": 15.0})
        test_id = started["test_id"]
        assert started == {"test_id": test_id, "status": "started"}
        status = await router.get("/status", role="viewer")
        assert status["test_id"] == test_id
        assert (status["status"], status["traffic_split_percent"]) == ("running", 15.0)
        assert status["metrics"]["variant_b"]["request_count"] == 40
        assert status["metrics"]["variant_b"]["error_rate"] == 2.5
        assert status["models"] == {"variant_a": "stable", "variant_b": "canary"}
        assert status["digests"] == {"a": "sha256:stable", "b": "sha256:canary"}
        assert status["running_tests"] == [test_id]
        assert status["verdict"]["summary"] == "holds"
        assert status["degraded"] is None

        split = await router.call("PATCH", "/traffic-split", json={"traffic_split_percent": 20.5})
        assert split.json() == {"status": "updated", "traffic_split_percent": 20.5, "test_id": test_id}
        entry = router.control.experiments.current("stable")
        assert entry is not None
        assert entry.slots == [(0, 2050)]
        assert await router.post("/pause") == {"status": "paused", "test_id": test_id}
        assert await router.post("/resume", {"test_id": test_id}) == {"status": "running", "test_id": test_id}

        result = await router.post("/stop", {"reason": "enough seen"})
        assert (result["test_id"], result["status"], result["decision"]) == (test_id, "completed", "promote_b")
        assert result["reason"] == "B is 8 % faster; stopped by admin: enough seen"
        assert result["metrics_summary"]["variant_a"]["request_count"] == 60
        assert result["start_time"] < result["end_time"]
        assert router.path.flushes == 1
        asked = dict(rest.asked)[subjects.verdict("final")]
        assert asked["flushed"] == {"r1-1": {"0": 7}}

        assert set((await router.get("/status")).values()) == {None}
        assert (await router.get("/status", params={"test_id": test_id}))["status"] == "completed"
        history = await router.get("/history")
        assert (history["total_tests"], [t["test_id"] for t in history["tests"]]) == (1, [test_id])
        assert (await router.get(f"/tests/{test_id}"))["decision"] == "promote_b"

        async def events() -> list[str] | None:
            entry = router.control.experiments.by_id(test_id)
            if entry is None or entry.outbox:
                return None
            found = [json.loads(m.data) for m in await stream_messages(nats_server, "router", "EVENTS", "cypria.event.>")]
            return [e["id"] for e in found]

        assert await eventually(events) == [f"{test_id}.{n}.1" for n in (1, 2, 3, 4, 6)]


async def test_immediate_rollback_blocks_tells_and_writes(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router:
        test_id = await router.start_test()
        reply = await router.post("/rollback", {"reason": "looks bad"})
        assert reply == {"status": "rolled_back", "test_id": test_id}
        assert router.path.blocked == [test_id]
        assert router.control.experiments.current("stable") is None
        ended = await router.get(f"/tests/{test_id}")
        assert (ended["status"], ended["decision"], ended["reason"]) == ("rolled_back", "rollback", "looks bad")
        # The last facts come after the rollback: totals are asked for when it is read.
        assert ended["metrics_summary"]["variant_b"]["request_count"] == 40

        async def announced() -> list:
            return await stream_messages(nats_server, "router", "EVENTS", subjects.rollback(test_id))

        (order,) = await eventually(announced)
        assert json.loads(order.data)["data"]["order"]["actor"] == "admin"
        again = await router.call("POST", "/rollback")
        assert again.status_code == 404


async def test_gradual_rollback_goes_down_in_steps_by_itself(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server, step_s=0.3) as router:
        test_id = await router.start_test(traffic_split_percent=8)
        reply = await router.post("/rollback", {"speed": "gradual"})
        assert reply == {"status": "rolling_back", "test_id": test_id}
        ended = await router.control.experiments.ended(test_id, 60)
        assert ended is not None
        assert ended.status == "rolled_back"
        await eventually(lambda: not router.control.experiments.by_id(test_id).outbox)
        splits = [
            json.loads(m.data)["data"]["share_bp"]
            for m in await stream_messages(nats_server, "router", "EVENTS", "cypria.event.test.split_changed")
        ]
        assert splits == [400, 200, 100]


async def test_a_stop_of_a_gradual_rollback_ends_it_as_the_rollback_it_is(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        rest.answers[subjects.verdict("final")] = final(Decision.PROMOTE_B)
        await router.start_test(traffic_split_percent=40)
        await router.post("/rollback", {"speed": "gradual", "reason": "too warm"})
        result = await router.post("/stop", {})
        assert (result["status"], result["decision"], result["reason"]) == ("rolled_back", "rollback", "too warm")


async def test_a_test_ends_by_itself_when_its_time_is_up(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        rest.answers[subjects.verdict("final")] = final(Decision.KEEP_A)
        test_id = await router.start_test(test_duration_minutes=0.005)
        ended = await router.control.experiments.ended(test_id, 60)
        assert ended is not None
        assert ended.result is not None
        assert (ended.status, ended.result.decision) == ("completed", "keep_a")
        assert ended.result.reason == "B is 8 % faster; test duration reached"


async def test_a_stop_without_a_monitor_is_inconclusive_and_says_why(nats_server: NatsServer) -> None:
    async with others(nats_server, monitor=False), side(nats_server) as router:
        await router.start_test()
        result = await router.post("/stop")
        assert (result["status"], result["decision"]) == ("completed", "inconclusive")
        assert "monitor is not there" in result["reason"]
        assert result["metrics_summary"]["variant_b"]["request_count"] == 40


async def test_what_was_in_flight_at_a_stop_is_in_the_history_once_it_has_finished(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        test_id = await router.start_test()
        early = {"a": VariantSummary(request_count=60), "b": VariantSummary(request_count=30, in_flight=10)}
        verdict = VerdictRecord(decision=Decision.KEEP_A, reason="enough", rule="promotion", at_ms=1)
        rest.answers[subjects.verdict("final")] = lambda _q: FinalVerdict(verdict=verdict, metrics_summary=early)
        rest.answers[subjects.query("totals")] = lambda _q: TotalsReply(tests={test_id: early})
        assert (await router.post("/stop"))["metrics_summary"]["variant_b"]["in_flight"] == 10
        late = {"a": VariantSummary(request_count=60), "b": VariantSummary(request_count=40)}
        rest.answers[subjects.query("totals")] = lambda _q: TotalsReply(tests={test_id: late})
        (listed,) = (await router.get("/history"))["tests"]
        for shown in (listed, await router.get(f"/tests/{test_id}")):
            figures = shown["metrics_summary"]["variant_b"]
            assert (figures["request_count"], figures["in_flight"]) == (40, 0)


async def test_several_tests_at_once_and_the_latest_is_meant(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router:
        first = await router.start_test()
        second = await router.start_test(model_a="other")
        status = await router.get("/status")
        assert status["test_id"] == second
        assert status["running_tests"] == [first, second]
        assert (await router.post("/pause", {"test_id": first}))["test_id"] == first
        assert (await router.post("/stop"))["test_id"] == second
        assert (await router.get("/status"))["test_id"] == first


async def test_two_stops_at_once_are_one_stop(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as one, side(nats_server) as two:
        test_id = await one.start_test()
        await eventually(lambda: two.control.experiments.by_id(test_id))
        results = await asyncio.gather(one.post("/stop"), one.post("/stop"), two.post("/stop"))
        assert results[0] == results[1] == results[2]


async def test_a_stop_that_a_dead_router_left_is_finished_by_another(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as two:
        rest.answers[subjects.verdict("final")] = lambda _q: None  # the monitor hangs, so the stop stays half done
        async with side(nats_server) as one:
            test_id = await one.start_test()
            stop = asyncio.create_task(one.call("POST", "/stop"))
            await eventually(lambda: (e := two.control.experiments.by_id(test_id)) and e.stopping)
            stop.cancel()
        rest.answers[subjects.verdict("final")] = final()
        ended = await two.control.experiments.ended(test_id, 60)
        assert ended is not None
        assert ended.result is not None
        assert ended.result.decision == "promote_b"


async def test_a_rollback_during_a_stop_wins(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        rest.answers[subjects.verdict("final")] = lambda _q: None
        test_id = await router.start_test()
        stop = asyncio.create_task(router.call("POST", "/stop"))
        await eventually(lambda: (e := router.control.experiments.by_id(test_id)) and e.stopping)
        await router.post("/rollback")
        reply = await stop
        assert reply.json()["status"] == "rolled_back"


async def test_a_breakers_order_is_carried_out(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as one, side(nats_server) as two:
        test_id = await one.start_test()
        order = RollbackOrder(rule="breaker", reason="10 errors in a row", actor="router", at_ms=1)
        one.control.experiments.request_rollback(test_id, order)
        assert one.path.blocked == [test_id]
        await eventually(lambda: two.path.blocked == [test_id])
        ended = await two.control.experiments.ended(test_id, 60)
        assert ended is not None
        assert ended.rollback == order


async def test_leftover_events_of_a_dead_router_are_published_by_another(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router:
        test_id = await router.start_test()
        await eventually(lambda: (e := router.control.experiments.by_id(test_id)) and not e.outbox)
    nc = await nats_server.connect("router")
    kv = await nc.jetstream().key_value(streams.EXPERIMENTS.name)
    raw = json.loads((await kv.get("stable")).value)
    raw["outbox"] = [
        {
            "id": f"{test_id}.2.1", "subject": "cypria.event.test.paused", "type": "test.paused", "at_ms": 1000,
            "data": {
                "test_id": test_id, "version": 2, "status": "paused", "model_a": "stable", "model_b": "canary",
                "share_bp": 1000, "at_ms": 1000,
            },
        }
    ]  # fmt: skip
    await kv.put("stable", json.dumps(raw).encode())
    await nc.close()
    async with side(nats_server) as other:
        await eventually(lambda: (e := other.control.experiments.by_id(test_id)) and not e.outbox)
    (event,) = await stream_messages(nats_server, "router", "EVENTS", "cypria.event.test.paused")
    assert json.loads(event.data)["id"] == f"{test_id}.2.1"
    assert json.loads(event.data)["type"] == "cypria.test.paused.v1"


async def test_monitoring_can_be_switched(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as one, side(nats_server) as two:
        reply = await one.post("/monitoring/stop")
        assert reply == {"status": "stopped", "monitoring_active": False, "check_interval_seconds": 30.0}
        await eventually(lambda: not two.control.monitoring.active)
        reply = await two.post("/monitoring/start", params={"check_interval_seconds": 5})
        assert reply["check_interval_seconds"] == 5.0
        # The monitor stand-in gives no answer here: the switch is still told, and that the monitor is away.
        status = await two.get("/monitoring/status")
        assert (status["monitoring_active"], status["check_interval_seconds"]) == (True, 5.0)
        assert status["degraded"][0].startswith("monitor:")
        found = await stream_messages(nats_server, "router", "EVENTS", "cypria.event.monitoring.changed")
        assert [json.loads(m.data)["data"]["active"] for m in found] == [False, True]


async def test_a_result_names_both_arms_also_without_a_request(nats_server: NatsServer) -> None:
    async with others(nats_server) as these, side(nats_server) as router:
        for known in ({}, {"a": VariantSummary(request_count=45)}):
            these.answers[subjects.query("totals")] = lambda q, known=known: TotalsReply(tests=dict.fromkeys(q["tests"], known))
            verdict = VerdictRecord(decision=Decision.INCONCLUSIVE, reason="no data", rule="no_data", at_ms=1)
            these.answers[subjects.verdict("final")] = lambda _q, known=known, verdict=verdict: FinalVerdict(
                verdict=verdict, metrics_summary=known
            )
            await router.start_test()
            summary = (await router.post("/stop"))["metrics_summary"]
            assert set(summary) == {"variant_a", "variant_b"}
            assert summary["variant_a"]["request_count"] == (45 if known else 0)
            assert summary["variant_b"]["request_count"] == 0
