"""What a promotion needs, condition by condition; each may be looked at after every tick.

Methods: Core A reversed or a negligible rate for errors, Core C over unit buckets for the primary metric and for
latency (`docs/statistics.md`, "What decides what"). All conditions must hold, so each has the whole level.
"""

import math

from schemas.v1.common import Outcome
from services.monitor.domain.checks import number
from services.monitor.domain.effects import LIMIT, held, log_effect, primary_effect, relative_percent
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import FULL_SHARE
from services.monitor.domain.findings import STEP_DOWN
from services.monitor.domain.standing import NEAR
from services.monitor.domain.statistics import non_inferiority_log_e, requests_needed, requests_needed_for_mean
from services.monitor.domain.waiting import Condition, requests_for

FEW_HANG_UPS = 0.001
"""Share of requests by which callers may always hang up more often on B."""

_NOISE = 3.0
_CANCEL = Outcome.CLIENT_CANCEL.value


def conditions(evaluator: TestEvaluator) -> list[Condition]:
    """All conditions of a promotion, in the order in which people ask for them."""
    return [
        *_duration(evaluator),
        _sample(evaluator),
        _split(evaluator),
        _quiet(evaluator),
        _errors(evaluator),
        *_hung_up(evaluator),
        _latency(evaluator),
        _improvement(evaluator),
    ]


def _duration(evaluator: TestEvaluator) -> list[Condition]:
    """The minimum duration, where one is asked for; time is the broker's."""
    need = evaluator.experiment.min_duration_minutes
    if need <= 0:
        return []
    passed = max(0, (evaluator.second or evaluator.started_s) - evaluator.started_s) / 60
    missing = max(0.0, need - passed)
    return [
        Condition(
            name="min_duration", met=missing == 0, value=passed, needs_requests=0, needs_minutes=missing,
            text=f"{number(passed)} minutes have passed, at least {need:g} are asked for",
        )
    ]  # fmt: skip


def _sample(evaluator: TestEvaluator) -> Condition:
    need = evaluator.experiment.success_criteria.min_sample_size
    a, b = evaluator.totals.of("a").done, evaluator.totals.of("b").done
    share = b / (a + b) if a and b else evaluator.experiment.share_bp / FULL_SHARE
    missing = max(0, need - min(a, b))
    return Condition(
        name="sample_size", met=missing == 0, value=float(min(a, b)),
        text=f"{a} requests of A and {b} of B finished, at least {need} of each are asked for",
        needs_requests=requests_for(missing, min(share, 1.0 - share)),
    )  # fmt: skip


def _split(evaluator: TestEvaluator) -> Condition:
    ratio = evaluator.sample_ratio
    met = not ratio.mismatch() or evaluator.policy("on_srm", "hold") == "warn"
    text = "units are split as configured" if met else "units are not split as configured (sample ratio mismatch)"
    return Condition(
        name="sample_ratio", met=met, text=text, log_e=ratio.log_e(), limit=-math.log(ratio.alpha), needs_requests=0
    )


def _quiet(evaluator: TestEvaluator) -> Condition:
    """No guardrail has fired or is near it; one that cannot be evaluated is no reason to promote."""
    worst, log_e, bar = nearest(evaluator, trial_only=False)
    if log_e == math.inf:
        return Condition(name="guardrails", met=False, text=f"{worst} cannot be evaluated", limit=bar)
    if evaluator.fired is not None:
        return Condition(name="guardrails", met=False, text=f"{evaluator.fired.rule} has fired", log_e=log_e, limit=bar)
    if evaluator.trials[STEP_DOWN].quiet(evaluator.second or 0):
        return Condition(name="guardrails", met=False, text="B was stepped down and has not been tried again")
    met = log_e < bar
    text = "no guardrail is near firing" if met else f"{worst} is near firing (ln E {log_e:.2f}, hold from {bar:.2f})"
    return Condition(name="guardrails", met=met, text=text, log_e=log_e, limit=bar, needs_requests=0 if met else None)


def nearest(evaluator: TestEvaluator, *, trial_only: bool) -> tuple[str, float, float]:
    """(name, ln E, ln E from which it is near firing) of the acting guardrail that is nearest to firing.

    In a trial after a step down or a pause a guardrail is near by the trial's evidence; unless ``trial_only`` it is
    also near while that of its whole epoch is: what was shown has not become untrue by trying again.
    """
    found = ("", 0.0, math.inf)
    for check in evaluator.checks:
        if check.action == "warn":
            continue
        log_e, limit = evaluator.log_e(check), evaluator.limit(check)
        if not trial_only:
            limit = min(limit, evaluator.levels.limit(evaluator.epoch, check.name))
        if log_e == math.inf:
            return check.name, log_e, limit - NEAR
        if log_e - limit + NEAR > found[1] - found[2]:
            found = (check.name, log_e, limit - NEAR)
    return found


