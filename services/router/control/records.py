"""The record of a test: its report, the evidence behind it, and whether a replay of that agrees."""

import asyncio
from typing import Any

from schemas.v1 import query as q
from schemas.v1 import record as r
from schemas.v1.experiment import TestResult, VerdictRecord
from services._runtime.clock import now_ms
from services.router.control import params as p
from services.router.control.base import Done
from services.router.control.reads import Reads
from services.router.domain.auth import Principal
from services.router.domain.refusals import Conflict, Refused
from services.router.domain.replaying import differences
from services.router.domain.report import MEDIA, POLICY, choose, render
from services.router.domain.views import by_variant, latest, over_its_life

REPORT_WAIT_MS = 8000
TOLD_HELD_S = 0.5
"""So long what happened to a test is not asked for again; pages ask a little later than this after something did."""
PATIENCE_S = 5.0
"""A chart, a time line or alerts are not waited for any longer: the page asks again."""
_REPORT_PATIENCE_S = 20.0
REPLAY_WAIT_MS = 15_000
_ALERTS = 100


class Records(Reads):
    """One method for each question: ``(principal, params) -> Done``. All raise Refused."""

    async def report(self, who: Principal, params: p.ReportParams) -> Done:
        """Everything on record of a test; what nobody could tell is named in its notes."""
        report = await self.gathered(who, params.test_id)
        kind = choose(params.accept)
        headers = {"Vary": "Accept"} | ({"Content-Security-Policy": POLICY} if kind == "html" else {})
        # In a thread: requests share this loop, and a long test's plots are some thousand points.
        body = (await asyncio.to_thread(render, report, kind)).encode()
        return Done(body, params.test_id, media=MEDIA[kind], headers=headers)

    async def gathered(self, who: Principal, test_id: str) -> r.Report:
        """Everything on record of a test. Raises NotFound."""
        report = r.Report(test_id=test_id, at_ms=now_ms(), result=await self._result(who, test_id))
        evidence, alerts = await asyncio.gather(self._add_evidence(report), self._add_alerts(report))
        report.notes = [*evidence, *alerts]
        return report

    async def evidence(self, who: Principal, params: p.EvidenceParams) -> Done:
        """A page; 410 when it has aged out."""
        result = await self._result(who, params.test_id)
        query = r.EvidenceQuery(
            test_id=params.test_id, after=params.after, limit=params.limit, until=until(result.verdict)
        )
        return Done(await self._parts.queries.evidence(query), params.test_id)

    async def replay(self, who: Principal, params: p.TestParams) -> Done:
        """The recorded verdict against the one that the evidence gives; 409 while there is none."""
        result = await self._result(who, params.test_id)
        verdict = result.verdict
        if verdict is None:
            raise Conflict(
                f"test '{params.test_id}' has no verdict yet: stop it, or ask when it has ended", code="no_verdict"
            )
        replay = r.Replay(test_id=params.test_id, recorded=verdict)
        if verdict.tick is None:
            replay.message = f"the decision ({verdict.rule}) was not the statistics': there is nothing to derive anew"
            return Done(replay, params.test_id)
        query = r.RecordQuery(test_id=params.test_id, until=until(verdict), wait_ms=REPLAY_WAIT_MS)
        found = await self._parts.queries.record(query)
        replay.state, replay.progress, replay.message = found.state, found.progress, found.message
        replay.ticks = found.ticks
        if found.state == "complete" and found.verdict is not None:
            replay.replayed = found.verdict
            replay.differences = differences(verdict, found.verdict)
            replay.same = not replay.differences
        return Done(replay, params.test_id)

    async def _result(self, who: Principal, test_id: str) -> TestResult:
        done = await self.tests(who, p.TestParams(test_id=test_id))
        result: TestResult = done.body
        return result

    async def _add_evidence(self, report: r.Report) -> list[str]:
        """Adds what the monitor knows; what it could not tell."""
        query = r.RecordQuery(
            test_id=report.test_id, until=until(report.result.verdict), wait_ms=REPORT_WAIT_MS
        )
        test = self._parts.experiments.by_id(report.test_id)
        key = ("report", query.test_id, query.until, report.result.version)
        try:
            found = await self._parts.shared.ask(
                key, lambda: self._parts.queries.record(query), who="monitor", within_s=_REPORT_PATIENCE_S,
                held_s=TOLD_HELD_S,
            )  # fmt: skip
        except Refused as exc:
            report.configuration = test.configuration if test is not None else None
            return [f"evidence and timeline: {exc.message}"]
        report.evidence, report.progress = found.state, found.progress
        report.configuration, report.changes = found.configuration, found.changes
        report.status, report.series = found.status, found.series
        summary = latest(report.result.metrics_summary, by_variant(found.metrics_summary))
        report.result = over_its_life(report.result.model_copy(update={"metrics_summary": summary}))
        return [found.message] if found.message else []

    async def _add_alerts(self, report: r.Report) -> list[str]:
        """Adds the newest alerts; what is missing of them."""
        report.alerts, notes = await self._alerts(report.test_id)
        return notes

    async def _alerts(self, test_id: str) -> tuple[list[dict[str, Any]], list[str]]:
        """A test's newest alerts, and what is missing of them."""
        query = q.AlertsQuery(limit=_ALERTS, test_id=test_id)
        try:
            reply = await self._parts.shared.ask(
                ("alerts", test_id), lambda: self._parts.queries.alerts(query), who="alerts", within_s=PATIENCE_S,
                held_s=TOLD_HELD_S,
            )  # fmt: skip
        except Refused as exc:
            return [], [f"alerts: {exc.message}"]
        older = reply.total_alerts - len(reply.alerts)
        return reply.alerts, [f"{older} older alerts are not shown"] if older > 0 else []


def until(verdict: VerdictRecord | None) -> int | None:
    """The WINDOWS sequence that a verdict rests on; None where none does."""
    if verdict is None or verdict.tick is None:
        return None
    sequence = verdict.details.get("windows_seq")
    return sequence if isinstance(sequence, int) else None
