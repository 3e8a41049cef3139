"""Which checks a test has, how many of them share its level, and at what ln E each fires.

Source of the levels: `statistics.log_threshold`, ln(K / (alpha * v_e)), with K the guardrails that may roll back.
"""

from dataclasses import dataclass

from schemas.v1.experiment import Experiment
from services.monitor.domain.checks import Action, Check, LatencyIncrease, RateIncrease
from services.monitor.domain.limits import AbsoluteErrors, AbsoluteLatency
from services.monitor.domain.statistics import EpochPlan, log_threshold

MIN_BAD_UNITS = 3
"""Distinct units of the canary that must look bad before it is rolled back."""

ERROR_FACTOR_PERCENT = 400.0
LATENCY_FACTOR_PERCENT = 100.0
"""Trigger 3, performance degradation: five times the errors, or latency up by 100 %."""

RELATIVE_RATES = (
    ("error_rate_increase", "errors"),
    ("client_error_increase", "client_errors"),
    ("overdue_increase", "overdue"),
)
FEEDBACK = ("thumbs_down_increase", "feedback")
RELATIVE_LATENCIES = (("latency_increase", "latency"), ("ttft_increase", "ttft"), ("inter_token_increase", "itl"))


@dataclass(frozen=True, slots=True)
class Levels:
    """The family's level over guardrails and epochs."""

    alpha: float
    guardrails: int
    plan: EpochPlan

    def limit(self, epoch: int) -> float:
        """Level (ln E) at which a guardrail fires in an epoch; overtime has the level of the last epoch."""
        weight = self.plan.weight(min(epoch, self.plan.count - 1))
        return log_threshold(self.alpha, self.guardrails, weight)


def build(experiment: Experiment) -> tuple[list[Check], Levels]:
    """The checks of a test, those that may roll back first, and the levels they fire at."""
    plan = EpochPlan(experiment.duration_seconds)
    checks = [*_relative(experiment, plan.steps), *_absolute(experiment, plan.steps)]
    checks.sort(key=lambda check: check.action != "rollback")
    acting = sum(check.action == "rollback" for check in checks)
    return checks, Levels(experiment.alpha, acting, plan)


def watches_feedback(experiment: Experiment) -> bool:
    """Whether thumbs-down are a guardrail: only by what was asked for at the start, since it takes a share of alpha."""
    return experiment.primary_metric == "thumbs"


def _relative(experiment: Experiment, steps: int) -> list[Check]:
    errors = experiment.success_criteria.max_error_rate_increase_percent
    slower = experiment.success_criteria.max_latency_increase_percent
    checks: list[Check] = []
    rates = (*RELATIVE_RATES, FEEDBACK) if watches_feedback(experiment) else RELATIVE_RATES
    for name, family in rates:
        checks.append(RateIncrease(name, family, "rollback", errors, steps))
        if errors > 0:
            checks.append(RateIncrease(f"{name}_warning", family, "warn", 0.0, steps))
    for name, family in RELATIVE_LATENCIES:
        checks.append(LatencyIncrease(name, family, "rollback", slower, steps))
        if slower > 0:
            checks.append(LatencyIncrease(f"{name}_warning", family, "warn", 0.0, steps))
    # Where the margins are tighter than trigger 3, they fire before it could.
    if errors > ERROR_FACTOR_PERCENT:
        checks.append(RateIncrease("performance_degradation_errors", "errors", "rollback", ERROR_FACTOR_PERCENT, steps))
    if slower > LATENCY_FACTOR_PERCENT:
        checks.append(
            LatencyIncrease("performance_degradation_latency", "latency", "rollback", LATENCY_FACTOR_PERCENT, steps)
        )
    return checks


def _absolute(experiment: Experiment, steps: int) -> list[Check]:
    failure, thresholds = experiment.failure_criteria, experiment.thresholds
    checks: list[Check] = [
        AbsoluteErrors(name, "errors", "rollback", limit, steps)
        for name, limit in _in_force(
            experiment,
            ("max_error_rate_percent", failure.max_error_rate_percent),
            ("critical_error_rate", thresholds.critical_error_rate),
        )
    ]
    checks += [
        AbsoluteLatency(name, "latency", "rollback", limit)
        for name, limit in _in_force(
            experiment,
            ("max_latency_ms", failure.max_latency_ms),
            ("critical_latency_ms", thresholds.critical_latency_ms),
        )
    ]
    warn: Action = "warn"
    checks.append(AbsoluteErrors("warning_error_rate", "errors", warn, thresholds.warning_error_rate, steps))
    checks.append(AbsoluteLatency("warning_latency_ms", "latency", warn, thresholds.warning_latency_ms))
    return checks


def _in_force(experiment: Experiment, *limits: tuple[str, float]) -> list[tuple[str, float]]:
    """The lowest limit, and every one that the operator named.

    A limit left at its default holds too, but above a lower one it could never fire first: it takes no share of K.
    """
    named = {path.rsplit(".", 1)[-1] for path in experiment.configured}
    lowest = min(limits, key=lambda limit: limit[1])
    return [limit for limit in limits if limit is lowest or limit[0] in named]
