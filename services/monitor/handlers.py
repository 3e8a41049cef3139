"""`cypria.verdict.<name>`: decode, ask the watcher and the domain, answer. Any replica may answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from faststream.nats import NatsBroker, NatsMessage, NatsResponse
from pydantic import ValidationError
from pydantic_core import from_json

from schemas import subjects
from schemas.v1.common import Message, rfc3339
from schemas.v1.query import (
    FinalVerdict,
    FinalVerdictQuery,
    MonitoringStatus,
    QueryError,
    VerdictQuery,
)
from schemas.v1.record import EvidenceQuery, EvidenceReply, RecordQuery
from services._runtime.clock import monotonic, now_ms
from services._runtime.telemetry import get_logger
from services.monitor.domain import verdict
from services.monitor.records import Records
from services.monitor.track import Track
from services.monitor.watcher import Watcher

log = get_logger(__name__)

QUEUE = "monitors"
_CONTENT = {"content-type": "application/json"}


def register(broker: NatsBroker, watcher: Watcher, records: Records) -> None:
    """Subscribe the five questions."""

    @broker.subscriber(subjects.verdict("status"), queue=QUEUE, max_workers=16)
    async def status(message: NatsMessage) -> NatsResponse:
        return await _answer(_status, watcher, message)

    @broker.subscriber(subjects.verdict("final"), queue=QUEUE, max_workers=16)
    async def final(message: NatsMessage) -> NatsResponse:
        return await _answer(_final, watcher, message)

    @broker.subscriber(subjects.verdict("monitoring"), queue=QUEUE, max_workers=4)
    async def monitoring(message: NatsMessage) -> NatsResponse:
        return await _answer(_monitoring, watcher, message)

    @broker.subscriber(subjects.verdict("record"), queue=QUEUE, max_workers=16)
    async def record(message: NatsMessage) -> NatsResponse:
        return await _answer(_record, records, message)

    @broker.subscriber(subjects.verdict("evidence"), queue=QUEUE, max_workers=2)
    async def evidence(message: NatsMessage) -> NatsResponse:
        return await _answer(_evidence, records, message)


async def _answer(
    question: Callable[[Any, bytes], Awaitable[Message]], asked: Watcher | Records, message: NatsMessage
) -> NatsResponse:
    try:
        reply = await question(asked, message.body)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        reply = QueryError(message=f"{field or 'body'}: {first['msg']}", code="bad_request")
    except Exception as exc:
        log.exception("question_failed")
        reply = QueryError(message=f"the monitor failed to answer: {type(exc).__name__}", code="internal")
    headers = _CONTENT | {"Cypria-Error": "1"} if isinstance(reply, QueryError) else _CONTENT
    return NatsResponse(_encode(reply), headers=headers)


def _encode(reply: Message) -> bytes:
    if not isinstance(reply, EvidenceReply):
        return reply.model_dump_json().encode()
    # A day's ticks are many and most fields of a cell are at their default: those are left out.
    body = reply.model_dump(mode="json", exclude={"ticks"})
    body["ticks"] = [tick.model_dump(mode="json", exclude_defaults=True) for tick in reply.ticks]
    return json.dumps(body, separators=(",", ":")).encode()


async def _record(records: Records, body: bytes) -> Message:
    return await records.record(RecordQuery.model_validate_json(body))


async def _evidence(records: Records, body: bytes) -> Message:
    return await records.evidence(EvidenceQuery.model_validate_json(body))


def _unknown(test_id: str) -> QueryError:
    return QueryError(
        message=f"the monitor does not watch test '{test_id}': it has not started, has ended, or is not known yet",
        code="test_not_found",
    )


async def _status(watcher: Watcher, body: bytes) -> Message:
    query = VerdictQuery.model_validate_json(body)
    track = watcher.tracks.get(query.test_id)
    if track is None:
        return _unknown(query.test_id)
    status = verdict.status(track.evaluator)
    if not track.joined:
        status.summary = f"still reading the evidence, {watcher.sequence - track.ticker.sequence} windows to go"
    return status


async def _final(watcher: Watcher, body: bytes) -> Message:
    query = FinalVerdictQuery.model_validate_json(body)
    deadline = monotonic() + query.deadline_ms / 1000
    complete = await _until(watcher, deadline, lambda: _contains(watcher, query))
    track = watcher.tracks.get(query.test_id)
    if track is None:
        return _unknown(query.test_id)
    evaluator = track.as_of_now()
    record = verdict.decide(evaluator)
    if not complete:
        record.details["incomplete"] = "the last facts had not arrived when the verdict was due"
    return FinalVerdict(verdict=record, metrics_summary=evaluator.totals.summaries(), complete=complete)


async def _until(watcher: Watcher, deadline: float, check: Any) -> bool:
    async with watcher.progress:
        while not check():
            left = deadline - monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(watcher.progress.wait(), left)
            except TimeoutError:
                return bool(check())
    return True


def _contains(watcher: Watcher, query: FinalVerdictQuery) -> bool:
    """Whether the test has caught up and its evidence contains every batch that its routers have flushed."""
    track: Track | None = watcher.tracks.get(query.test_id)
    if track is None or not track.joined:
        return False
    return all(
        watcher.batches.get(partition, {}).get(router, 0) >= n
        for router, partitions in query.flushed.items()
        for partition, n in partitions.items()
    )


async def _monitoring(watcher: Watcher, body: bytes) -> Message:
    try:
        fits = not body or isinstance(from_json(body), dict)
    except ValueError:
        fits = False
    if not fits:
        return QueryError(message="body: an object is needed", code="bad_request")
    state, now = watcher.experiments.monitoring, monotonic()
    return MonitoringStatus(
        monitoring_active=state.active,
        check_interval_seconds=state.check_interval_seconds,
        leader_of=sorted(test_id for test_id, track in watcher.tracks.items() if track.leads(now)),
        last_check=None if watcher.checked_ms is None else rfc3339(watcher.checked_ms),
        checks_total=watcher.checks_total,
        consecutive_check_failures=max(
            (max(track.blind, track.evaluator.health.consecutive) for track in watcher.tracks.values()), default=0
        ),
        windows_seq=watcher.sequence,
        lag_seconds=None if watcher.window_ms is None else max(0.0, (now_ms() - watcher.window_ms) / 1000),
    )
