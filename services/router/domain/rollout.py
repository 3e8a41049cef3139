"""How a start request wants B rolled out: presets, kinds of change, duration, ramp, guardrails. Pure."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from schemas.v1.control import ChangeType, GuardrailSpec, Preset, RampSpec, StartRequest
from schemas.v1.experiment import Guardrail, RampStep, SuccessCriteria
from services.router.domain.refusals import Unprocessable
from services.router.domain.shares import share_bp

PRESET_CRITERIA: dict[Preset, dict[str, Any]] = {
    "conservative": {
        "min_improvement_threshold": 10.0, "max_error_rate_increase_percent": 25.0,
        "max_latency_increase_percent": 10.0, "min_sample_size": 1000,
    },
    "aggressive": {
        "min_improvement_threshold": 2.0, "max_error_rate_increase_percent": 100.0,
        "max_latency_increase_percent": 50.0, "min_sample_size": 50,
    },
}  # fmt: skip
PRESET_SHARES: dict[Preset, tuple[int, ...]] = {
    "conservative": (100, 500, 1000, 2500, 5000),
    "aggressive": (1000, 5000),
}
"""In hundredths of a percent."""

SOAK_PART = 10
"""By default a step soaks for this part of the duration."""

_SLOWNESS = frozenset({"latency", "ttft", "inter_token", "cost"})


@dataclass(frozen=True, slots=True)
class Recommended:
    """What the spec's guidelines recommend for a kind of change: minutes, and shares in hundredths of a percent."""

    shortest_minutes: float
    longest_minutes: float
    low_bp: int
    high_bp: int


CHANGES: dict[ChangeType, Recommended] = {
    "bug_fix": Recommended(30, 60, 1000, 2500),
    "performance_optimization": Recommended(120, 240, 500, 1500),
    "model_update": Recommended(240, 1440, 100, 1000),
    "architecture_change": Recommended(1440, 4320, 100, 500),
}


@dataclass(frozen=True, slots=True)
class Times:
    """Minutes: how long a test takes, and before which nothing is promoted."""

    duration_minutes: float
    min_duration_minutes: float


def criteria(base: SuccessCriteria, request: StartRequest) -> SuccessCriteria:
    """The configuration's criteria, over them the preset's, over those what the request names itself."""
    preset = PRESET_CRITERIA[request.preset] if request.preset else {}
    return SuccessCriteria.model_validate({**base.model_dump(), **preset, **_given(request.success_criteria)})


def times(request: StartRequest, max_minutes: float) -> Times:
    """Duration and shortest duration; raises Unprocessable when a limit is passed."""
    change = CHANGES[request.change_type] if request.change_type else None
    minutes = request.test_duration_minutes
    if minutes is None:
        minutes = max_minutes if change is None else _recommended(request, change, max_minutes)
    elif minutes > max_minutes:
        raise Unprocessable(
            f"test_duration_minutes is {minutes:g}, above max_test_duration_minutes ({max_minutes:g}): "
            "give a shorter duration or raise the limit in the configuration",
            param="test_duration_minutes",
        )
    shortest = request.min_duration_minutes
    if shortest is None:
        shortest = min(change.shortest_minutes, minutes) if change else 0.0
    elif shortest > minutes:
        raise Unprocessable(
            f"min_duration_minutes is {shortest:g}, above the duration ({minutes:g}): give a lower value or a longer "
            "test_duration_minutes",
            param="min_duration_minutes",
        )
    return Times(minutes, shortest)


def _recommended(request: StartRequest, change: Recommended, max_minutes: float) -> float:
    if change.shortest_minutes > max_minutes:
        raise Unprocessable(
            f"change_type {request.change_type} asks for at least {change.shortest_minutes:g} minutes, above "
            f"max_test_duration_minutes ({max_minutes:g}): give test_duration_minutes, or raise the limit in the "
            "configuration",
            param="change_type",
        )
    return min(change.longest_minutes, max_minutes)


