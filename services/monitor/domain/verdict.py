"""The decision: promote, keep, roll back, or say what is missing. The reason is made here, with its numbers."""

import math
from typing import Any

from schemas.v1.common import Decision
from schemas.v1.experiment import VerdictRecord
from schemas.v1.query import EffectStatus, VerdictStatus
from services.monitor.domain import ramp
from services.monitor.domain.effects import LIMIT, Effect, primary_effect
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.findings import Finding
from services.monitor.domain.promotion import conditions
from services.monitor.domain.waiting import Condition, waiting

_WORSE = frozenset({"warning", "step_down", "pause"})
"""Kinds of findings that say that B is worse without ending the test."""


def finding_record(evaluator: TestEvaluator, finding: Finding) -> VerdictRecord:
    """The record of what fired: the same wherever and whenever it is derived from the same windows.

    A step down and a pause are no decision about the test yet.
    """
    return VerdictRecord(
        decision=Decision.ROLLBACK if finding.kind == "rollback" else Decision.INCONCLUSIVE,
        reason=f"{finding.rule}: {finding.text}",
        rule=finding.rule,
        at_ms=finding.tick * 1000,
        tick=finding.tick,
        value=finding.value,
        bound=finding.bound,
        threshold=finding.threshold,
        log_e=finding.log_e,
        n_a=finding.n_a,
        n_b=finding.n_b,
        split_bp=finding.share_bp,
        digests=evaluator.experiment.digests,
        config_hash=evaluator.experiment.config_hash,
        details={
            "windows_seq": finding.sequence, "epoch": finding.epoch, "limit": finding.limit, "unit": finding.unit,
            "guardrails": evaluator.levels.guardrails, "alpha": evaluator.levels.alpha,
            "share": evaluator.levels.share(finding.rule) if finding.rule in evaluator.levels.weights else None,
            "value_a": finding.value_a, "value_b": finding.value_b, "bad_units_b": finding.bad_units,
        },
    )  # fmt: skip


def progress_record(evaluator: TestEvaluator, rule: str, reason: str, details: dict[str, Any]) -> VerdictRecord:
    """Why a split goes up: a ramp's next step, or a retry."""
    experiment = evaluator.experiment
    return VerdictRecord(
        decision=Decision.INCONCLUSIVE,
        reason=reason,
        rule=rule,
        at_ms=1000 * (evaluator.second or 0),
        tick=evaluator.second,
        n_a=evaluator.totals.of("a").done,
        n_b=evaluator.totals.of("b").done,
        split_bp=evaluator.share_bp or experiment.share_bp,
        digests=experiment.digests,
        config_hash=experiment.config_hash,
        details={"windows_seq": evaluator.sequence, "epoch": evaluator.epoch, **details},
    )


def decide(evaluator: TestEvaluator) -> VerdictRecord:
    """The verdict on everything seen so far. No data is inconclusive, never a success."""
    fired = evaluator.fired
    if fired is not None:
        return finding_record(evaluator, fired)
    a, b = evaluator.totals.of("a").done, evaluator.totals.of("b").done
    found = conditions(evaluator)
    if not a or not b:
        return _record(
            evaluator, Decision.INCONCLUSIVE, "no_data",
            f"no data to compare: A finished {a} requests and B {b}; "
            f"{waiting(evaluator, [c for c in found if not c.met])}", [], None,
        )  # fmt: skip
    effect = primary_effect(evaluator)
    missing = [condition for condition in found if not condition.met]
    if not missing:
        return _record(evaluator, Decision.PROMOTE_B, "promotion", _promotion(evaluator, effect), found, effect)
    return _held_back(evaluator, found, effect)


def _held_back(evaluator: TestEvaluator, found: list[Condition], effect: Effect) -> VerdictRecord:
    """The verdict when something stands against a promotion: the split, the evidence, or the lack of it."""
    missing = [condition for condition in found if not condition.met]
    mismatch = next((condition for condition in missing if condition.name == "sample_ratio"), None)
    if mismatch is not None:
        return _record(
            evaluator, Decision.INCONCLUSIVE, "sample_ratio_mismatch",
            f"{mismatch.text}: no comparison can be trusted (ln E {mismatch.log_e:.2f}, limit {mismatch.limit:.2f}); "
            "find out why units do not reach B as configured",
            found, effect,
        )  # fmt: skip
    relative = {check.name for check in evaluator.checks if not check.absolute}
    shown = [f for f in evaluator.findings if f.kind in _WORSE and f.rule in relative]
    if shown:
        worse = min(shown, key=lambda finding: finding.kind == "warning")  # the first of the gravest
        within = worse.kind == "warning" and worse.rule.endswith("_warning")
        extent = "within the margin that is allowed" if within else "beyond its guardrail's margin"
        reason = f"B is shown to be worse, {extent}: {worse.text}"
        return _record(evaluator, Decision.KEEP_A, worse.rule, reason, found, effect)
    if effect.hold is None and effect.not_better >= LIMIT:
        reason = (
            f"B's {effect.metric} ({effect.percent:+.1f} %) is shown not to improve by "
            f"{evaluator.experiment.success_criteria.min_improvement_threshold:g} % "
            f"(ln E {effect.not_better:.2f}, needed {LIMIT:.2f})"
        )
        return _record(evaluator, Decision.KEEP_A, "no_improvement", reason, found, effect)
    texts = dict.fromkeys(condition.text for condition in missing)  # latency may be the primary metric as well
    reason = f"not enough evidence: {'; '.join(texts)}; {waiting(evaluator, missing)}"
    return _record(evaluator, Decision.INCONCLUSIVE, missing[0].name, reason, found, effect)


