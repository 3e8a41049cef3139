"""Every question that is answered from ClickHouse. Each method takes a client and runs on a reading thread."""

import json
from datetime import UTC, datetime
from typing import Any

from clickhouse_connect.driver.client import Client
from pydantic import ValidationError

from schemas.v1.common import TestStatus, rfc3339
from schemas.v1.experiment import TestResult, VariantSummary
from schemas.v1.query import AuditQuery, AuditReply, HistoryReply
from services._runtime.telemetry import get_logger
from services.metrics.domain.rows import SLOT_S
from services.metrics.domain.summary import THROUGHPUT_S, Totals, summary

log = get_logger(__name__)

_AUDIT_NAMES = (
    "at_ms", "actor", "role", "action", "target", "test_id", "source", "status", "outcome", "request_id", "before",
    "after", "needs", "changes",
)  # fmt: skip
_AUDIT = f"toUnixTimestamp64Milli(at), {', '.join(_AUDIT_NAMES[1:])}"
_AUDIT_BEFORE = f"toUnixTimestamp64Milli(at), {', '.join(_AUDIT_NAMES[1:-4])}, '', '', '', false"
_AUDIT_ROW = 300
"""Bytes of an audit record's names and numbers as JSON."""

_ENDED = ["completed", "rolled_back", "failed"]

_TOTALS = """
SELECT test, variant, sum(admitted), sum(done), sum(overdue), sum(overdue_done), sum(fallback), sumMap(outcomes),
    sum(latency_n), sum(latency_us), sumMap(latency_bins), sum(ttft_n), sum(ttft_us), sumMap(ttft_bins),
    sum(itl_n), sum(itl_us), sum(prompt_tokens), sum(completion_tokens), sum(cost_nano), sum(units_new_test),
    sum(gpu_us), sumMap(feedback), sum(cached_tokens), sumMap(map(toString(digest), done)),
    sumIf(done, slot >= fromUnixTimestamp({{since:UInt32}})), toUnixTimestamp(min(slot))
FROM {database}.window_cells
WHERE test IN {{tests:Array(String)}} AND test != ''
GROUP BY test, variant
ORDER BY test, variant
"""

_RESULTS = """
SELECT test_id, status, model_a, model_b, traffic_split_percent, reason, result, version, first_event_at, last_event_at
FROM {database}.tests
"""


class InvalidQuestionError(ValueError):
    """The question itself is wrong; the message names the field and the remedy."""


