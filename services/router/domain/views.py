"""What callers see of experiments: status, results and history, assembled from facts; pure."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from schemas.v1.common import TestStatus, rfc3339
from schemas.v1.control import RampStatus, StatusReply
from schemas.v1.experiment import Experiment, TestResult, VariantSummary
from services.router.domain.descending import under_way
from services.router.domain.ramping import waits_for_approval

MINUTE_MS = 60_000


def by_variant(totals: Mapping[str, VariantSummary]) -> dict[str, VariantSummary]:
    """Totals under the API's names: ``a`` becomes ``variant_a``."""
    return {name if name.startswith("variant_") else f"variant_{name}": summary for name, summary in totals.items()}


def latest(totals: Mapping[str, VariantSummary], evidence: Mapping[str, VariantSummary]) -> dict[str, VariantSummary]:
    """Of each variant the summary that has seen more: the history's totals may be seconds behind the evidence."""
    found = dict(totals)
    for name, summary in evidence.items():
        if name not in found or _ended(summary) > _ended(found[name]):
            found[name] = summary
    return found


def _ended(summary: VariantSummary) -> int:
    return summary.request_count + summary.client_errors


def over_its_life(result: TestResult) -> TestResult:
    """The result of a test that ended, with throughput over all of its time: the last minute's is nobody's any more."""
    if result.start_time is None or result.end_time is None:
        return result
    took = datetime.fromisoformat(result.end_time) - datetime.fromisoformat(result.start_time)
    seconds = max(1.0, took.total_seconds())
    shown = {
        name: summary.model_copy(update={"throughput_rps": summary.request_count / seconds})
        for name, summary in result.metrics_summary.items()
    }
    return result.model_copy(update={"metrics_summary": shown})


def complete_totals(totals: Mapping[str, VariantSummary], in_flight: Mapping[str, int]) -> dict[str, VariantSummary]:
    """Both arms, also one without any request yet, with what this router has in flight now.

    Facts arrive a little after requests end, so the larger of the two counts of requests in flight is shown.
    """
    complete = {"variant_a": VariantSummary(), "variant_b": VariantSummary()}
    complete |= {name: summary.model_copy() for name, summary in by_variant(totals).items()}
    for name, summary in complete.items():
        summary.in_flight = max(summary.in_flight, in_flight.get(name.removeprefix("variant_"), 0))
    return complete


def status(
    test: Experiment,
    now_ms: int,
    *,
    metrics: Mapping[str, VariantSummary] | None,
    effective_bp: int,
    verdict: dict[str, Any] | None,
    running: Iterable[str],
    degraded: Sequence[str],
) -> StatusReply:
    """The status of one test. ``metrics`` None says that nobody could tell them."""
    started = test.started_ms if test.started_ms is not None else test.created_ms
    until = test.ended_ms if test.ended_ms is not None else now_ms
    remaining = None
    if test.live and test.ends_ms is not None:
        remaining = round(max(0, test.ends_ms - now_ms) / MINUTE_MS, 3)
    return StatusReply(
        test_id=test.test_id,
        status=test.status.value,
        elapsed_minutes=round(max(0, until - started) / MINUTE_MS, 3),
        traffic_split_percent=test.share_bp / 100,
        metrics=None if metrics is None else dict(metrics),
        models={"variant_a": test.model_a, "variant_b": test.model_b},
        effective_split_percent=(effective_bp if test.live else 0) / 100,
        remaining_minutes=remaining,
        auto_rollback=test.auto_rollback,
        verdict=verdict,
        digests=dict(test.digests) or None,
        version=test.version,
        running_tests=list(running),
        starts_at=rfc3339(started) if test.status is TestStatus.SCHEDULED else None,
        rollback_at=None if test.rollback_at is None else rfc3339(test.rollback_at.at_ms),
        ramp=_ramp(test, now_ms),
        retry_at=_retry_at(test),
        waiting_for=_waiting_for(test, now_ms, verdict),
        degraded=list(degraded) or None,
    )


def _ramp(test: Experiment, now_ms: int) -> RampStatus | None:
    ramp = test.ramp
    if ramp is None:
        return None
    step = ramp.steps[ramp.step]
    return RampStatus(
        step=ramp.step + 1,
        of=len(ramp.steps),
        shares=[each.share_bp / 100 for each in ramp.steps],
        soak_left_minutes=round(_soak_left_ms(test, now_ms) / MINUTE_MS, 3),
        min_requests=step.min_requests,
        gate=step.gate,
        approved=ramp.approved >= ramp.step,
        held=ramp.held or None,
    )


def _soak_left_ms(test: Experiment, now_ms: int) -> float:
    """Of the present ramp step; a test that does not run yet, or not now, has all of it before it."""
    ramp = test.ramp
    if ramp is None or not test.live:
        return 0.0
    soak = ramp.steps[ramp.step].soak_minutes * MINUTE_MS
    if test.status in {TestStatus.SCHEDULED, TestStatus.PAUSED}:
        return soak
    return max(0.0, ramp.since_ms + soak - now_ms)


def _retry_at(test: Experiment) -> str | None:
    setback = test.setback
    return None if setback is None or setback.retry_at_ms is None else rfc3339(setback.retry_at_ms)


def _waiting_for(test: Experiment, now_ms: int, verdict: dict[str, Any] | None) -> str | None:
    """Of a reduction what the routers wait for; else the monitor's word on the next step, or what is known without."""
    descent = under_way(test)
    if descent is not None and descent.waiting:
        return descent.waiting
    outlook = (verdict or {}).get("ramp") if test.live else None
    if outlook and outlook.get("waits_for"):
        return str(outlook["waits_for"])
    if waits_for_approval(test) and not _soak_left_ms(test, now_ms):
        return "an operator's approval: POST /v1/ab-testing/approve"
    return None


def status_of_result(result: TestResult, running: Iterable[str]) -> StatusReply:
    """The status of a test of which only its result is left."""
    return StatusReply(
        test_id=result.test_id,
        status=result.status.value,
        traffic_split_percent=result.traffic_split_percent,
        metrics=dict(result.metrics_summary),
        models=dict(result.models) or None,
        effective_split_percent=0.0,
        verdict=result.verdict.model_dump(mode="json") if result.verdict else None,
        version=result.version,
        running_tests=list(running),
    )


def merge_history(
    held: Iterable[TestResult], page: Sequence[TestResult], total: int, limit: int, offset: int
) -> tuple[list[TestResult], int]:
    """(one page of results newest first, how many there are in all).

    ``page`` is the first ``offset + limit`` results of the history and ``total`` their number in all; ``held`` are
    results that routers still hold, some of which the history may not have taken yet.
    """
    by_id = {result.test_id: result for result in page}
    whole = len(page) >= total
    oldest = min((_age(result) for result in page), default=("", ""))
    extra = 0
    for result in held:
        known = by_id.get(result.test_id)
        if known is not None:
            if result.version >= known.version:
                by_id[result.test_id] = _fuller(result, known)
        elif whole or _age(result) > oldest:
            # Younger than what the history shows but not in it: the history has yet to take it.
            by_id[result.test_id] = result
            extra += 1
    merged = sorted(by_id.values(), key=_age, reverse=True)
    return merged[offset : offset + limit], total + extra


def _age(result: TestResult) -> tuple[str, str]:
    return (result.end_time or "", result.test_id)


def _fuller(result: TestResult, known: TestResult) -> TestResult:
    if result.metrics_summary or not known.metrics_summary:
        return result
    return result.model_copy(update={"metrics_summary": known.metrics_summary})
