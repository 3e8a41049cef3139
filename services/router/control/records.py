"""The record of a test: its report, the evidence behind it, and whether a replay of that agrees."""

import asyncio

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
        await asyncio.gather(self._add_evidence(report), self._add_alerts(report))
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

    async def _add_evidence(self, report: r.Report) -> None:
        query = r.RecordQuery(
            test_id=report.test_id, until=until(report.result.verdict), wait_ms=REPORT_WAIT_MS
        )
        test = self._parts.experiments.by_id(report.test_id)
        try:
            found = await self._parts.queries.record(query)
        except Refused as exc:
            report.notes.append(f"evidence and timeline: {exc.message}")
            report.configuration = test.configuration if test is not None else None
            return
        report.evidence, report.progress = found.state, found.progress
        report.configuration, report.changes = found.configuration, found.changes
        report.status, report.series = found.status, found.series
        summary = latest(report.result.metrics_summary, by_variant(found.metrics_summary))
        report.result = over_its_life(report.result.model_copy(update={"metrics_summary": summary}))
        if found.message:
            report.notes.append(found.message)

    async def _add_alerts(self, report: r.Report) -> None:
        try:
            reply = await self._parts.queries.alerts(q.AlertsQuery(limit=_ALERTS, test_id=report.test_id))
        except Refused as exc:
            report.notes.append(f"alerts: {exc.message}")
            return
        report.alerts = reply.alerts
        if reply.total_alerts > len(reply.alerts):
            report.notes.append(f"{reply.total_alerts - len(reply.alerts)} older alerts are not shown")


def until(verdict: VerdictRecord | None) -> int | None:
    """The WINDOWS sequence that a verdict rests on; None where none does."""
    if verdict is None or verdict.tick is None:
        return None
    sequence = verdict.details.get("windows_seq")
    return sequence if isinstance(sequence, int) else None
