"""Accounts of live tests, from what the routers and the monitor know now, and of ended ones, from their report."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from schemas.v1.common import ERRORS, Decision, TestStatus, rfc3339
from schemas.v1.control import StatusReply
from schemas.v1.experiment import Experiment, TestResult, VariantSummary
from schemas.v1.query import VerdictStatus
from schemas.v1.record import Report, TestChange
from services.router.domain.account import words
from services.router.domain.account.guardrails import rows, safety
from services.router.domain.account.shapes import (
    Answer,
    ConditionAccount,
    OutcomeAccount,
    TestAccount,
    Tone,
)
from services.router.domain.account.timeline import timeline
from services.router.domain.ramping import waits_for_approval
from services.router.domain.report.sections import sections

_RULE = re.compile(r"^([a-z][a-z0-9_]*): ")


def live(
    status: StatusReply, test: Experiment, changes: Sequence[TestChange] = (), alerts: Sequence[Mapping[str, Any]] = ()
) -> TestAccount:
    """A test that has yet to end; ``changes`` and ``alerts`` make its time line."""
    verdict = _verdict(status.verdict)
    guardrails = rows(verdict.guardrails) if verdict else []
    arms = _arms(status.metrics or {})
    conditions = _conditions(verdict.promotion.get("conditions", []) if verdict else [], test.primary_metric)
    title, tone = words.STATUSES.get(test.status, (test.status.value, "plain"))
    sure = safety(guardrails, live=True) if test.status is not TestStatus.SCHEDULED else None
    if sure is not None and sure.tone in {"bad", "wait"} and test.status is TestStatus.RUNNING:
        tone = sure.tone
    share, effective = status.traffic_split_percent or 0.0, status.effective_split_percent
    return TestAccount(
        test_id=test.test_id,
        version=test.version,
        live=True,
        status=test.status.value,
        status_text=title,
        tone=tone,
        headline=_headline(test, share, effective),
        subline=_seen(arms, test),
        model_a=test.model_a,
        model_b=test.model_b,
        split_percent=share,
        effective_percent=effective,
        started_at=None if test.status is TestStatus.SCHEDULED else rfc3339(test.started_ms or test.created_ms),
        starts_at=status.starts_at,
        elapsed_minutes=status.elapsed_minutes,
        remaining_minutes=status.remaining_minutes,
        rollback_at=status.rollback_at,
        retry_at=status.retry_at,
        auto_rollback=status.auto_rollback,
        safety=sure,
        promotion=_promotion(conditions, verdict),
        conditions=conditions,
        next_step=_next(status, test),
        ramp=status.ramp,
        effect=verdict.effect if verdict else None,
        arms=arms,
        outcomes=outcomes(arms),
        guardrails=guardrails,
        actions=actions(test),
        degraded=list(status.degraded or []),
        tags=dict(test.tags),
        timeline=timeline(changes, alerts),
    )


def ended(report: Report) -> TestAccount:
    """A test that has ended."""
    result, reading = report.result, report.evidence == "reading"
    # Half of the evidence says other things than all of it.
    verdict = None if reading else report.status
    guardrails = rows(verdict.guardrails) if verdict else []
    primary = report.configuration.primary_metric if report.configuration else "latency"
    conditions = _conditions(verdict.promotion.get("conditions", []) if verdict else [], primary)
    title, tone = words.STATUSES.get(result.status, (result.status.value, "plain"))
    if result.decision is not None and result.status is TestStatus.COMPLETED:
        said, tone = words.DECISIONS[result.decision]
        title = f"{title}: {said.lower()}"
    arms = _arms(result.metrics_summary)
    settings = next((section.facts for section in sections(report) if section.title == "Configuration"), [])
    return TestAccount(
        test_id=report.test_id,
        version=result.version,
        live=False,
        status=result.status.value,
        status_text=title,
        tone=tone,
        headline=_ending(result),
        subline=_seen(arms, None),
        model_a=result.models.get("variant_a", ""),
        model_b=result.models.get("variant_b", ""),
        split_percent=result.traffic_split_percent,
        started_at=result.start_time,
        ended_at=result.end_time,
        elapsed_minutes=_minutes(result),
        auto_rollback=report.configuration.auto_rollback if report.configuration else None,
        decision=result.decision.value if result.decision else None,
        safety=safety(guardrails, live=False) if guardrails else None,
        why=Answer(tone=tone, text=why(result)),
        promotion=None if result.decision is Decision.ROLLBACK else _promotion(conditions, verdict),
        conditions=conditions,
        effect=verdict.effect if verdict else None,
        arms=arms,
        outcomes=outcomes(arms),
        guardrails=guardrails,
        tags=dict(result.tags),
        timeline=timeline(report.changes, report.alerts),
        configuration=settings,
        notes=list(report.notes),
        reading=report.progress if reading else None,
    )


def actions(test: Experiment) -> list[str]:
    """The commands that make sense of a test as it is."""
    if test.stopping is not None:
        return []
    if test.status is TestStatus.SCHEDULED:
        return ["stop"]
    if test.status is TestStatus.ROLLING_BACK:
        return ["rollback", "stop"]
    found = ["approve"] if waits_for_approval(test) else []
    found.append("resume" if test.status is TestStatus.PAUSED else "pause")
    return [*found, "split", "stop", "rollback"]


def outcomes(arms: Mapping[str, VariantSummary]) -> list[OutcomeAccount]:
    """How requests ended, by variant, the most frequent first."""
    a, b = (arms[name].outcomes if name in arms else {} for name in ("a", "b"))
    sums = sum(a.values()), sum(b.values())
    found = [
        OutcomeAccount(
            kind=kind, title=words.outcome(kind), bad=kind in ERRORS, a=a.get(kind, 0),
            b=b.get(kind, 0), a_percent=_share(a.get(kind, 0), sums[0]), b_percent=_share(b.get(kind, 0), sums[1]),
        )
        for kind in {*a, *b}
    ]  # fmt: skip
    return sorted(found, key=lambda one: (-(one.a + one.b), one.kind))


def _share(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _verdict(shown: dict[str, Any] | None) -> VerdictStatus | None:
    try:
        return VerdictStatus.model_validate(shown) if shown else None
    except ValidationError:
        return None


def _arms(metrics: Mapping[str, VariantSummary]) -> dict[str, VariantSummary]:
    return {name.removeprefix("variant_"): summary for name, summary in metrics.items()}


def _headline(test: Experiment, share: float, effective: float | None) -> str:
    a, b = test.model_a, test.model_b
    if test.stopping is not None:
        return f"The test of {b} is being stopped: the last requests are awaited."
    if test.status is TestStatus.SCHEDULED:
        return f"{b} is going to be served {share:g} % of {a}'s traffic."
    if test.status is TestStatus.ROLLING_BACK:
        return f"{b} is being taken out step by step: {share:g} % of {a}'s traffic is left."
    if effective is not None and effective < share:
        return f"{b} is being served {effective:g} % of {a}'s traffic now, held back from the {share:g} % of its split."
    if test.status is TestStatus.PAUSED:
        return f"{b} stays at {share:g} % of {a}'s traffic: the test is paused until somebody resumes it."
    return f"{b} is being served {share:g} % of {a}'s traffic."


def _seen(arms: Mapping[str, VariantSummary], test: Experiment | None) -> str:
    a, b = (arms.get(name, VariantSummary()) for name in ("a", "b"))
    if test is not None and test.status is TestStatus.SCHEDULED:
        return ""
    if not a.admitted + b.admitted + a.request_count + b.request_count:
        if test is None:
            return "No request came while it ran."
        return f"No request for {test.model_a} has come since the test began."
    return f"{a.request_count:,} requests of A and {b.request_count:,} of B have finished.{_rescued(b)}"


def _rescued(b: VariantSummary) -> str:
    """What callers saw of the canary's failures."""
    failed, rescued = b.error_count, min(b.fallback_count, b.error_count)
    if not failed:
        return ""
    if rescued == failed:
        return f" {'The one' if failed == 1 else f'All {failed:,}'} that B failed got A's answer instead."
    return f" {rescued:,} of the {failed:,} that B failed got A's answer instead: the others failed for their callers."