def status(evaluator: TestEvaluator) -> VerdictStatus:
    """How the evidence stands now."""
    found = conditions(evaluator)
    missing = [condition for condition in found if not condition.met]
    fired = evaluator.fired
    if fired is not None:
        summary = f"rollback: {fired.rule}: {fired.text}"
    elif not missing:
        summary = (
            "all conditions of a promotion hold: stop the test to promote B, then make "
            f"'{evaluator.experiment.model_b}' the stable model"
        )
    else:
        summary = waiting(evaluator, missing)
    planned = ramp.plan(evaluator)
    return VerdictStatus(
        test_id=evaluator.experiment.test_id,
        tick=evaluator.second,
        windows_seq=evaluator.sequence,
        n_a=evaluator.totals.of("a").done,
        n_b=evaluator.totals.of("b").done,
        guardrails=evaluator.statuses(),
        promotion={
            "met": not missing and fired is None,
            "conditions": [condition.model_dump(mode="json") for condition in found],
        },
        summary=summary,
        ramp=None if planned is None else planned.outlook(),
        effect=_effect(evaluator),
    )


def _effect(evaluator: TestEvaluator) -> EffectStatus:
    effect = primary_effect(evaluator)
    asked = evaluator.experiment.success_criteria.min_improvement_threshold
    return EffectStatus(
        metric=effect.metric, effect=effect.percent, low=effect.low, high=effect.high,
        asked=asked if effect.more_is_better else -asked, more_is_better=effect.more_is_better, hold=effect.hold,
    )  # fmt: skip


def _promotion(evaluator: TestEvaluator, effect: Effect) -> str:
    a, b = evaluator.totals.of("a"), evaluator.totals.of("b")
    negligible = evaluator.experiment.success_criteria.negligible_error_rate_percent
    small = evaluator.non_inferiority.by_negligible
    how = f"at most the negligible {negligible:g} %" if small else "not worse by the margin"
    return (
        f"B's {effect.metric} is {effect.percent:+.1f} % (ln E {effect.better:.2f}, needed {LIMIT:.2f}); errors "
        f"{100 * b.errors / b.done:.2f} % against {100 * a.errors / a.done:.2f} %, {how}; "
        f"{b.done} requests of B and {a.done} of A. Next: make '{evaluator.experiment.model_b}' the stable model"
    )


def _record(
    evaluator: TestEvaluator,
    decision: Decision,
    rule: str,
    reason: str,
    found: list[Condition],
    effect: Effect | None,
) -> VerdictRecord:
    experiment = evaluator.experiment
    log_e = bound = None
    if effect is not None and effect.hold is None:
        worse = rule == "no_improvement"
        best, least = (effect.high, effect.low) if effect.more_is_better else (effect.low, effect.high)
        log_e, bound = (effect.not_better, best) if worse else (effect.better, least)
    return VerdictRecord(
        decision=decision,
        reason=reason,
        rule=rule,
        at_ms=(evaluator.second or 0) * 1000,
        tick=evaluator.second,
        value=None if effect is None else effect.percent,
        bound=bound,
        threshold=experiment.success_criteria.min_improvement_threshold
        * (1.0 if effect is not None and effect.more_is_better else -1.0),
        log_e=log_e if log_e is None or math.isfinite(log_e) else None,
        n_a=evaluator.totals.of("a").done,
        n_b=evaluator.totals.of("b").done,
        split_bp=evaluator.share_bp or experiment.share_bp,
        digests=experiment.digests,
        config_hash=experiment.config_hash,
        details={
            "windows_seq": evaluator.sequence,
            "epoch": evaluator.epoch,
            "limit": LIMIT,
            "unit": "%",
            "metric": experiment.primary_metric,
            "conditions": [condition.model_dump(mode="json") for condition in found],
        },
    )
