"""Records and evidence of tests on a real nats-server: read again after restarts, paged, and gone when they are gone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas import subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.experiment import Experiment, VerdictRecord
from schemas.v1.record import EvidenceReply, RecordReply
from services._runtime.clock import now_ms
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick
from services.monitor.domain.verdict import decide
from tests.harness import NatsServer, eventually
from tests.service.monitor.rig import Rig, app, dead, now_test, rig
from tests.unit.monitor.synthetic import TEST, Traffic


@pytest.fixture
async def bench(nats_server: NatsServer) -> AsyncIterator[Rig]:
    async with rig(nats_server) as made:
        yield made


async def announce(bench: Rig, test: Experiment, kind: str, version: int, **fields: Any) -> None:
    """An event of the test, as its router publishes it."""
    event = TestEvent(
        test_id=test.test_id, version=version, status=test.status, model_a=test.model_a, model_b=test.model_b,
        share_bp=test.share_bp, actor="ops", at_ms=now_ms(), configuration=test.configuration, **fields,
    )  # fmt: skip
    event_id = f"{test.test_id}.{version}.1"
    body = dump(envelope(f"test.{kind}", event_id, "router", event.at_ms, event, test.test_id))
    await bench.router.jetstream().publish(
        subjects.event(f"test.{kind}"), body, headers={"Nats-Msg-Id": event_id}
    )


async def rolled_back(bench: Rig) -> tuple[Experiment, VerdictRecord]:
    """A test from its start to its rollback by the monitor; its entry is then taken by another test."""
    test = now_test()
    await bench.put(test)
    await announce(bench, test, "started", 1)
    async with app(bench.server):
        await bench.feed(Traffic(1), lambda: bench.leases)
        await bench.feed(dead(), lambda: bench.requests)
        for _ in range(3):
            await bench.publish([])
    order = bench.requests[0].data.order
    assert order.verdict is not None
    ended = test.model_copy(update={"status": TestStatus.ROLLED_BACK, "share_bp": 0})
    await announce(bench, ended, "rolled_back", 4, order=order)
    await bench.put(now_test(test_id="ab_test_0002"))
    return test, order.verdict


async def record(bench: Rig, until: int | None = None, **fields: Any) -> RecordReply:
    async def ask() -> dict[str, Any] | None:
        try:
            headers, body = await bench.ask("record", {"test_id": TEST, "until": until, **fields}, timeout=60)
        except Exception:
            return None
        assert "Cypria-Error" not in headers, body
        return body

    return RecordReply.model_validate(await eventually(ask, every_s=0.1))


async def test_a_replay_after_a_restart_agrees_and_tampered_evidence_does_not(bench: Rig) -> None:
    _, verdict = await rolled_back(bench)
    until = verdict.details["windows_seq"]
    async with app(bench.server):  # another process than the one that decided
        reply = await record(bench, until)
        assert reply.state == "complete"
        assert reply.verdict == verdict
        assert [change.kind for change in reply.changes] == ["started", "rollback_requested", "rolled_back"]
        assert reply.changes[2].rule == verdict.rule
        assert reply.configuration is not None
        assert reply.configuration.salt == ""
        assert reply.status is not None
        assert any(guardrail.fired for guardrail in reply.status.guardrails)
        assert reply.series is not None
        assert reply.series.seconds[-1] == verdict.tick
        assert reply.series.log_e[verdict.rule][-1] == pytest.approx(verdict.log_e, rel=1e-5)
        # who asks for what happened alone gets that, and nothing is read for it
        told = await record(bench, evidence=False)
        assert (told.changes, told.configuration) == (reply.changes, reply.configuration)
        assert (told.series, told.status, told.ticks) == (None, None, 0)
        # asked again, it is not read again, and says the same
        assert (await record(bench, until)).model_dump() == reply.model_dump()
    provision = await bench.server.connect("provision")
    js = provision.jetstream()
    for sequence in range(until, 0, -1):
        window = (await js.get_msg("WINDOWS", sequence)).data
        if window and b'"variant":"b"' in window:
            await js.delete_msg("WINDOWS", sequence)
            break
    await provision.close()
    async with app(bench.server):
        tampered = (await record(bench, until)).verdict
    assert tampered is not None
    assert (tampered.decision, tampered.tick, tampered.log_e) != (verdict.decision, verdict.tick, verdict.log_e)


async def test_pages_of_evidence_lead_anybody_to_the_same_verdict(bench: Rig) -> None:
    _, verdict = await rolled_back(bench)
    query: dict[str, Any] = {"test_id": TEST, "until": verdict.details["windows_seq"], "limit": 3, "after": 0}
    ticks, evaluator = 0, None
    async with app(bench.server):
        await record(bench)
        while True:
            headers, body = await bench.ask("evidence", query, timeout=60)
            assert "Cypria-Error" not in headers, body
            page = EvidenceReply.model_validate(body)
            evaluator = evaluator or TestEvaluator(page.configuration)
            for tick in page.ticks:
                evaluator.tick(Tick(tick.second, tick.sequence, tuple(tick.cells)))
            ticks += len(page.ticks)
            query["after"] = page.last
            if page.complete:
                break
            assert len(page.ticks) == 3
    assert ticks == evaluator.ticks
    assert decide(evaluator) == verdict


async def test_a_running_test_is_read_on_from_where_it_was(bench: Rig) -> None:
    test = now_test()
    await bench.put(test)
    traffic = Traffic(5, per_second=10)
    async with app(bench.server):
        for _ in range(2):
            await bench.feed(traffic, lambda: bench.leases)
            before = sum(traffic.requests.values())
            for _ in range(3):
                await bench.publish([])
                await asyncio.sleep(1)
            reply = await record(bench)
            assert reply.state == "complete"
            assert reply.series is not None
            assert reply.series.n_a[-1] + reply.series.n_b[-1] == before
            bench.leases.clear()
        assert reply.verdict is not None
        assert reply.verdict.decision in {"inconclusive", "keep_a"}
        hurried = await record(bench, wait_ms=0)
        assert hurried.state in {"reading", "complete"}


async def test_evidence_that_has_aged_out_is_said_to_be_gone(bench: Rig) -> None:
    _, verdict = await rolled_back(bench)
    provision = await bench.server.connect("provision")
    await provision.jetstream().purge_stream("WINDOWS", seq=4)
    await provision.close()
    async with app(bench.server):
        reply = await record(bench, verdict.details["windows_seq"])
        assert reply.state == "gone"
        assert "aged out" in reply.message
        assert "sequence 4" in reply.message
        assert len(reply.changes) == 3
        headers, body = await bench.ask("evidence", {"test_id": TEST})
        assert headers["Cypria-Error"] == "1"
        assert body["code"] == "evidence_gone"
        later = await record(bench, 10_000_000)
        assert later.state == "gone"


async def test_a_test_that_nobody_knows_is_not_found(bench: Rig) -> None:
    async with app(bench.server):
        for name in ("record", "evidence"):

            async def unknown(name: str = name) -> bool:
                try:
                    headers, body = await bench.ask(name, {"test_id": "ab_test_never"})
                except Exception:
                    return False
                return headers.get("Cypria-Error") == "1" and body["code"] == "test_not_found"

            await eventually(unknown)