def shares(request: StartRequest, default_percent: float, minutes: float, sample: int) -> tuple[int, list[RampStep]]:
    """The first share in hundredths of a percent, and the steps of the ramp, if there is one.

    ``minutes`` is the test's duration and ``sample`` its smallest sample. Raises Unprocessable naming the field.
    """
    if request.ramp is not None:
        steps = _steps(request.ramp, minutes, sample)
        _begins_there(request.traffic_split_percent, steps[0].share_bp)
        return steps[0].share_bp, steps
    if request.traffic_split_percent is not None:
        return share_bp(request.traffic_split_percent), []
    change = CHANGES[request.change_type] if request.change_type else None
    if request.preset is not None:
        found = PRESET_SHARES[request.preset]
        if change is not None:
            within = {share for share in found if change.low_bp <= share <= change.high_bp}
            found = tuple(sorted(within | {change.low_bp, change.high_bp}))
        return found[0], [RampStep(share_bp=s, soak_minutes=minutes / SOAK_PART, min_requests=sample) for s in found]
    return (change.low_bp if change else share_bp(default_percent)), []


def _begins_there(percent: float | None, first_bp: int) -> None:
    if percent is not None and share_bp(percent) != first_bp:
        raise Unprocessable(
            f"traffic_split_percent is {percent:g}, but the ramp begins at {first_bp / 100:g}: leave it out, or give "
            "the ramp's first split",
            param="traffic_split_percent",
        )


def _steps(ramp: RampSpec, minutes: float, sample: int) -> list[RampStep]:
    soak = minutes / SOAK_PART if ramp.soak_minutes is None else ramp.soak_minutes
    least = sample if ramp.min_requests is None else ramp.min_requests
    steps = [
        RampStep(
            share_bp=share_bp(step.traffic_split_percent, f"ramp.steps.{index}.traffic_split_percent"),
            soak_minutes=soak if step.soak_minutes is None else step.soak_minutes,
            min_requests=least if step.min_requests is None else step.min_requests,
            gate=step.gate or ramp.gate,
        )
        for index, step in enumerate(ramp.steps)
    ]
    for index, (lower, step) in enumerate(pairwise(steps), 1):
        if step.share_bp <= lower.share_bp:
            param = f"ramp.steps.{index}.traffic_split_percent"
            raise Unprocessable(
                f"{param} is {step.share_bp / 100:g}, not above the {lower.share_bp / 100:g} before it: give the steps "
                "of a ramp in rising order",
                param=param,
            )
    _soak_fits(ramp, sum(step.soak_minutes for step in steps), minutes)
    return steps


def _soak_fits(ramp: RampSpec, total: float, minutes: float) -> None:
    if total <= minutes * (1 + 1e-9):
        return
    own = [index for index, step in enumerate(ramp.steps) if step.soak_minutes is not None]
    param = f"ramp.steps.{own[-1]}.soak_minutes" if own else "ramp.soak_minutes"
    raise Unprocessable(
        f"{param}: the {len(ramp.steps)} steps of the ramp soak for {total:g} minutes in all, longer than the test "
        f"({minutes:g}): give a shorter soak_minutes, such as {minutes / len(ramp.steps):.4g} for each step, fewer "
        "steps, or a longer test_duration_minutes",
        param=param,
    )


def guardrails(specs: list[GuardrailSpec] | None, limits: SuccessCriteria) -> list[Guardrail]:
    """The guardrails that the request names, each metric once; raises Unprocessable for one named twice."""
    found: dict[str, Guardrail] = {}
    for index, spec in enumerate(specs or []):
        if spec.metric in found:
            raise Unprocessable(
                f"guardrails.{index}.metric: there is a guardrail of {spec.metric} already: name each metric once",
                param=f"guardrails.{index}.metric",
            )
        margin = spec.margin_percent
        if margin is None:
            slow = spec.metric in _SLOWNESS
            margin = limits.max_latency_increase_percent if slow else limits.max_error_rate_increase_percent
        found[spec.metric] = Guardrail(
            metric=spec.metric, margin_percent=margin, action=spec.action, weight=spec.weight
        )
    return list(found.values())


def _given(patch: BaseModel | None) -> dict[str, Any]:
    return patch.model_dump(exclude_none=True) if patch is not None else {}
