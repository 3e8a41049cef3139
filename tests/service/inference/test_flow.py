"""Credit, cancel, lost routers, admission, drain, states: the worker between router and engine."""

import asyncio
import json
from pathlib import Path

import pytest

from schemas import subjects
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.events import ModelState
from schemas.v1.inference import CHUNK, FINAL, HEAD, MAX_PIECE, SINGLE
from services.inference.adapters import nats_worker
from tests.harness import NatsServer, eventually
from tests.service.inference.conftest import StackFactory

STABLE = Path(__file__).parents[3] / "infra" / "models" / "stable"


async def test_no_more_pieces_than_credit(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.chunk_delay_s = 0.005
        reply = await s.router.chat(stream=True, max_tokens=100, head={"credit": 3})
        await eventually(lambda: s.fake.seen.finished == 1)
        await reply.end()
        # All of it is less than one piece, so the final frame, which needs no credit, brings what was held back.
        assert reply.kinds == [HEAD, CHUNK, CHUNK, FINAL]
        assert reply.body.count(b"data: ") == 103
        assert reply.done.completion_tokens == 100


async def test_a_reader_without_credit_stops_the_engine_being_read(stack: StackFactory) -> None:
    async with stack(timeout_seconds=1) as s:
        s.fake.behaviour.text = "y" * (MAX_PIECE * 40)
        reply = await s.router.chat(stream=True, head={"credit": 2})
        await eventually(lambda: reply.pieces == 2)
        await s.router.beaten(7)  # longer than the model's time-out: waiting for the reader is not the engine's fault
        assert reply.kinds == [HEAD, CHUNK]
        await s.router.flow(credit={reply.id: 3})
        await eventually(lambda: reply.pieces == 5)
        await s.router.flow(credit={reply.id: 100})
        await reply.end()
        assert reply.done.outcome == "repetition"
        assert len(reply.body) > MAX_PIECE * 40


async def test_credit_that_comes_later_lets_the_held_pieces_go(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.hang_after, s.fake.behaviour.chunk_delay_s = 10, 0.01
        reply = await s.router.chat(stream=True, max_tokens=50, head={"credit": 1})
        await eventually(lambda: reply.pieces == 1 and s.fake.seen.chunks == 10)
        before = len(reply.body)
        await s.router.flow(credit={reply.id: 5})
        await eventually(lambda: reply.body.count(b"data: ") == 11)
        assert len(reply.body) > before
        await s.router.flow(cancel=[reply.id])
        await reply.end()


async def test_cancel_stops_the_engine_and_frees_the_slot(stack: StackFactory) -> None:
    async with stack(max_concurrency=1) as s:
        s.fake.behaviour.chunk_delay_s = 0.02
        reply = await s.router.chat(stream=True, max_tokens=400)
        await eventually(lambda: reply.pieces > 2)
        await s.router.flow(cancel=[reply.id])
        await reply.end()
        assert reply.done.outcome == "client_cancel"
        await eventually(lambda: s.fake.seen.cancelled == 1)
        assert (await (await s.router.chat(max_tokens=2)).end()).done.outcome == "length"


async def test_cancel_that_overtakes_its_request(stack: StackFactory) -> None:
    async with stack() as s:
        await s.router.flow(cancel=["early"])
        await s.router.nc.flush()
        await eventually(lambda: s.worker._cancelled)
        await s.router.chat(head={"id": "early"})
        after = await (await s.router.chat(max_tokens=1)).end()
        assert after.done.outcome == "length"
        assert len(s.fake.seen.bodies) == 1


async def test_cancel_while_waiting_for_a_slot(stack: StackFactory) -> None:
    async with stack(max_concurrency=1) as s:
        s.fake.behaviour.hang = True
        running = await s.router.chat()
        await eventually(lambda: s.fake.seen.running == 1)
        waiting = await s.router.chat()
        third = await s.router.chat(max_tokens=3)
        await eventually(lambda: s.models.get("m").admission.queued == 2)
        await s.router.flow(cancel=[waiting.id])
        await waiting.end()
        s.fake.behaviour.hang = False
        await s.router.flow(cancel=[running.id])
        assert (await third.end()).done.outcome == "length"
        assert third.done.queue_us > 0
        admission = s.models.get("m").admission
        await eventually(lambda: (admission.running, admission.queued) == (0, 0))


async def test_a_silent_router_loses_its_generations(stack: StackFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_worker, "ROUTER_LOST_S", 1.5)
    async with stack() as s:
        s.router.alive_every_s = 0.1
        s.fake.behaviour.hang_after = 3
        reply = await s.router.chat(stream=True)
        await eventually(lambda: reply.pieces > 0)
        await s.router.beaten(10)
        assert s.fake.seen.running == 1, "the keep-alive keeps it running"
        s.router.fall_silent()
        await eventually(lambda: s.fake.seen.cancelled == 1 and s.worker.in_flight == 0)
        assert reply.final is None


async def test_full_queue_answers_at_once(stack: StackFactory) -> None:
    async with stack(max_concurrency=1, max_queue=1) as s:
        s.fake.behaviour.hang = True
        first, second = await s.router.chat(), await s.router.chat()
        await eventually(lambda: s.models.get("m").admission.queued == 1)
        refused = await (await s.router.chat()).end()
        assert refused.head is not None
        assert (refused.head.status, refused.done.outcome, refused.done.reset) == (503, "rejected", True)
        assert refused.head.retry_after >= 1
        assert refused.json["error"]["code"] == "overloaded"
        await s.router.flow(cancel=[first.id, second.id])
        await asyncio.gather(first.end(), second.end())


async def test_one_caller_cannot_fill_the_queue_for_another(stack: StackFactory) -> None:
    async with stack(max_concurrency=1, max_queue=3) as s:
        s.fake.behaviour.hang = True
        greedy = [await s.router.chat(head={"caller": "greedy"}) for _ in range(4)]
        await eventually(lambda: s.models.get("m").admission.queued == 3)
        other = await s.router.chat(head={"caller": "other"}, max_tokens=2)
        evicted = await greedy[-1].end()
        assert evicted.head is not None
        assert (evicted.head.status, evicted.done.reset) == (429, True)
        s.fake.behaviour.hang = False
        await s.router.flow(cancel=[greedy[0].id])
        assert (await other.end()).done.outcome == "length"
        await asyncio.gather(*(reply.end() for reply in greedy))


async def test_waiting_too_long_for_a_slot(stack: StackFactory) -> None:
    async with stack(max_concurrency=1) as s:
        s.fake.behaviour.hang = True
        first = await s.router.chat()
        await eventually(lambda: s.fake.seen.running == 1)
        late = await (await s.router.chat(head={"deadline_ms": 300})).end()
        assert late.head is not None
        assert (late.head.status, late.done.outcome, late.done.reset) == (503, "rejected", True)
        await s.router.flow(cancel=[first.id])
        await first.end()


async def test_a_place_in_the_queue_is_kept_for_so_long_and_no_longer(stack: StackFactory) -> None:
    async with stack(max_concurrency=1, queue_timeout_seconds=0.4) as s:
        s.fake.behaviour.hang = True
        first = await s.router.chat()
        await eventually(lambda: s.fake.seen.running == 1)
        for head, limit_s in (({}, 0.4), ({"deadline_ms": 150}, 0.15), ({"deadline_ms": 5000}, 0.4)):
            waiting = await (await s.router.chat(head=head)).end()
            assert waiting.head is not None
            assert (waiting.head.status, waiting.done.outcome, waiting.done.reset) == (503, "rejected", True)
            assert waiting.head.retry_after >= 1
            assert waiting.json["error"]["message"] == f"no slot of model 'm' became free within {limit_s:g} s"
        admission = s.models.get("m").admission
        assert (admission.running, admission.queued) == (1, 0)
        await s.router.flow(cancel=[first.id])
        await first.end()


async def test_heartbeats_tell_load_and_limits(stack: StackFactory) -> None:
    async with stack(max_concurrency=2, timeout_seconds=3, total_timeout_seconds=9) as s:
        beat = await s.router.state("m", "ready")
        assert (beat.capacity, beat.free, beat.running, beat.queued) == (2, 2, 0, 0)
        assert (beat.timeout_ms, beat.total_timeout_ms, beat.engine, beat.worker) == (3000, 9000, "openai", "w00000001")
        assert beat.created > 0
        s.fake.behaviour.hang = True
        replies = [await s.router.chat() for _ in range(3)]
        await eventually(lambda: (s.router.beats[-1].free, s.router.beats[-1].queued) == (0, 1))
        await s.router.flow(cancel=[reply.id for reply in replies])
        await asyncio.gather(*(reply.end() for reply in replies))


async def test_extra_heartbeats_do_not_delay_the_next(stack: StackFactory) -> None:
    async with stack() as s:
        for _ in range(200):
            s.worker.beat_soon()
            await s.router.beaten(1)
        # Were each extra beat to push the regular one away by its interval, the next would come in 50 s.
        await s.router.beaten(2)


async def test_drain_takes_nothing_new_and_finishes_what_runs(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.chunk_delay_s = 0.02
        running = await s.router.chat(stream=True, max_tokens=40)
        await eventually(lambda: running.pieces > 0)
        s.models.begin_drain()
        await s.router.state("m", "draining")
        refused = await (await s.router.chat()).end()
        assert refused.head is not None
        assert (refused.head.status, refused.done.reset) == (503, True)
        await s.worker.stop(20)
        assert (await running.end()).done.outcome == "length"


async def test_drain_cuts_off_what_does_not_end(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.hang_after = 3
        stuck = await s.router.chat(stream=True)
        await eventually(lambda: stuck.pieces > 0)
        s.fake.behaviour.hang = True
        silent = await s.router.chat()
        await eventually(lambda: s.fake.seen.running == 2)
        s.models.begin_drain()
        await s.worker.stop(0.2)
        assert (await stuck.end()).done.outcome == "error_mid_stream"
        assert (await silent.end()).done.outcome == "error_before_first_token"
        await eventually(lambda: s.fake.seen.cancelled == 2)


async def test_states_reach_the_bus_and_failures_say_why(stack: StackFactory, nats_server: NatsServer) -> None:
    models = [
        {"name": "good/one", "engine": "transformers", "path": str(STABLE)},
        {"name": "bad", "engine": "transformers", "path": str(STABLE), "digest": "sha256:" + "0" * 64},
    ]
    async with stack(models=models, wait=False) as s:
        beat = await s.router.state("bad", "failed")
        assert "digest is sha256:" in beat.reason
        good = await s.router.state("good/one", "ready")
        assert good.digest.startswith("sha256:")
        assert good.memory_bytes > 1_000_000
        assert s.models.missing() is not None
        reply = await (await s.router.chat(model="good/one", max_tokens=5, stream=True, temperature=0)).end()
        assert reply.done.completion_tokens == 5
        assert reply.done.digest == good.digest
        assert reply.done.gpu_us > 0
        refused = await (await s.router.chat(model="bad")).end()
        assert refused.head is not None
        assert (refused.head.status, refused.done.reset) == (503, True)
        nc = await nats_server.connect("metrics")
        found = await nc.jetstream().subscribe(subjects.event("model.state"), stream="EVENTS", ordered_consumer=True)
        states: dict[str, list[str]] = {"good/one": [], "bad": []}
        while len(states["good/one"]) < 4 or len(states["bad"]) < 2:
            msg = await found.next_msg(timeout=60)
            event = CloudEvent[ModelState].model_validate_json(msg.data)
            states[event.data.model].append(event.data.state)
        assert states == {"good/one": ["verifying", "loading", "warming", "ready"], "bad": ["verifying", "failed"]}
        await nc.close()


async def test_unload_waits_for_requests_and_load_brings_it_back(stack: StackFactory) -> None:
    async with stack(models=[{"name": "m", "engine": "transformers", "path": str(STABLE)}]) as s:
        model = s.models.get("m")
        running = await s.router.chat(stream=True, max_tokens=200, ignore_eos=True)
        await eventually(lambda: running.pieces > 0)
        s.models.begin_unload("m")
        await s.router.state("m", "unloaded")
        assert (await running.end()).done.completion_tokens == 200
        assert model.memory_bytes() == 0
        s.models.begin_load("m")
        await s.router.state("m", "ready")
        assert (await (await s.router.chat(max_tokens=3)).end()).done.completion_tokens == 3


async def test_cancelled_torch_generation_frees_its_row(stack: StackFactory) -> None:
    async with stack(models=[{"name": "m", "engine": "transformers", "path": str(STABLE)}]) as s:
        reply = await s.router.chat(stream=True, max_tokens=450, ignore_eos=True)
        await eventually(lambda: reply.pieces > 2)
        await s.router.flow(cancel=[reply.id])
        assert (await reply.end()).done.outcome == "client_cancel"
        engine = s.models.get("m").engine
        await eventually(lambda: engine.running == 0)
        assert reply.done.completion_tokens < 450


async def test_garbage_on_the_subjects_stops_nothing(stack: StackFactory) -> None:
    async with stack() as s:
        for subject in (subjects.infer("m", "w00000001"), subjects.flow("w00000001")):
            for payload in (b"", b"H", b"\xff" * 50, b"H\xff\xff\xff\x7fxx"):
                await s.router.nc.publish(subject, payload, reply="_INBOX.router.r00000001.x")
        reply = await (await s.router.chat(max_tokens=1)).end()
        assert reply.kinds == [SINGLE]
        assert json.loads(reply.body)["object"] == "chat.completion"


async def test_nats_server_restart(stack: StackFactory, nats_server: NatsServer) -> None:
    async with stack() as s:
        nats_server.kill()
        await eventually(lambda: not s.bus.connected)
        nats_server.start()
        await eventually(lambda: s.bus.connected and s.router.nc.is_connected)
        await s.router.state("m", "ready")
        assert (await (await s.router.chat(max_tokens=1)).end()).done.outcome == "length"