class Questions:
    """Questions about the past of one database."""

    def __init__(self, database: str) -> None:
        self._database = database

    def totals(self, client: Client, tests: list[str], now_s: float) -> dict[str, dict[str, VariantSummary]]:
        """Totals by test and variant; throughput over the last THROUGHPUT_S, or since the first request if later."""
        if not tests:
            return {}
        since = int(now_s - THROUGHPUT_S) // SLOT_S * SLOT_S + SLOT_S
        rows = client.query(
            _TOTALS.format(database=self._database), parameters={"tests": tests, "since": since}
        ).result_rows
        began: dict[str, int] = {}
        for row in rows:
            began[row[0]] = min(began.get(row[0], row[-1]), row[-1])
        found: dict[str, dict[str, VariantSummary]] = {}
        for test, variant, *sums, _first in rows:
            span = max(1.0, now_s - max(since, began[test]))
            found.setdefault(test, {})[variant] = summary(Totals(*sums), span)
        return found

    def history(self, client: Client, limit: int, offset: int) -> HistoryReply:
        """Ended tests, newest first, and how many there are."""
        where = "WHERE status IN {ended:Array(String)}"
        parameters: dict[str, Any] = {"ended": _ENDED, "limit": limit, "offset": offset}
        total = client.query(
            f"SELECT count() FROM {self._database}.tests {where}",  # noqa: S608
            parameters={"ended": _ENDED},
        ).result_rows[0][0]
        rows = client.query(
            f"{_RESULTS.format(database=self._database)} {where} "
            "ORDER BY last_event_at DESC, test_id DESC LIMIT {limit:UInt32} OFFSET {offset:UInt32}",
            parameters=parameters,
        ).result_rows
        return HistoryReply(tests=[_result(row) for row in rows], total_tests=int(total))

    def test(self, client: Client, test_id: str) -> TestResult | None:
        """One test as its last event left it."""
        rows = client.query(
            f"{_RESULTS.format(database=self._database)} WHERE test_id = {{test_id:String}}",
            parameters={"test_id": test_id},
        ).result_rows
        return _result(rows[0]) if rows else None

    def started_ms(self, client: Client, test_id: str) -> int | None:
        """When the first event of a test happened; None for an unknown test."""
        rows = client.query(
            f"SELECT toUnixTimestamp64Milli(min(first_event_at)) FROM {self._database}.tests "  # noqa: S608
            "WHERE test_id = {test_id:String} GROUP BY test_id",
            parameters={"test_id": test_id},
        ).result_rows
        return int(rows[0][0]) if rows else None

    def audit(self, client: Client, question: AuditQuery, room: int) -> AuditReply:
        """Audit records, newest first, of at most ``room`` bytes.

        Raises InvalidQuestionError for a ``since`` that is no time.
        """
        conditions = []
        parameters: dict[str, Any] = {"limit": question.limit + 1}
        if question.since:
            conditions.append("at >= fromUnixTimestamp64Milli({since:Int64})")
            parameters["since"] = _unix_ms(question.since)
        if question.actor:
            conditions.append("actor = {actor:String}")
            parameters["actor"] = question.actor
        where = "".join(f" AND {condition}" for condition in conditions)
        # Not through the view, which must look at all records: the newest stand at the end of the chain.
        rows = client.query(
            f"SELECT {_AUDIT} FROM {self._database}.audit_chain WHERE sequence > 0 AND event_id != ''{where} "  # noqa: S608
            "ORDER BY stream_created DESC, sequence DESC LIMIT 1 BY event_id LIMIT {limit:UInt32}",
            parameters=parameters,
        ).result_rows
        if len(rows) <= question.limit:
            parameters["limit"] -= len(rows)
            rows = [*rows, *client.query(
                f"SELECT {_AUDIT_BEFORE} FROM {self._database}.audit_events FINAL WHERE NOT startsWith(event_id, '@') "  # noqa: S608
                f"AND event_id NOT IN (SELECT event_id FROM {self._database}.audit_chain "
                f"WHERE event_id IN (SELECT event_id FROM {self._database}.audit_events)){where} "
                "ORDER BY at DESC, event_id DESC LIMIT {limit:UInt32}",
                parameters=parameters,
            ).result_rows]  # fmt: skip
        reply = AuditReply()
        for row in rows:
            record = dict(zip(_AUDIT_NAMES, row, strict=True))
            room -= _AUDIT_ROW + sum(4 * len(text) for text in row if isinstance(text, str))
            if len(reply.records) == question.limit or room < 0:
                reply.more = True
                break
            record["at"] = rfc3339(record["at_ms"])
            for side in ("before", "after"):
                record[side] = json.loads(record[side]) if record[side] else None
            reply.records.append(record)
        return reply


def _unix_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidQuestionError(
            f"since: '{text[:40]}' is not a time: give RFC 3339, such as 2025-01-01T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, int(moment.timestamp() * 1000))


def _result(row: Any) -> TestResult:
    test_id, status, model_a, model_b, split, reason, text, version, first, last = row
    state = TestStatus(status)
    if text:
        try:
            result = TestResult.model_validate_json(text)
        except ValidationError:
            log.exception("stored_result_unreadable", test_id=test_id)
        else:
            return result.model_copy(update={"status": state})
    ended = status in _ENDED
    return TestResult(
        test_id=test_id, status=state, reason=reason or None, start_time=_time(first),
        end_time=_time(last) if ended else None, models={"variant_a": model_a, "variant_b": model_b},
        traffic_split_percent=split, version=version,
    )  # fmt: skip


def _time(moment: datetime) -> str:
    utc = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return rfc3339(int(utc.timestamp() * 1000))