def _ending(result: TestResult) -> str:
    a, b = result.models.get("variant_a", "A"), result.models.get("variant_b", "B")
    if result.status is TestStatus.ROLLED_BACK:
        return f"{b} was rolled back: {a} serves everything again."
    if result.status is TestStatus.FAILED:
        return f"The test of {b} against {a} failed."
    if result.decision is Decision.PROMOTE_B:
        return f"{b} is better than {a}: promote it."
    if result.decision is Decision.KEEP_A:
        return f"{b} is not better than {a}: keep {a}."
    if result.decision is Decision.INCONCLUSIVE:
        return f"The test of {b} against {a} ended without a decision."
    return f"The test of {b} against {a} has ended."


def why(result: TestResult) -> str:
    """Why a test ended as it did, in words."""
    text = result.reason or "No reason is on record."
    found = _RULE.match(text)
    if found:
        passed = " passed its limit" if words.guards(found[1]) else ""
        text = f"{words.rule(found[1])}{passed}. {words.sentence(text[found.end() :])}"
    return words.plain(text)


def _conditions(found: Sequence[Mapping[str, Any]], primary: str) -> list[ConditionAccount]:
    return [
        ConditionAccount(
            name=str(one.get("name", "")),
            title=words.condition(str(one.get("name", "")), primary),
            met=bool(one.get("met")),
            text=words.plain(str(one.get("text", ""))),
            log_e=one.get("log_e"),
            limit=one.get("limit"),
            needs_requests=one.get("needs_requests"),
            at_least=bool(one.get("at_least")),
            needs_minutes=one.get("needs_minutes"),
        )
        for one in found
    ]


def _promotion(conditions: Sequence[ConditionAccount], verdict: VerdictStatus | None) -> Answer | None:
    if not conditions or verdict is None:
        return None
    missing = [condition for condition in conditions if not condition.met]
    if not missing and verdict.promotion.get("met"):
        return Answer(tone="good", text=words.plain(verdict.summary))
    lead = f"Not yet: {len(conditions) - len(missing)} of {len(conditions)} conditions are met."
    return Answer(tone="wait", text=f"{lead} {words.plain(verdict.summary)}")


def _next(status: StatusReply, test: Experiment) -> Answer | None:
    """What the split does next by itself, or on order."""
    if status.rollback_at is not None:
        return Answer(tone="bad", text="A rollback is ordered for a later time.")
    if status.waiting_for:
        tone: Tone = "wait" if waits_for_approval(test) else "plain"
        return Answer(tone=tone, text=words.plain(status.waiting_for))
    return None


def _minutes(result: TestResult) -> float | None:
    if result.start_time is None or result.end_time is None:
        return None
    took = datetime.fromisoformat(result.end_time) - datetime.fromisoformat(result.start_time)
    return round(took.total_seconds() / 60, 3)
