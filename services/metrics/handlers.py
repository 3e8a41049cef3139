"""Questions about the past: decode, ask the repository, answer."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from faststream.nats import NatsBroker, NatsMessage
from pydantic import ValidationError

from schemas import subjects
from schemas.v1.common import Message
from schemas.v1.query import (
    AuditQuery,
    AuditReply,
    AuditVerification,
    AuditVerifyQuery,
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
from schemas.v1.units import UnitQuery, UnitReply
from services._runtime.bus import TRANSIENT
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.metrics.adapters import meters
from services.metrics.adapters.audit_checks import AuditChecks
from services.metrics.adapters.clickhouse import AWAY, ClickHouse
from services.metrics.adapters.clickhouse_queries import InvalidQuestionError, Questions
from services.metrics.adapters.nats_evidence import Evidence
from services.metrics.adapters.nats_unit_search import NotErasedError, UnitSearch

log = get_logger(__name__)

ERROR_HEADERS = {"Cypria-Error": "1"}
Q = TypeVar("Q", bound=Message)


class UnknownTestError(LookupError):
    """There is no test of that id."""


class Answers:
    """One method for each question."""

    def __init__(self, engine: ClickHouse, evidence: Evidence, checks: AuditChecks, units: UnitSearch) -> None:
        self._engine = engine
        self._evidence = evidence
        self._checks = checks
        self._units = units
        self._questions = Questions(engine.database)

    async def totals(self, question: TotalsQuery) -> TotalsReply:
        """Totals of some tests since they began."""
        now_s = now_ms() / 1000
        found = await self._engine.read(lambda client: self._questions.totals(client, question.tests, now_s))
        return TotalsReply(tests=found)

    async def history(self, question: HistoryQuery) -> HistoryReply:
        """Ended tests, newest first."""
        return await self._engine.read(lambda client: self._questions.history(client, question.limit, question.offset))

    async def test(self, question: TestQuery) -> TestReply:
        """One test, null when unknown."""
        return TestReply(result=await self._engine.read(lambda client: self._questions.test(client, question.test_id)))

    async def audit(self, question: AuditQuery) -> AuditReply:
        """Audit records, newest first."""
        room = self._checks.room()
        return await self._engine.read(lambda client: self._questions.audit(client, question, room))

    async def audit_verify(self, question: AuditVerifyQuery) -> AuditVerification:
        """A page of the check of the audit's chain."""
        found = await self._checks.verify(question)
        if found.problem is not None:
            meters.AUDIT_CHECKS.labels("pinned" if found.problem.kind == "pinned" else "broken").inc()
        elif found.complete:
            meters.AUDIT_CHECKS.labels("whole").inc()
        return found

    async def windows(self, question: WindowsQuery) -> WindowsReply:
        """A page of a test's evidence. Raises UnknownTestError."""
        started = await self._engine.read(lambda client: self._questions.started_ms(client, question.test_id))
        if started is None:
            raise UnknownTestError(f"there is no test '{question.test_id}' in the history")
        return await self._evidence.page(question, started)

    async def unit(self, question: UnitQuery) -> UnitReply:
        """A page of what is held on a unit of a test; raises NotErasedError."""
        return await self._units.page(question)


def subscribe(broker: NatsBroker, answers: Answers) -> None:
    """Answer every question. No queue group, so that a stopped replica swallows none; the first answer counts."""
    _on(broker, "totals", TotalsQuery, answers.totals)
    _on(broker, "history", HistoryQuery, answers.history)
    _on(broker, "test", TestQuery, answers.test)
    _on(broker, "audit", AuditQuery, answers.audit)
    _on(broker, "audit_verify", AuditVerifyQuery, answers.audit_verify)
    _on(broker, "windows", WindowsQuery, answers.windows)
    _on(broker, "unit", UnitQuery, answers.unit)


def _on(broker: NatsBroker, name: str, kind: type[Q], answer: Callable[[Q], Awaitable[Message]]) -> None:
    async def handle(message: NatsMessage) -> None:
        with meters.QUERIES.labels(name).time():
            reply = await _answered(name, kind, answer, message.body)
        if not message.reply_to:
            return
        failed = isinstance(reply, QueryError)
        if failed:
            meters.QUERY_ERRORS.labels(name).inc()
        await broker.publish(
            reply.model_dump_json().encode(), message.reply_to, headers=ERROR_HEADERS if failed else None
        )

    broker.subscriber(subjects.query(name), no_reply=True, title=f"query.{name}")(handle)


async def _answered(name: str, kind: type[Q], answer: Callable[[Q], Awaitable[Message]], body: bytes) -> Message:
    try:
        return await answer(kind.model_validate_json(body))
    except (ValidationError, InvalidQuestionError) as exc:
        return QueryError(message=_explain(exc), code="invalid")
    except (NotErasedError, UnknownTestError) as exc:
        return QueryError(message=str(exc), code="conflict" if isinstance(exc, NotErasedError) else "unknown_test")
    except AWAY as exc:
        log.warning("query_failed", query=name, error=str(exc)[:300])
        return QueryError(message="ClickHouse does not answer: try again, or look at the log of metrics")
    except TRANSIENT as exc:
        log.warning("query_failed", query=name, error=repr(exc))
        return QueryError(message="the bus does not answer metrics: try again")
    except Exception:
        log.exception("query_failed", query=name)
        return QueryError(message="metrics failed to answer: look at its log", code="internal")


def _explain(exc: ValidationError | InvalidQuestionError) -> str:
    if isinstance(exc, InvalidQuestionError):
        return str(exc)
    first: Any = exc.errors(include_input=False, include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "(whole message)"
    return f"{field}: {first['msg']}"
