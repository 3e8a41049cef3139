"""Ramps, steps down and capacity-aware rollbacks with several control sides on a real nats-server."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas import streams, subjects
from schemas.v1.common import rfc3339
from schemas.v1.experiment import Experiment
from services._runtime.clock import now_ms
from tests.fakes.frame_worker import FrameWorker
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Side, WallClock, act, others, side, stream_messages


def ramp(*percents: float, **fields: Any) -> dict[str, Any]:
    return {"steps": [{"traffic_split_percent": percent} for percent in percents], **fields}


async def told(server: NatsServer) -> list[tuple[str, int, int]]:
    """(kind, version, share) of every event of a test, in the order of the stream."""
    found = [json.loads(m.data) for m in await stream_messages(server, "router", "EVENTS", "cypria.event.test.*")]
    return [
        (e["type"].removeprefix("cypria.test.").removesuffix(".v1"), e["data"]["version"], e["data"]["share_bp"])
        for e in found
    ]


async def at(router: Side, test_id: str, **wanted: Any) -> Experiment:
    """The entry once it is as wanted, with its events published."""

    def found() -> Experiment | None:
        entry = router.control.experiments.by_id(test_id)
        right = entry is not None and all(getattr(entry, name) == value for name, value in wanted.items())
        return entry if entry is not None and right and not entry.outbox else None

    return await eventually(found)


async def test_a_ramp_goes_up_by_the_monitors_word_and_an_operators_approval(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as one, side(nats_server) as two:
        test_id = await one.start_test(ramp=ramp(1, 5, 25, soak_minutes=0, gate="manual"), test_duration_minutes=60)
        status = await one.get("/status")
        assert status["traffic_split_percent"] == 1
        assert status["ramp"] == {
            "step": 1, "of": 3, "shares": [1, 5, 25], "soak_left_minutes": 0, "min_requests": 100, "gate": "manual",
            "approved": False, "held": None,
        }  # fmt: skip
        assert status["waiting_for"] == "an operator's approval: POST /v1/ab-testing/approve"
        first = await at(two, test_id, version=1)
        await act(nats_server, first, "advance")  # the gate is shut
        assert await two.post("/approve", {"test_id": test_id}) == {"status": "approved", "test_id": test_id}
        again = await one.call("POST", "/approve")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "nothing_to_approve")
        await act(nats_server, first, "advance")  # decided before the approval
        approved = await at(one, test_id, version=2)
        await act(nats_server, approved, "advance")
        await act(nats_server, approved, "advance")
        for router in (one, two):
            entry = await at(router, test_id, version=3, share_bp=500, slots=[(0, 500)])
            assert entry.ramp is not None
            assert (entry.ramp.step, entry.ramp.approved) == (1, 0)
        assert (await two.get("/status"))["ramp"]["step"] == 2
        assert await told(nats_server) == [("started", 1, 100), ("approved", 2, 100), ("ramped", 3, 500)]
        split = await one.call("PATCH", "/traffic-split", json={"traffic_split_percent": 7})
        assert split.status_code == 200
        held = await at(two, test_id, version=4, share_bp=700)
        await act(nats_server, held, "advance")
        refused = await two.call("POST", "/approve")
        assert "the split was set by admin" in refused.json()["error"]["message"]
        assert (await one.get("/status"))["ramp"]["held"] == "the split was set by admin"
        assert one.control.experiments.by_id(test_id) == held


async def test_a_step_down_is_carried_out_and_taken_back_across_a_restart(nats_server: NatsServer) -> None:
    async with others(nats_server):
        async with side(nats_server, step_s=0.2) as one:
            test_id = await one.start_test(ramp=ramp(1, 5, 25, soak_minutes=1), retry={"backoff_minutes": 5})
            for version, share in ((1, 100), (2, 500)):
                await act(nats_server, await at(one, test_id, version=version, share_bp=share), "advance")
            await act(nats_server, await at(one, test_id, version=3, share_bp=2500), "step_down")
            down = await at(one, test_id, version=5, share_bp=500)
            assert down.descent is None
            assert down.setback is not None
            assert (down.setback.from_bp, down.setback.from_step, down.setback.rule) == (2500, 2, "rule")
            status = await one.get("/status")
            assert status["retry_at"] == rfc3339(down.setback.since_ms + 300_000)
            assert (status["status"], status["ramp"]["step"]) == ("running", 2)
        async with side(nats_server) as two, side(nats_server) as three:
            await act(nats_server, await at(two, test_id), "advance")  # only the retry goes up
            await act(nats_server, await at(two, test_id), "retry")
            await act(nats_server, down, "retry")
            for router in (two, three):
                back = await at(router, test_id, version=6, share_bp=2500)
                assert back.ramp is not None
                assert back.setback is not None
                assert (back.ramp.step, back.setback.count, back.setback.retry_at_ms) == (2, 1, None)
            await act(nats_server, back, "pause")
            assert (await at(three, test_id, version=7)).status == "paused"
            resumed = await three.post("/resume")
            assert resumed["status"] == "running"
            entry = await at(two, test_id, version=8)
            assert entry.ramp is not None
            assert entry.ramp.since_ms > back.ramp.since_ms
        assert await told(nats_server) == [
            ("started", 1, 100), ("ramped", 2, 500), ("ramped", 3, 2500), ("stepped_down", 4, 2500),
            ("split_changed", 5, 500), ("retried", 6, 2500), ("paused", 7, 2500), ("resumed", 8, 2500),
        ]  # fmt: skip


async def test_a_scheduled_ramp_begins_at_its_launch_and_goes_no_further_before(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WallClock(monkeypatch)
    async with others(nats_server), side(nats_server) as router:
        when = now_ms() + 3_600_000
        test_id = await router.start_test(ramp=ramp(1, 5, soak_minutes=1), schedule=rfc3339(when))
        scheduled = await at(router, test_id, version=1)
        await act(nats_server, scheduled, "advance")
        assert (await router.get("/status"))["ramp"]["soak_left_minutes"] == 1
        clock.ahead_ms = 3_600_000
        running = await at(router, test_id, version=2, status="running")
        assert running.ramp is not None
        assert running.ramp.since_ms >= when
        assert (running.ramp.step, running.share_bp) == (0, 100)


async def test_an_action_that_cannot_be_read_is_dead_lettered_and_stops_nothing(nats_server: NatsServer) -> None:
    async def dead() -> list[str]:
        subject = subjects.dlq("EVENTS", "router")
        found = await stream_messages(nats_server, "alerts", streams.DLQ.name, subject)
        return [json.loads(m.data)["reason"] for m in found]

    async with side(nats_server) as router:
        test_id = await router.start_test(ramp=ramp(1, 5))
        first = await at(router, test_id, version=1)
        await act(nats_server, first, "pause", payload=b'{"broken')
        (reason,) = await eventually(dead)
        assert reason.startswith("not an action on a test: ")
        await act(nats_server, first, "advance")
        assert (await at(router, test_id, version=2)).share_bp == 500


async def test_actions_are_taken_when_the_bus_returns_and_never_on_another_version(nats_server: NatsServer) -> None:
    async with side(nats_server, answer_s=2) as one, side(nats_server, answer_s=2) as two:
        test_id = await one.start_test(ramp=ramp(1, 5, 10))
        first = await at(two, test_id, version=1)
        nats_server.kill()
        await eventually(lambda: not one.bus.connected and not two.bus.connected)
        nats_server.start()
        await eventually(lambda: one.bus.connected and two.bus.connected)
        await act(nats_server, first, "advance")
        for router in (one, two):
            await at(router, test_id, version=2, share_bp=500)
        await act(nats_server, first, "step_down")
        await act(nats_server, await at(two, test_id, version=2), "advance")
        assert (await at(one, test_id, version=3)).setback is None


@contextlib.asynccontextmanager
async def workers(server: NatsServer, *, load: int, capacity: int = 1000) -> AsyncIterator[tuple[FrameWorker, FrameWorker]]:
    """One worker for each model: the stable one has the load named, the canary none."""
    stable, canary = (FrameWorker(model, "w1") for model in ("stable", "canary"))
    stable.load, stable.capacity, canary.load = load, capacity, 0
    for worker in (stable, canary):
        await worker.start(await server.connect("inference"))
    try:
        yield stable, canary
    finally:
        for worker in (stable, canary):
            await worker.stop()


async def test_a_gradual_rollback_waits_for_a_queue_and_goes_no_faster_than_was_shown(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WallClock(monkeypatch)
    quick = {"step_s": 0.4, "slot_s": 0.25}
    async with others(nats_server), workers(nats_server, load=100) as (stable, _), side(nats_server, **quick) as one:
        stable.queued = 3
        test_id = await one.start_test(traffic_split_percent=50, test_duration_minutes=60)
        assert await one.post("/rollback", {"speed": "gradual"}) == {"status": "rolling_back", "test_id": test_id}
        wants = "the queue of 'stable' to empty"
        await eventually(lambda: (e := one.control.experiments.by_id(test_id)) and e.descent and e.descent.waiting == wants)
        status = await one.get("/status")
        assert (status["status"], status["traffic_split_percent"], status["waiting_for"]) == ("rolling_back", 50, wants)
        held = await at(one, test_id)
        async with side(nats_server, **quick) as two:  # a second router, which takes part from now on
            await eventually(lambda: two.path.load("stable").running)
            assert (await at(two, test_id)).version == held.version, "waiting is written once, not for every look"
            clock.ahead_ms = 2 * 3_600_000
            stable.queued = 0
            ended = await two.control.experiments.ended(test_id, 60)
            assert ended is not None
            assert ended.status == "rolled_back"
            assert ended.ended_ms > ended.ends_ms, "what was begun goes on in steps past the end of the test's time"
            await at(two, test_id)
        shares = [share for kind, _, share in await told(nats_server) if kind == "split_changed"]
        # The fake load stays at 100, so every step may take the stable model to 125 by its own reckoning.
        assert shares == [3750, 2188, 1094, 547, 273, 136]
        versions = [version for _, version, _ in await told(nats_server)]
        assert len(set(versions)) == len(versions)


async def test_places_and_latency_bound_a_step_down_and_it_goes_on_after_a_restart(nats_server: NatsServer) -> None:
    quick = {"step_s": 0.4, "slot_s": 0.25}
    async with others(nats_server), workers(nats_server, load=100, capacity=111) as (stable, _):
        async with side(nats_server, **quick) as one:
            test_id = await one.start_test(traffic_split_percent=50)
            stable.load = 105
            await eventually(lambda: one.path.load("stable").running == 105)
            await act(nats_server, await at(one, test_id, version=1), "step_down")
            full = "room for more at 'stable'"
            await eventually(lambda: (e := one.control.experiments.by_id(test_id)) and e.descent and e.descent.waiting == full)
            assert one.control.experiments.by_id(test_id).share_bp == 5000
        stable.capacity = 130  # places for 117: from 105 at half of the traffic, B's share may go to 44.29 %
        async with side(nats_server, **quick) as two:
            part = await at(two, test_id, share_bp=4429)
            assert part.status == "running"
            assert part.descent is not None
            assert (part.descent.target_bp, part.descent.waiting) == (2500, "")
            stable.load = 0
            done = await at(two, test_id, share_bp=2500)
            assert done.descent is None
            assert done.setback is not None
            assert done.setback.from_bp == 5000


async def test_an_immediate_rollback_asks_for_no_room(nats_server: NatsServer) -> None:
    async with others(nats_server), workers(nats_server, load=100, capacity=100) as (stable, _):
        stable.queued = 9
        async with side(nats_server, step_s=0.4, slot_s=0.25) as router:
            test_id = await router.start_test(traffic_split_percent=50)
            assert (await router.post("/rollback"))["status"] == "rolled_back"
            assert (await at(router, test_id)).share_bp == 0
