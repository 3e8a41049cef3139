"""Answer questions: what runs, what was, what the monitor and the models are doing."""

import asyncio
from typing import Any

from schemas.v1 import control as c
from schemas.v1 import query as q
from schemas.v1.experiment import Experiment, TestResult, VariantSummary
from services._runtime.clock import now_ms
from services.router.control import params as p
from services.router.control.base import Done
from services.router.control.config_view import masked
from services.router.control.parts import Parts
from services.router.domain import account, views
from services.router.domain.auth import Principal
from services.router.domain.experiment import result_of
from services.router.domain.refusals import NotFound, Refused

_OVERLAID = 1000
"""Pages that end below this are merged with results that routers still hold: those are always among the newest."""

Totals = dict[str, dict[str, VariantSummary]]
Counted = tuple[Totals | None, str | None]
"""Totals, or why there are none."""
Judged = tuple[dict[str, Any] | None, str | None]
"""A verdict's status, or why there is none."""


class Reads:
    """One method for each question: ``(principal, params) -> Done``. All raise Refused."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def status(self, _who: Principal, params: c.TestRef) -> Done:
        """All null when nothing runs; 404 for an unknown id."""
        running = [test.test_id for test in self._parts.experiments.running()]
        if params.test_id is None:
            if not self._parts.experiments.live():
                return Done(c.StatusReply())
            return Done(await self._status(self._target(None), running))
        test = self._parts.experiments.by_id(params.test_id)
        if test is not None:
            return Done(await self._status(test, running), params.test_id)
        result = await self._ended(params.test_id)
        return Done(views.status_of_result(result, running), params.test_id)

    async def history(self, _who: Principal, params: p.HistoryParams) -> Done:
        """A page of results. What a 200 to stop or rollback confirmed is in the next one."""
        end = params.offset + params.limit
        if end > _OVERLAID:
            reply = await self._parts.queries.history(params.limit, params.offset)
            tests, total = reply.tests, reply.total_tests
        else:
            reply = await self._parts.queries.history(end, 0)
            tests, total = views.merge_history(
                self._parts.experiments.results(), reply.tests, reply.total_tests, params.limit, params.offset
            )
        shown = await self._with_totals(tests)
        if not params.words:
            return Done(q.HistoryReply(tests=shown, total_tests=total))
        told = {result.test_id: account.why(result) for result in tests}
        return Done(p.HistoryShown(tests=shown, total_tests=total, why=told))

    async def tests(self, _who: Principal, params: p.TestParams) -> Done:
        """One test, live or ended, in the shape of a result."""
        test = self._parts.experiments.by_id(params.test_id)
        if test is None:
            return Done(await self._ended(params.test_id), params.test_id)
        if not test.live:
            (result,) = await self._with_totals([result_of(test)])
            return Done(result, params.test_id)
        totals, _ = await self._totals([test.test_id])
        result = result_of(test).model_copy(update={"metrics_summary": self._summary(test, totals) or {}})
        return Done(result, params.test_id)

    async def config(self, _who: Principal, _params: p.NoParams) -> Done:
        """The effective configuration."""
        return Done(masked(self._parts.settings))

    async def monitoring_status(self, _who: Principal, _params: p.NoParams) -> Done:
        """The monitor's own word, or, while it is away, the switch and that it is away."""
        state = self._parts.monitoring.state
        try:
            status = await self._parts.queries.monitoring()
        except Refused as exc:
            away = q.MonitoringStatus(
                monitoring_active=state.active, check_interval_seconds=state.check_interval_seconds
            )
            return Done({**away.model_dump(mode="json"), "degraded": [f"monitor: {exc.message}"]})
        # The switch is this router's to know: the monitor may be a moment behind.
        body = {**status.model_dump(mode="json"), "monitoring_active": state.active}
        return Done({**body, "check_interval_seconds": state.check_interval_seconds, "degraded": None})

    async def integrations(self, _who: Principal, _params: p.NoParams) -> Done:
        """How each integration stands, as the alerts service sees it."""
        return Done(await self._parts.queries.integrations())

    async def monitoring_alerts(self, _who: Principal, params: p.AlertsParams) -> Done:
        """Alerts, newest first."""
        return Done(
            await self._parts.queries.alerts(q.AlertsQuery(limit=params.limit, test_id=params.test_id))
        )

    async def audit(self, _who: Principal, params: p.AuditParams) -> Done:
        """Audit records, newest first."""
        query = q.AuditQuery(since=params.since, actor=params.actor, limit=params.limit)
        return Done(await self._parts.queries.audit(query))

    async def audit_verify(self, _who: Principal, params: p.AuditVerifyParams) -> Done:
        """A page of the check; what does not fit is part of the answer."""
        query = q.AuditVerifyQuery(cursor=params.cursor, head=params.head, limit=params.limit)
        return Done(await self._parts.queries.audit_verify(query))

    # ------------------------------------------------------------------------------------------------------

    def _target(self, test_id: str | None) -> Experiment:
        """The live test of that id, or the most recently started one; raises NotFound."""
        experiments = self._parts.experiments
        if test_id is None:
            candidates = experiments.running() or experiments.live()
            if not candidates:
                raise NotFound(
                    "no test is running: start one with POST /v1/ab-testing/start", code="nothing_running"
                )
            return candidates[-1]
        test = experiments.by_id(test_id)
        if test is None or not test.live:
            raise NotFound(
                f"test '{test_id}' is not running: GET /v1/ab-testing/status lists the running tests",
                param="test_id", code="test_not_running",
            )  # fmt: skip
        return test

    async def _ended(self, test_id: str) -> TestResult:
        held = self._parts.experiments.result(test_id)
        found = held if held is not None else await self._parts.queries.test(test_id)
        if found is None:
            raise NotFound(
                f"there is no test '{test_id}': GET /v1/ab-testing/history lists ended ones", param="test_id",
                code="test_not_found",
            )  # fmt: skip
        (result,) = await self._with_totals([found])
        return result

    async def _status(self, test: Experiment, running: list[str]) -> c.StatusReply:
        counted, judged = await asyncio.gather(self._totals([test.test_id]), self._verdict(test))
        return self._stands(test, running, counted, judged)

    def _stands(self, test: Experiment, running: list[str], counted: Counted, judged: Judged) -> c.StatusReply:
        """The status of a test by what metrics and monitor said of it."""
        path = self._parts.path()
        (totals, totals_away), (verdict, verdict_away) = counted, judged
        degraded = [
            *path.degraded(),
            *([totals_away] if totals_away else []),
            *([verdict_away] if verdict_away else []),
        ]
        summary = self._summary(test, totals)
        if test.result is not None:
            if not (totals or {}).get(test.test_id):
                # Totals also hold what was in flight when the test ended; the result is what is left without them.
                summary = test.result.metrics_summary or summary
            whole = test.result.model_copy(update={"metrics_summary": summary or {}})
            summary = views.over_its_life(whole).metrics_summary or None
        return views.status(
            test,
            now_ms(),
            metrics=summary,
            effective_bp=path.effective_share_bp(test) if test.live else 0,
            verdict=verdict,
            running=running,
            degraded=degraded,
        )

    def _summary(self, test: Experiment, totals: Totals | None) -> dict[str, VariantSummary] | None:
        if totals is None:
            return None
        return views.complete_totals(totals.get(test.test_id, {}), self._parts.path().in_flight(test.test_id))

    async def _totals(self, tests: list[str]) -> Counted:
        try:
            return await self._parts.queries.totals(tests), None
        except Refused as exc:
            return None, f"metrics: {exc.message}"

    async def _verdict(self, test: Experiment) -> Judged:
        if not test.live:
            verdict = test.result.verdict if test.result else None
            return (verdict.model_dump(mode="json") if verdict else None), None
        try:
            status = await self._parts.queries.verdict(test.test_id)
        except NotFound:
            return None, None  # the monitor has not met the test yet
        except Refused as exc:
            return None, f"monitor: {exc.message}"
        return status.model_dump(mode="json"), None

    async def _with_totals(self, results: list[TestResult]) -> list[TestResult]:
        """Results with the figures of everything that finished: some did only after the result was written.

        Results of rollbacks are written before the last facts are in, those of stops with requests in flight.
        """
        unsettled = [result.test_id for result in results if not _settled(result)]
        totals, _ = await self._totals(unsettled) if unsettled else ({}, None)
        if totals is not None:
            results = [r if _settled(r) else _filled(r, totals.get(r.test_id, {})) for r in results]
        return [views.over_its_life(result) for result in results]


def _settled(result: TestResult) -> bool:
    return bool(result.metrics_summary) and not any(s.in_flight for s in result.metrics_summary.values())


def _filled(result: TestResult, totals: dict[str, VariantSummary]) -> TestResult:
    summary = views.latest(result.metrics_summary, views.complete_totals(totals, {}))
    return result.model_copy(update={"metrics_summary": summary})
