"""Feedback through the real service into the real engine: exact over redelivery and kill -9, and in the views."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import clickhouse_connect

from schemas import subjects
from schemas.v1.common import TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.facts import Fact, FactBatch, Feedback, TestClock
from schemas.v1.query import TotalsQuery, TotalsReply
from services._runtime.clock import now_ms
from tests.harness import NatsServer, eventually
from tests.service.metrics.process import Metrics
from tests.service.metrics.test_queries import Running, answer

TEST = "ab_test_fb"


def said(token: int, **values: Any) -> Feedback:
    expires = now_ms() // 1000 + 7 * 86_400
    return Feedback(test=TEST, variant="b", share_bp=1000, unit=f"{token * 8:016x}", id=f"{token * 8:016x}",
                    expires_s=expires, **values)  # fmt: skip


async def send(running: Running, n: int, feedback: list[Feedback], facts: list[Fact] | None = None) -> None:
    batch = FactBatch(
        router_epoch="r1", partition=0, n=n, facts=facts or [], feedback=feedback,
        tests={TEST: TestClock(started_ms=now_ms() - 60_000, epoch_seconds=600)},
    )  # fmt: skip
    await running.nc.jetstream().publish(subjects.metric(0), batch.model_dump_json().encode())


def view(running: Running) -> list[tuple[Any, ...]]:
    front = running.metrics.front()
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=front["port"], username=front["user"], password=front["password"], database="cypria"
    )
    with contextlib.closing(client):
        return [tuple(row) for row in client.query(
            "SELECT sum(thumbs_up), sum(thumbs_down), sum(scores), sum(conversions), sum(conversion_answers), "
            "max(cost_per_request_dollars), max(tokens_per_gpu_second) FROM variant_metrics_1h WHERE variant = 'b'"
        ).result_rows]  # fmt: skip


async def test_feedback_counts_once_over_a_kill_and_shows_in_totals_and_views(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    metrics = Metrics(nats_server, tmp_path / "metrics", f"chdb://{tmp_path / 'chdb'}")
    with contextlib.ExitStack() as stack:
        metrics.start()
        stack.callback(metrics.kill)
        await metrics.ready()
        nc = await nats_server.connect("router")
        running = Running(metrics, nc, nats_server)
        at = now_ms()
        live = TestEvent(test_id=TEST, version=1, status=TestStatus.RUNNING, model_a="m", model_b="n", share_bp=1000, at_ms=at)
        await running.publish(subjects.event("test.started"), "test.started", f"{TEST}.1.0", at, live)
        fact = Fact(test=TEST, variant="b", share_bp=1000, unit=f"{8:016x}", latency_us=1000, completion_tokens=300,
                    cost_nano=2_000_000, gpu_us=500_000)  # fmt: skip
        values: dict[str, Any] = {"thumbs_up": True, "converted": False, "score_micro": 4_000_000}
        await send(running, 1, [said(i, **values) for i in range(10)], [fact] * 5)
        await send(running, 2, [said(10, thumbs_up=False), said(11, converted=True)])

        async def figures() -> tuple[Any, ...] | None:
            found = (await answer(running, "totals", TotalsQuery(tests=[TEST]), TotalsReply)).tests.get(TEST)
            if not found:
                return None
            b = found["b"]
            return (b.thumbs_up, b.thumbs_down, b.satisfaction_count, b.satisfaction_score, b.conversion_count, b.conversions,
                    b.cost_per_request, b.tokens_per_gpu_second)  # fmt: skip

        expected = (10, 1, 10, 4.0, 11, 1, 0.002, 600.0)

        async def as_expected() -> bool:
            return await figures() == expected

        await eventually(as_expected)
        metrics.kill()
        await send(running, 2, [said(10, thumbs_up=False), said(11, converted=True)])
        await send(running, 3, [said(i, thumbs_up=False, converted=True, score_micro=1_000_000) for i in range(10)])
        metrics.start()
        await metrics.ready()
        await send(running, 4, [said(12, thumbs_up=True)])
        expected = (11, 1, 10, 4.0, 11, 1, 0.002, 600.0)
        await eventually(as_expected)
        assert await asyncio.to_thread(view, running) == [(11, 1, 10, 1, 11, 0.002, 600.0)]
        await nc.close()
