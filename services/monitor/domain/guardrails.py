"""Which checks a test has, what each does when it fires, its share of the level, and at what ln E it fires.

Source of the levels: `statistics.log_threshold`. A check that acts has alpha_k = alpha * w_k / sum of w over all that
act; in epoch e it fires at ln(1 / (alpha_k * v_e)). Equal weights give ln(K / (alpha * v_e)), with K checks that act.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.v1.experiment import Experiment, GuardrailAction
from schemas.v1.windows import OUTCOME_KINDS
from services.monitor.domain.checks import Check, LatencyIncrease, RateIncrease
from services.monitor.domain.limits import AbsoluteErrors, AbsoluteLatency
from services.monitor.domain.statistics import EpochPlan, log_threshold

MIN_BAD_UNITS = 3
"""Distinct units of the canary that must look bad before anything is done to it."""

ERROR_FACTOR_PERCENT = 400.0
LATENCY_FACTOR_PERCENT = 100.0
"""Trigger 3, performance degradation: five times the errors, or latency up by 100 %."""

RATES = {
    "error_rate": ("error_rate_increase", "errors"),
    "client_error_rate": ("client_error_increase", "client_errors"),
    "overdue": ("overdue_increase", "overdue"),
    "thumbs_down": ("thumbs_down_increase", "feedback"),
    **{kind.value: (f"{kind.value}_increase", kind.value) for kind in OUTCOME_KINDS},
}
VALUES = {
    "latency": ("latency_increase", "latency"),
    "ttft": ("ttft_increase", "ttft"),
    "inter_token": ("inter_token_increase", "itl"),
    "cost": ("cost_increase", "cost"),
}
"""Name and family of the check behind each metric of a guardrail: rates of bad events, and values of requests."""

_REDUCES = frozenset({"step_down", "rollback"})
_DEFAULT_RATES = ("error_rate", "client_error_rate", "overdue")
_DEFAULT_VALUES = ("latency", "ttft", "inter_token")


@dataclass(frozen=True, slots=True)
class Levels:
    """The family's level over the checks that act (``weights`` by name) and over epochs."""

    alpha: float
    plan: EpochPlan
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def guardrails(self) -> int:
        """K: the checks that may do something to the canary."""
        return len(self.weights)

    def share(self, name: str | None = None) -> float:
        """A check's part of the level, of 1; that of an equal share for a check that only warns, and without a name."""
        return 1.0 / self._parts(name)

    def limit(self, epoch: int, name: str | None = None) -> float:
        """Level (ln E) at which a check fires in an epoch; overtime has the level of the last epoch."""
        weight = self.plan.weight(min(epoch, self.plan.count - 1))
        return log_threshold(self.alpha, self._parts(name), weight)

    def _parts(self, name: str | None) -> float:
        """Into how many parts like a check's own the level is divided."""
        weight = self.weights.get(name) if name is not None else None
        return max(1, self.guardrails) if weight is None else sum(self.weights.values()) / weight


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A guardrail against control: which metric, how much more is allowed, what it does, its weight."""

    metric: str
    margin_percent: float
    action: GuardrailAction = "rollback"
    weight: float = 1.0


def build(experiment: Experiment) -> tuple[list[Check], Levels]:
    """The checks of a test, those that act first, and the levels they fire at."""
    plan = EpochPlan(experiment.duration_seconds)
    weights: dict[str, float] = {}
    checks = [*_relative(experiment, plan.steps, weights), *_absolute(experiment, plan.steps)]
    checks.sort(key=lambda check: check.action == "warn")
    acting = {check.name: weights.get(check.name, 1.0) for check in checks if check.action != "warn"}
    return checks, Levels(experiment.alpha, plan, acting)


def _wanted(experiment: Experiment) -> list[_Wanted]:
    """The default guardrails, each where it was replaced, and after them those that were added."""
    errors = experiment.success_criteria.max_error_rate_increase_percent
    slower = experiment.success_criteria.max_latency_increase_percent
    # Thumbs-down only by what was asked for at the start, since they take a share of alpha.
    rates = (*_DEFAULT_RATES, "thumbs_down") if experiment.primary_metric == "thumbs" else _DEFAULT_RATES
    named: dict[str, list[_Wanted]] = {}
    for own in experiment.guardrails:
        named.setdefault(own.metric, []).append(_Wanted(own.metric, own.margin_percent, own.action, own.weight))
    found: list[_Wanted] = []
    for metrics, margin in ((rates, errors), (_DEFAULT_VALUES, slower)):
        for metric in metrics:
            found += named.pop(metric, [_Wanted(metric, margin)])
    return [*found, *(wanted for several in named.values() for wanted in several)]


def _relative(experiment: Experiment, steps: int, weights: dict[str, float]) -> list[Check]:
    wanted = _wanted(experiment)
    checks: list[Check] = []
    used: Counter[str] = Counter()
    for one in wanted:
        plain = (RATES.get(one.metric) or VALUES[one.metric])[0]
        used[plain] += 1
        # Two guardrails of one metric (a step down, and a rollback beyond a wider margin) are told apart by number.
        name = plain if used[plain] == 1 else f"{plain}_{used[plain]}"
        weights[name] = one.weight
        checks.append(_against_control(one.metric, name, one.action, one.margin_percent, steps))
        if one.action != "warn" and one.margin_percent > 0 and used[f"{plain}_warning"] == 0:
            used[f"{plain}_warning"] = 1
            checks.append(_against_control(one.metric, f"{plain}_warning", "warn", 0.0, steps))
    for name, metric, factor in (
        ("performance_degradation_errors", "error_rate", ERROR_FACTOR_PERCENT),
        ("performance_degradation_latency", "latency", LATENCY_FACTOR_PERCENT),
    ):
        # What takes traffic from the canary at a tighter margin than trigger 3 acts before trigger 3 could.
        if not any(w.metric == metric and w.action in _REDUCES and w.margin_percent <= factor for w in wanted):
            checks.append(_against_control(metric, name, "rollback", factor, steps))
    return checks


def _against_control(metric: str, name: str, action: GuardrailAction, margin_percent: float, steps: int) -> Check:
    if metric in RATES:
        return RateIncrease(name, RATES[metric][1], action, margin_percent, steps)
    return LatencyIncrease(name, VALUES[metric][1], action, margin_percent, steps)


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
    checks.append(AbsoluteErrors("warning_error_rate", "errors", "warn", thresholds.warning_error_rate, steps))
    checks.append(AbsoluteLatency("warning_latency_ms", "latency", "warn", thresholds.warning_latency_ms))
    return checks


def _in_force(experiment: Experiment, *limits: tuple[str, float]) -> list[tuple[str, float]]:
    """The lowest limit, and every one that the operator named.

    A limit left at its default holds too, but above a lower one it could never fire first: it takes no share of K.
    """
    named = {path.rsplit(".", 1)[-1] for path in experiment.configured}
    lowest = min(limits, key=lambda limit: limit[1])
    return [limit for limit in limits if limit is lowest or limit[0] in named]
