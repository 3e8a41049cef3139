"""From what an operator sends to a complete Start command: defaults filled in, limits checked."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from schemas.v1.common import rfc3339
from schemas.v1.control import FailureCriteriaPatch, StartRequest
from schemas.v1.experiment import FailureCriteria, RetryPolicy, SuccessCriteria, Thresholds
from services.router.domain import rollout
from services.router.domain.commands import Start
from services.router.domain.refusals import BadRequest, Conflict, NotFound, Unprocessable

FARTHEST_MS = 366 * 86_400_000
"""Nothing is scheduled farther ahead: a wrong year is a slip."""


@dataclass(frozen=True, slots=True)
class StartDefaults:
    """What the configuration says about tests. Split in percent, duration in minutes.

    ``configured`` names the limits that the configuration file sets itself.
    """

    enabled: bool = True
    split_percent: float = 10.0
    max_duration_minutes: float = 1440.0
    success_criteria: SuccessCriteria = field(default_factory=SuccessCriteria)
    failure_criteria: FailureCriteria = field(default_factory=FailureCriteria)
    thresholds: Thresholds = field(default_factory=Thresholds)
    configured: frozenset[str] = frozenset()
    policies: Mapping[str, Any] = field(default_factory=dict)
    check_interval_seconds: float = 30.0


def future_ms(text: str, param: str, now_ms: int) -> int:
    """An RFC 3339 time as Unix milliseconds.

    Raises Unprocessable naming ``param`` when it is no such time, has no offset, is past, or more than a year ahead.
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Unprocessable(
            f"{param} is not a time: give RFC 3339, such as 2026-01-31T03:00:00Z", param=param
        ) from None
    if "T" not in text.upper() or when.tzinfo is None:
        raise Unprocessable(
            f"{param} needs date, time and offset: give RFC 3339, such as 2026-01-31T03:00:00Z", param=param
        )
    try:
        at_ms = round(when.timestamp() * 1000)
    except (OverflowError, OSError, ValueError):
        raise Unprocessable(f"{param} is out of range: give a time within a year", param=param) from None
    if at_ms <= now_ms:
        raise Unprocessable(f"{param} is past (it is {rfc3339(now_ms)} now): give a time to come", param=param)
    if at_ms - now_ms > FARTHEST_MS:
        raise Unprocessable(f"{param} is more than a year ahead: give an earlier time", param=param)
    return at_ms


def resolve(
    request: StartRequest,
    defaults: StartDefaults,
    digests: Mapping[str, str],
    *,
    test_id: str,
    salt: str,
    actor: str,
    now_ms: int = 0,
) -> Start:
    """The command behind a start request.

    ``digests`` holds every known model's digest ('' where the engine tells none). Raises Conflict when testing is
    switched off, BadRequest for a model against itself, Unprocessable for values out of range, NotFound for a model
    that nobody serves.
    """
    if not defaults.enabled:
        raise Conflict(
            "A/B testing is switched off: set ab_testing.enabled (APHRODITE_AB_TESTING_ENABLED) to true and restart",
            code="ab_testing_disabled",
        )
    if request.model_a == request.model_b:
        raise BadRequest(
            f"model_a and model_b are both '{request.model_a}': a test compares two models", param="model_b",
            code="same_models",
        )  # fmt: skip
    planned = rollout.times(request, defaults.max_duration_minutes)
    success = rollout.criteria(defaults.success_criteria, request)
    share, steps = rollout.shares(request, defaults.split_percent, planned.duration_minutes, success.min_sample_size)
    named_guardrails = rollout.guardrails(request.guardrails, success)
    for param, name in (("model_a", request.model_a), ("model_b", request.model_b)):
        if name not in digests:
            raise NotFound(
                f"{param} '{name}' is unknown: GET /v1/ab-testing/models lists the models", param=param,
                code="model_not_found",
            )  # fmt: skip
    starts_ms = None if request.schedule is None else future_ms(request.schedule, "schedule", now_ms)
    failure = _patched(defaults.failure_criteria, request.failure_criteria)
    named = set(defaults.configured)
    for section, patch in (
        ("success_criteria", request.success_criteria),
        ("failure_criteria", request.failure_criteria),
    ):
        if patch is not None:
            named |= {f"{section}.{name}" for name in patch.model_dump(exclude_none=True)}
    success = _with_negligible(success, failure, named)
    effective: dict[str, Any] = {
        "share_bp": share,
        "duration_minutes": planned.duration_minutes,
        "min_duration_minutes": planned.min_duration_minutes,
        "auto_rollback": request.auto_rollback,
        "success_criteria": success,
        "failure_criteria": failure,
        "thresholds": defaults.thresholds,
        "policies": dict(defaults.policies),
        "check_interval_seconds": defaults.check_interval_seconds,
        "primary_metric": request.primary_metric or "latency",
        "configured": tuple(sorted(named)),
        "guardrails": tuple(named_guardrails),
        "ramp": tuple(steps),
        "retry": RetryPolicy.model_validate(request.retry.model_dump() if request.retry else {}),
    }
    return Start(
        test_id=test_id,
        model_a=request.model_a,
        model_b=request.model_b,
        salt=salt,
        actor=actor,
        digests={"a": digests[request.model_a], "b": digests[request.model_b]},
        config_hash=config_hash({**effective, "model_a": request.model_a, "model_b": request.model_b}),
        tags=dict(request.tags),
        preset=request.preset or "",
        change_type=request.change_type or "",
        starts_ms=starts_ms,
        **effective,
    )


def config_hash(effective: Mapping[str, Any]) -> str:
    """``sha256:`` and the digest of the settings as canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(effective, sort_keys=True, separators=(",", ":"), default=_plain)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no canonical form")


def _with_negligible(success: SuccessCriteria, failure: FailureCriteria, named: set[str]) -> SuccessCriteria:
    """A rate that is a failure is not negligible: refused where somebody named it, else none is negligible."""
    negligible = success.negligible_error_rate_percent
    if not negligible or negligible < failure.max_error_rate_percent:
        return success
    param = "success_criteria.negligible_error_rate_percent"
    if param in named:
        raise Unprocessable(
            f"{param} is {negligible:g}, not below failure_criteria.max_error_rate_percent "
            f"({failure.max_error_rate_percent:g}): give a lower value, or 0 for none",
            param=param,
        )
    return success.model_copy(update={"negligible_error_rate_percent": 0.0})


def _patched(base: FailureCriteria, patch: FailureCriteriaPatch | None) -> FailureCriteria:
    changes = patch.model_dump(exclude_none=True) if patch is not None else {}
    return FailureCriteria.model_validate({**base.model_dump(), **changes})
