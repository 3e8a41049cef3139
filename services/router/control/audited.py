"""What audit records show of tests, models and switches before and after a command: small, and without secrets."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from schemas.v1.common import rfc3339
from schemas.v1.control import MonitoringState
from schemas.v1.experiment import Experiment, TestResult
from schemas.v1.models import ModelEntry
from services.router.control.config_view import mask
from services.router.domain.refusals import Refused

Shown = dict[str, Any]

MAX_SHOWN = 2048
"""Bytes of one side as JSON: records are kept for months, and pages of them travel in one message."""
_MAX_TEXT = 256
_OF_SPEC = (
    "engine", "path", "adapter", "digest", "base_url", "upstream_model", "pool", "timeout_seconds", "max_concurrency",
)  # fmt: skip
"""What of a model's entry is shown: which model it is and where, not its arguments, headers and prices."""


def bounded(shown: Shown | None) -> Shown | None:
    """One side of a change as a record keeps it: what is too large to be kept is replaced by its size."""
    if shown is None:
        return None
    size = len(json.dumps(shown, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return shown if size <= MAX_SHOWN else {"left_out_bytes": size}


@contextlib.contextmanager
def found(look: Callable[[], Shown | None]) -> Iterator[None]:
    """What a refused command found (``look``, asked when it is refused) goes with its refusal into the audit."""
    try:
        yield
    except Refused as exc:
        if exc.before is None:
            exc.before = look()
        raise


def of_test(test: Experiment | None) -> Shown | None:
    """How a test stands; None where there is none."""
    if test is None:
        return None
    shown: Shown = {
        "test_id": test.test_id, "status": test.status.value, "version": test.version,
        "traffic_split_percent": test.share_bp / 100,
    }  # fmt: skip
    if test.ramp is not None:
        shown |= {"ramp_step": test.ramp.step + 1, "approved_step": test.ramp.approved + 1}
    if test.rollback_at is not None:
        shown["rollback_at"] = rfc3339(test.rollback_at.at_ms)
    if test.rollback is not None:
        shown["rollback_rule"] = test.rollback.rule
        shown["reason"] = test.rollback.reason[:_MAX_TEXT]
    return shown


def of_start(test: Experiment) -> Shown:
    """A test that has just been made: how it stands, and what it is."""
    return {
        **(of_test(test) or {}), "model_a": test.model_a, "model_b": test.model_b,
        "duration_minutes": test.duration_minutes, "auto_rollback": test.auto_rollback, "config_hash": test.config_hash,
    }  # fmt: skip


def of_result(result: TestResult) -> Shown:
    """A test that has ended."""
    return {
        "test_id": result.test_id, "status": result.status.value, "version": result.version,
        "decision": None if result.decision is None else result.decision.value,
        "reason": None if result.reason is None else result.reason[:_MAX_TEXT],
    }  # fmt: skip


def of_model(entry: ModelEntry | None) -> Shown | None:
    """What is wanted of a model; None where the registry has no entry: it is as the workers' configuration says."""
    if entry is None:
        return None
    spec = {key: value for key, value in (entry.spec or {}).items() if key in _OF_SPEC}
    shown: Shown = {
        "desired": entry.desired, "generation": entry.generation, "strategy": entry.strategy, "reload": entry.reload,
        "by": entry.actor,
    }  # fmt: skip
    return shown | ({"spec": mask(spec)} if entry.spec is not None else {})


def of_monitoring(state: MonitoringState) -> Shown:
    """The switch of automated monitoring."""
    return {"monitoring_active": state.active, "check_interval_seconds": state.check_interval_seconds}
