"""Questions to metrics, monitor and alerts over the bus."""

from typing import Any, TypeVar

from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from pydantic import ValidationError

from schemas import subjects
from schemas.v1 import query as q
from schemas.v1 import record as r
from schemas.v1.common import Message
from schemas.v1.experiment import TestResult, VariantSummary
from schemas.v1.units import UnitQuery, UnitReply
from services._runtime import bus as runtime
from services._runtime.telemetry import get_logger
from services.router.domain.refusals import Conflict, Gone, NotFound, Unavailable, Unprocessable, UpstreamTimeout

log = get_logger(__name__)

T = TypeVar("T", bound=Message)

ERROR_HEADER = "Cypria-Error"
_NOT_FOUND = {"not_found", "unknown_test", "test_not_found"}
_INVALID = {"invalid", "invalid_request", "bad_request"}


class Queries:
    """Every method raises Unavailable (nobody there), UpstreamTimeout (no answer in time) or NotFound."""

    def __init__(self, bus: runtime.Bus) -> None:
        self._bus = bus

    async def totals(self, tests: list[str], timeout_s: float = 1.5) -> dict[str, dict[str, VariantSummary]]:
        """Totals by test and variant (``a``, ``b``)."""
        message = q.TotalsQuery(tests=tests)
        return (await self._ask("metrics", subjects.query("totals"), message, q.TotalsReply, timeout_s)).tests

    async def history(self, limit: int, offset: int) -> q.HistoryReply:
        """Ended tests, newest first."""
        message = q.HistoryQuery(limit=limit, offset=offset)
        return await self._ask("metrics", subjects.query("history"), message, q.HistoryReply, 5)

    async def test(self, test_id: str) -> TestResult | None:
        """One ended test."""
        message = q.TestQuery(test_id=test_id)
        try:
            return (await self._ask("metrics", subjects.query("test"), message, q.TestReply, 5)).result
        except NotFound:
            return None

    async def audit(self, message: q.AuditQuery) -> q.AuditReply:
        """Audit records, newest first."""
        return await self._ask("metrics", subjects.query("audit"), message, q.AuditReply, 5)

    async def audit_verify(self, message: q.AuditVerifyQuery) -> q.AuditVerification:
        """A page of the check of the audit's chain."""
        return await self._ask("metrics", subjects.query("audit_verify"), message, q.AuditVerification, 20)

    async def unit(self, message: UnitQuery) -> UnitReply:
        """A page of what a stream holds of a unit of a test."""
        return await self._ask("metrics", subjects.query("unit"), message, UnitReply, 10)

    async def alerts(self, message: q.AlertsQuery) -> q.AlertsReply:
        """Alerts, newest first."""
        return await self._ask("alerts", subjects.query("alerts"), message, q.AlertsReply, 5)

    async def alerts_test(self) -> q.AlertTestReply:
        """A test alert to every destination; each has up to 20 s."""
        return await self._ask("alerts", subjects.alerts("test"), None, q.AlertTestReply, 25)

    async def alerts_redrive(self, message: q.RedriveQuery) -> q.RedriveReply:
        """Dead letters back into ALERTS."""
        return await self._ask("alerts", subjects.alerts("redrive"), message, q.RedriveReply, 25)

    async def integrations(self) -> q.IntegrationsReply:
        """How each integration stands."""
        return await self._ask("alerts", subjects.alerts("integrations"), None, q.IntegrationsReply, 15)

    async def integrations_test(self, message: q.IntegrationQuery) -> q.IntegrationsTestReply:
        """Whether integrations could be told something; each has up to 20 s."""
        return await self._ask("alerts", subjects.alerts("integrations-test"), message, q.IntegrationsTestReply, 25)

    async def integrations_redrive(self, message: q.IntegrationQuery) -> q.RedriveReply:
        """Dead letters back into INTEGRATIONS."""
        return await self._ask("alerts", subjects.alerts("integrations-redrive"), message, q.RedriveReply, 25)

    async def verdict(self, test_id: str, timeout_s: float = 1.5) -> q.VerdictStatus:
        """How the evidence of a test stands."""
        message = q.VerdictQuery(test_id=test_id)
        return await self._ask("monitor", subjects.verdict("status"), message, q.VerdictStatus, timeout_s)

    async def final_verdict(self, message: q.FinalVerdictQuery, timeout_s: float) -> q.FinalVerdict:
        """The decision of a test that is being stopped."""
        return await self._ask("monitor", subjects.verdict("final"), message, q.FinalVerdict, timeout_s)

    async def record(self, message: r.RecordQuery) -> r.RecordReply:
        """What a test's evidence says, read again from its start."""
        wait_s = message.wait_ms / 1000 + 10
        return await self._ask("monitor", subjects.verdict("record"), message, r.RecordReply, wait_s)

    async def evidence(self, message: r.EvidenceQuery) -> bytes:
        """A page of a test's evidence, as the monitor encoded it: too much to be read just to be written again."""
        payload = message.model_dump_json().encode()
        headers, body = await ask(self._bus, "monitor", subjects.verdict("evidence"), payload, 30)
        if ERROR_HEADER in headers:
            raise _refusal("monitor", body)
        return body

    async def monitoring(self, timeout_s: float = 1.5) -> q.MonitoringStatus:
        """The health of the monitor itself."""
        return await self._ask("monitor", subjects.verdict("monitoring"), None, q.MonitoringStatus, timeout_s)

    async def _ask(
        self, who: str, subject: str, message: Message | None, reply_type: type[T], timeout_s: float
    ) -> T:
        payload = message.model_dump_json().encode() if message is not None else b"{}"
        headers, body = await ask(self._bus, who, subject, payload, timeout_s)
        if ERROR_HEADER in headers:
            raise _refusal(who, body)
        try:
            return reply_type.model_validate_json(body)
        except ValidationError as exc:
            log.error("answer_unreadable", subject=subject, errors=exc.error_count())
            raise Unavailable(
                f"{who} gave an answer that this router cannot read: run one version of both"
            ) from exc


async def ask(
    bus: runtime.Bus, who: str, subject: str, payload: bytes, timeout_s: float
) -> tuple[dict[str, Any], bytes]:
    """(headers, body) of a reply; raises Unavailable when nobody is there and UpstreamTimeout after the limit."""
    if not bus.connected:
        raise Unavailable(
            "no connection to the bus: try again; GET /ready tells what is missing", retry_after_s=1
        )
    try:
        reply = await runtime.request(bus.nc, subject, payload, timeout_s)
    except NoRespondersError as exc:
        raise Unavailable(
            f"{who} is not there: try again, or look at its log", retry_after_s=2, code=f"{who}_away"
        ) from exc
    except TimeoutError as exc:
        raise UpstreamTimeout(
            f"{who} gave no answer within {timeout_s:g} s: try again", retry_after_s=2
        ) from exc
    except (NatsError, OSError) as exc:
        raise Unavailable(f"the bus failed while {who} was asked: try again", retry_after_s=1) from exc
    return dict(reply.headers or {}), bytes(reply.data)


def _refusal(who: str, body: bytes) -> Exception:
    try:
        error = q.QueryError.model_validate_json(body)
    except ValidationError:
        return Unavailable(f"{who} could not answer and did not say why: look at its log")
    if error.code in _NOT_FOUND:
        return NotFound(error.message, code=error.code)
    if error.code == "evidence_gone":
        return Gone(error.message, code=error.code)
    if error.code == "conflict":
        return Conflict(error.message)
    if error.code in _INVALID:
        return Unprocessable(error.message)
    return Unavailable(f"{who}: {error.message}", retry_after_s=2, code=error.code)
