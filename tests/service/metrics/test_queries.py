"""Questions over the bus, answered by the real service from what came over the bus."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest

from schemas import sketch, streams, subjects
from schemas.v1.alerts import Alert, AuditRecord
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import AlertLevel, Decision, Message, Outcome, TestStatus, rfc3339
from schemas.v1.events import TestEvent
from schemas.v1.experiment import TestResult
from schemas.v1.facts import Admitted, Fact, FactBatch, TestClock
from schemas.v1.query import (
    AuditQuery,
    AuditReply,
    HistoryQuery,
    HistoryReply,
    QueryError,
    TestQuery,
    TestReply,
    TotalsQuery,
    TotalsReply,
    WindowsQuery,
    WindowsReply,
)
from services._runtime.clock import now_ms
from tests.harness import NatsServer, eventually
from tests.service.metrics.process import Metrics, ask

T0 = now_ms() // 60_000 * 60_000 - 3_600_000
"""Recent: what is older than the retention goes at once."""


@dataclass
class Running:
    metrics: Metrics
    nc: nats.NATS
    server: NatsServer

    async def publish(self, subject: str, kind: str, event_id: str, at_ms: int, data: Message) -> None:
        event = envelope(kind, event_id, "router", at_ms, data)
        await self.nc.jetstream().publish(subject, dump(event), headers={"Nats-Msg-Id": event_id})

    async def ended(self, number: int, status: TestStatus = TestStatus.COMPLETED, *, result: bool = True) -> None:
        test = f"ab_test_{number}"
        at = T0 + number * 60_000
        started = TestEvent(test_id=test, version=1, status=TestStatus.RUNNING, model_a="m", model_b="n", share_bp=1000, at_ms=at)
        await self.publish(subjects.event("test.started"), "test.started", f"{test}.1.0", at, started)
        final = TestResult(test_id=test, status=status, decision=Decision.KEEP_A, reason="because", version=2) if result else None
        end = started.model_copy(update={"version": 2, "status": status, "at_ms": at + 30_000, "result": final, "reason": "because"})
        kind = f"test.{status.value}"
        await self.publish(subjects.event(kind), kind, f"{test}.2.0", at + 30_000, end)


@pytest.fixture
async def running(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Running]:
    metrics = Metrics(nats_server, tmp_path / "metrics", f"chdb://{tmp_path / 'chdb'}")
    with contextlib.ExitStack() as stack:
        metrics.start()
        stack.callback(metrics.kill)
        await metrics.ready()
        nc = await nats_server.connect("router")
        yield Running(metrics, nc, nats_server)
        await nc.close()


async def answer(running: Running, name: str, question: Message, kind: type[Any]) -> Any:
    failed, body = await ask(running.nc, name, question)
    assert not failed, body
    return kind.model_validate_json(body)


async def test_history_and_single_tests(running: Running) -> None:
    for number in (1, 2, 3):
        await running.ended(number, TestStatus.ROLLED_BACK if number == 2 else TestStatus.COMPLETED)
    await running.ended(4, TestStatus.FAILED, result=False)
    live = TestEvent(test_id="ab_test_9", version=1, status=TestStatus.RUNNING, model_a="m", model_b="n", share_bp=1000, at_ms=T0)
    await running.publish(subjects.event("test.started"), "test.started", "ab_test_9.1.0", T0, live)

    async def history(limit: int = 50, offset: int = 0) -> HistoryReply:
        return await answer(running, "history", HistoryQuery(limit=limit, offset=offset), HistoryReply)

    async def all_there() -> bool:
        known = (await answer(running, "test", TestQuery(test_id="ab_test_9"), TestReply)).result
        return known is not None and (await history()).total_tests == 4

    await eventually(all_there)
    page = await history()
    assert [t.test_id for t in page.tests] == ["ab_test_4", "ab_test_3", "ab_test_2", "ab_test_1"]
    assert page.tests[2].status is TestStatus.ROLLED_BACK
    assert page.tests[1].decision is Decision.KEEP_A
    assert page.tests[0].reason == "because"
    assert page.tests[0].models == {"variant_a": "m", "variant_b": "n"}
    assert page.tests[0].traffic_split_percent == 10
    assert page.tests[0].end_time == rfc3339(T0 + 270_000)
    second = await history(2, 1)
    assert [t.test_id for t in second.tests] == ["ab_test_3", "ab_test_2"]
    assert second.total_tests == 4
    assert (await answer(running, "test", TestQuery(test_id="ab_test_2"), TestReply)).result.decision is Decision.KEEP_A
    assert (await answer(running, "test", TestQuery(test_id="ab_test_9"), TestReply)).result.status is TestStatus.RUNNING
    assert (await answer(running, "test", TestQuery(test_id="nope' OR 1"), TestReply)).result is None


async def test_an_event_that_comes_twice_is_one_row_also_across_a_restart(running: Running) -> None:
    for number in (1, 2):
        await running.ended(number)
    js = running.nc.jetstream()
    stored = await js.get_msg(streams.EVENTS.name, 2)
    await js.publish(stored.subject, stored.data)
    record = AuditRecord(at_ms=T0, actor="ops", role="admin", action="start", source="bus", status=200, outcome="ok", request_id="r1")
    for _ in range(2):
        event = dump(envelope("audit", "audit-1", "router", T0, record))
        await js.publish(subjects.audit("router"), event)
    running.metrics.kill()
    running.metrics.start()
    await running.metrics.ready()

    async def taken_in() -> bool:
        history = await answer(running, "history", HistoryQuery(), HistoryReply)
        audit = await answer(running, "audit", AuditQuery(), AuditReply)
        return history.total_tests == 2 and len(audit.records) == 1

    await eventually(taken_in)


async def test_audit(running: Running) -> None:
    for i, actor in enumerate(["ops", "app", "ops"]):
        record = AuditRecord(
            at_ms=T0 + i * 1000, actor=actor, role="admin", action="test.start", target="stable", test_id=f"ab_test_{i}",
            source="ab12", status=200 + i, outcome="ok", request_id=f"r{i}",
        )  # fmt: skip
        await running.publish(subjects.audit("router"), "audit", f"audit-{i}", T0 + i * 1000, record)

    async def records(**question: Any) -> list[dict[str, Any]]:
        return (await answer(running, "audit", AuditQuery(**question), AuditReply)).records

    async def three() -> bool:
        return len(await records()) == 3

    await eventually(three)
    everything = await records()
    assert [r["request_id"] for r in everything] == ["r2", "r1", "r0"]
    assert everything[0] == {
        "at": rfc3339(T0 + 2000), "at_ms": T0 + 2000, "actor": "ops", "role": "admin", "action": "test.start",
        "target": "stable", "test_id": "ab_test_2", "source": "ab12", "status": 202, "outcome": "ok", "request_id": "r2",
        "before": None, "after": None, "needs": "", "changes": False,
    }  # fmt: skip
    assert [r["request_id"] for r in await records(actor="ops", limit=1)] == ["r2"]
    assert [r["request_id"] for r in await records(since=rfc3339(T0 + 1000))] == ["r2", "r1"]
    failed, body = await ask(running.nc, "audit", AuditQuery(since="yesterday"))
    assert failed
    assert QueryError.model_validate_json(body).code == "invalid"


async def test_bad_questions_are_refused_naming_the_field(running: Running) -> None:
    for name, body in [("totals", b"{"), ("totals", b'{"tests":"x"}'), ("history", b'{"limit":0}'), ("windows", b"\xff"), ("test", b"{}")]:
        failed, reply = await ask(running.nc, name, body)
        assert failed, (name, body)
        error = QueryError.model_validate_json(reply)
        assert error.code == "invalid"
        assert error.message
    failed, reply = await ask(running.nc, "windows", WindowsQuery(test_id="nope"))
    assert failed
    assert QueryError.model_validate_json(reply).code == "unknown_test"


async def test_totals_and_evidence(running: Running) -> None:
    test = "ab_test_5"
    latencies = [1000 * (i + 1) for i in range(100)]
    facts = [Fact(test=test, variant="a", share_bp=1000, unit=f"{i * 8:016x}", latency_us=x, ttft_us=x // 10, itl_us=50,
                  prompt_tokens=10, completion_tokens=20, cost_nano=5, cached_tokens=3, digest=f"sha256:{i // 75}") for i, x in enumerate(latencies)]  # fmt: skip
    b: dict[str, Any] = {"test": test, "variant": "b", "share_bp": 1000, "sticky": False}
    facts += [
        Fact(**b, unit=f"{1:016x}", outcome=Outcome.TIMEOUT, fallback=True, latency_us=10),
        Fact(**b, unit=f"{2:016x}", outcome=Outcome.CLIENT_ERROR),
        Fact(**b, unit=f"{3:016x}", outcome=Outcome.CLIENT_CANCEL, latency_us=7),
        Fact(**b, unit=f"{4:016x}", outcome=Outcome.LENGTH, latency_us=8000),
        Fact(**b, unit=f"{5:016x}", kind="overdue"),
    ]
    await running.ended(5)
    started = now_ms()
    event = TestEvent(test_id=test, version=1, status=TestStatus.RUNNING, model_a="m", model_b="n", share_bp=1000, at_ms=started)
    await running.publish(subjects.event("test.started"), "test.started", f"{test}.9.0", started, event)
    batch = FactBatch(
        router_epoch="r1", partition=0, n=1, facts=facts, tests={test: TestClock(started_ms=started, epoch_seconds=600)},
        admitted=[Admitted(test=test, variant="a", share_bp=1000, count=100), Admitted(test=test, variant="b", share_bp=1000, count=6)],
    )  # fmt: skip
    await running.nc.jetstream().publish(subjects.metric(0), batch.model_dump_json().encode())

    async def totals() -> dict[str, Any]:
        found = await answer(running, "totals", TotalsQuery(tests=[test, "unknown"]), TotalsReply)
        return found.tests.get(test, {})

    await eventually(totals)
    found = await totals()
    a, b_side = found["a"], found["b"]
    assert (a.request_count, a.error_rate, a.success_rate, a.in_flight, a.units) == (100, 0.0, 100.0, 0, 100)
    assert a.avg_latency_ms == pytest.approx(50.5)
    assert a.latency_p50_ms == sketch.quantile({sketch.bin_index(x): 1 for x in latencies[49:50]}, 0.5) / 1000  # type: ignore[operator]
    assert a.latency_p99_ms == pytest.approx(99, rel=0.02)
    assert a.ttft_p95_ms == pytest.approx(9.5, rel=0.02)
    assert a.avg_inter_token_ms == pytest.approx(0.05)
    assert (a.prompt_tokens, a.completion_tokens, a.cost) == (1000, 2000, pytest.approx(5e-7))
    assert (a.cached_tokens, a.digests, b_side.digests) == (300, {"sha256:0": 75, "sha256:1": 25}, {})
    assert 100 / 61 <= a.throughput_rps <= 100
    assert (b_side.request_count, b_side.error_count, b_side.client_errors, b_side.client_cancels) == (3, 1, 1, 1)
    assert (b_side.successful_requests, b_side.in_flight, b_side.overdue, b_side.fallback_count) == (1, 2, 1, 1)
    assert b_side.error_rate == pytest.approx(100 / 3)
    assert b_side.success_rate == pytest.approx(100 / 3)
    assert b_side.outcomes == {"timeout": 1, "client_error": 1, "client_cancel": 1, "length": 1}
    assert b_side.avg_latency_ms == 8.0

    pages: list[WindowsReply] = []
    after = 0
    while not pages or not pages[-1].complete:
        pages.append(await answer(running, "windows", WindowsQuery(test_id=test, after=after, limit=10), WindowsReply))
        after = pages[-1].last
    windows = [w for page in pages for w in page.windows]
    assert [w.sequence for w in windows] == sorted({w.sequence for w in windows})
    assert sum(c.done for w in windows for c in w.window.cells) == 103
    assert all(not w.window.new_units for w in windows)
    assert {c.test for w in windows for c in w.window.cells} == {test}


async def test_views_alerts_poison_and_operations(running: Running) -> None:
    alert = Alert(incident="i1", level=AlertLevel.CRITICAL, title="T", message="M", at_ms=T0, value=1.5, n=3)
    await running.publish(subjects.alert("CRITICAL"), "alert", "alert-1", T0, alert)
    js = running.nc.jetstream()
    for poison in (b"{", b"[]", b'{"id":"x","type":"cypria.test.started.v1","data":{"test_id":5}}', b'{"id":"","data":{}}'):
        await js.publish(subjects.event("test.started"), poison)
    await running.ended(1)

    def client() -> Any:
        import clickhouse_connect

        front = running.metrics.front()
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=front["port"], username=front["user"], password=front["password"], database="cypria"
        )

    reader = await asyncio.to_thread(client)

    def taken_in() -> bool:
        return (
            reader.query("SELECT level, title, value, n FROM alerts").result_rows == [("CRITICAL", "T", 1.5, 3)]
            and reader.query("SELECT test_id, status, decision FROM tests").result_rows == [("ab_test_1", "completed", "keep_a")]
        )

    await eventually(lambda: asyncio.to_thread(taken_in))
    provision = await running.server.connect("provision")

    async def letters() -> bool:
        return (await provision.jetstream().stream_info(streams.DLQ.name)).state.messages == 4

    await eventually(letters)
    await provision.close()
    assert (running.metrics.folder / "clickhouse-http.json").stat().st_mode & 0o777 == 0o600
    for path in ("/health", "/ready"):
        status, body = await asyncio.to_thread(running.metrics.get, path)
        assert status == 200
        assert json.loads(body)["service"] == "metrics"
    status, body = await asyncio.to_thread(running.metrics.get, "/metrics")
    assert status == 200
    assert "cypria_metrics_windows_total" in body
    address = running.metrics.front()
    running.metrics.kill()
    running.metrics.start()
    await running.metrics.ready()
    assert running.metrics.front() == address