def _errors(evaluator: TestEvaluator) -> Condition:
    success, process = evaluator.experiment.success_criteria, evaluator.non_inferiority
    margin, negligible = success.max_error_rate_increase_percent, success.negligible_error_rate_percent
    log_e, rate, own = process.log_e(), process.rate, process.negligible
    b = evaluator.totals.of("b")
    # A few units that ask again and again may be of many requests: then only the comparison with A counts.
    many = own is not None and 100.0 * b.errors > negligible * max(1, b.done)
    met = log_e >= LIMIT and (not many or rate.log_e() >= LIMIT)
    asked = f"errors of B not above A's by {margin:g} %"
    found = f"{rate.events_b} units of B and {rate.events_a} of A had errors"
    ends = ""
    if own is not None:
        asked += f", or at most {negligible:g} %"
        found = f"{own.failed or 'none'} of {own.units} units of B and {rate.events_a} of A's had errors"
        more = process.clean_units_needed(LIMIT)
        if many:
            ends = f"; {100.0 * b.errors / max(1, b.done):.2f} % of B's requests failed, which is not negligible"
        elif process.by_negligible and met:
            ends = f"; at most {negligible:g} % of B's is shown"
        elif more:
            ends = f"; about {more} more units of B without an error show it"
    elif not rate.events_a + rate.events_b:
        ends = "; without any error nothing can be compared, and no rate is negligible in this test"
    return Condition(
        name="errors_not_worse", met=met, log_e=log_e, limit=LIMIT,
        text=f"{asked}: {found} (ln E {log_e:.2f}, needed {LIMIT:.2f}){ends}",
        needs_requests=requests_needed(process, evaluator.totals.requests(), LIMIT),
        at_least=not met and process.by_negligible and _returning(evaluator),
    )  # fmt: skip


def _hung_up(evaluator: TestEvaluator) -> list[Condition]:
    """Callers who hang up more often on B than on A, where errors alone may be negligible.

    A canary that hangs until callers give up leaves no error, no latency and nothing overdue.
    """
    if evaluator.non_inferiority.negligible is None:
        return []
    a, b = evaluator.totals.of("a"), evaluator.totals.of("b")
    (of_a, done_a), (of_b, done_b) = ((arm.outcomes[_CANCEL], max(1, arm.done)) for arm in (a, b))
    pooled = (of_a + of_b) / (done_a + done_b)
    noise = _NOISE * math.sqrt(pooled * (1.0 - pooled) * (1.0 / done_a + 1.0 / done_b))
    met = of_b / done_b - of_a / done_a <= max(noise, FEW_HANG_UPS)
    text = f"callers hung up on {100 * of_b / done_b:.2f} % of B's requests and {100 * of_a / done_a:.2f} % of A's"
    return [Condition(name="hung_up", met=met, text=text, needs_requests=0 if met else None)]


def _returning(evaluator: TestEvaluator) -> bool:
    """Whether users of B come again: then the next requests bring fewer new units than those so far."""
    b = evaluator.totals.of("b")
    return b.units < b.counts["admitted"]


def _latency(evaluator: TestEvaluator) -> Condition:
    margin = evaluator.experiment.success_criteria.max_latency_increase_percent
    effect = log_effect(evaluator, "latency")
    hold = held(effect)
    if effect is None or hold is not None:
        return Condition(name="latency_not_worse", met=False, text=f"latency: {hold}")
    log_e = non_inferiority_log_e(effect.difference, effect.variance, margin / 100.0)
    percent = relative_percent(effect.difference)
    return Condition(
        name="latency_not_worse", met=log_e >= LIMIT, log_e=log_e, limit=LIMIT, value=percent,
        text=f"latency of B {percent:+.1f} %, margin {margin:g} % (ln E {log_e:.2f}, needed {LIMIT:.2f})",
        needs_requests=requests_needed_for_mean(
            -effect.difference, effect.variance, -math.log1p(margin / 100.0), evaluator.totals.requests(), LIMIT
        ),
    )  # fmt: skip


def _improvement(evaluator: TestEvaluator) -> Condition:
    threshold = evaluator.experiment.success_criteria.min_improvement_threshold
    effect = primary_effect(evaluator)
    if effect.hold is not None:
        text = f"{effect.metric}: {effect.hold}"
        return Condition(name="primary_metric", met=False, text=text, needs_requests=effect.needs, at_least=True)
    asked = f"+{threshold:g} % or more" if effect.more_is_better else f"{-threshold:g} % or less"
    return Condition(
        name="primary_metric", met=effect.met, log_e=effect.better, limit=LIMIT, value=effect.percent,
        text=(
            f"{effect.metric} of B {effect.percent:+.1f} %{effect.basis}, asked for {asked} "
            f"(ln E {effect.better:.2f}, needed {LIMIT:.2f}){'; ' + effect.against if effect.against else ''}"
        ),
        needs_requests=effect.needs, at_least=bool(effect.basis) and not effect.met and _returning(evaluator),
    )  # fmt: skip
