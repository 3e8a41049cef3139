"""What every transition of an experiment is made of: the next version, its event, its result. Pure."""

from typing import Any

from schemas import subjects
from schemas.v1.common import Decision, rfc3339
from schemas.v1.events import TestEvent
from schemas.v1.experiment import Experiment, OutboxEvent, RollbackOrder, Setback, TestResult, VerdictRecord
from services.router.domain import slots
from services.router.domain.refusals import Conflict

Transition = tuple[Experiment, list[OutboxEvent]]

_CONFIGURED = frozenset({"test.started", "test.scheduled"})


def not_stopping(state: Experiment) -> None:
    """Raises Conflict while the test is being stopped."""
    if state.stopping is not None:
        raise Conflict(
            f"test '{state.test_id}' is being stopped: wait for its result in GET /v1/ab-testing/tests/{state.test_id}",
            code="stopping",
        )


def following(state: Experiment, **fields: Any) -> Experiment:
    """The next version of the entry."""
    return state.model_copy(update={"version": state.version + 1, **fields})


def ended(state: Experiment, now_ms: int, **fields: Any) -> Experiment:
    """The next version, the last one: nothing is planned or under way any more."""
    return following(
        state, ended_ms=now_ms, stopping=None, rollback_at=None, descent=None, setback=settled(state.setback), **fields
    )


def settled(setback: Setback | None) -> Setback | None:
    """A setback without a retry to come."""
    return None if setback is None else setback.model_copy(update={"retry_at_ms": None})


def at_share(state: Experiment, share_bp: int) -> dict[str, Any]:
    """The fields that a share takes."""
    return {"share_bp": share_bp, "slots": slots.resize(state.slots, share_bp)}


def change(
    state: Experiment, kind: str, actor: str, reason: str | None, now_ms: int, *, order: RollbackOrder | None = None,
    **fields: Any,
) -> Transition:  # fmt: skip
    """The next version with its event."""
    return emit(following(state, **fields), kind, actor, reason, now_ms, order=order)


def emit(
    state: Experiment, kind: str, actor: str, reason: str | None, now_ms: int, *, with_result: bool = False,
    order: RollbackOrder | None = None,
) -> Transition:  # fmt: skip
    """This version with its event in the outbox; ``order`` is the decision behind it, by default the rollback's."""
    data = TestEvent(
        test_id=state.test_id,
        version=state.version,
        status=state.status,
        model_a=state.model_a,
        model_b=state.model_b,
        share_bp=state.share_bp,
        actor=actor,
        reason=reason,
        config_hash=state.config_hash,
        at_ms=now_ms,
        result=state.result if with_result else None,
        order=order or state.rollback,
        configuration=state.configuration if kind in _CONFIGURED or with_result else None,
        tags=dict(state.tags),
    )
    event = OutboxEvent(
        id=f"{state.test_id}.{state.version}.1",
        subject=subjects.event(kind),
        type=kind,
        at_ms=now_ms,
        data=data.model_dump(mode="json", exclude_none=True),
    )
    return state.model_copy(update={"outbox": [*state.outbox, event]}), [event]


def bare_verdict(state: Experiment, decision: Decision, rule: str, reason: str, at_ms: int) -> VerdictRecord:
    """The record of a decision that rests on no evidence of the monitor's: an operator's, a breaker's, nobody's."""
    return VerdictRecord(
        decision=decision, reason=reason, rule=rule, at_ms=at_ms, split_bp=state.share_bp,
        digests=dict(state.digests), config_hash=state.config_hash,
    )  # fmt: skip


def result(state: Experiment, decision: Decision | None, reason: str | None) -> TestResult:
    """The test in the shape of a result, as it stands."""
    return TestResult(
        test_id=state.test_id,
        status=state.status,
        decision=decision,
        reason=reason,
        start_time=None if state.started_ms is None else rfc3339(state.started_ms),
        end_time=None if state.ended_ms is None else rfc3339(state.ended_ms),
        models={"variant_a": state.model_a, "variant_b": state.model_b},
        traffic_split_percent=state.share_bp / 100,
        tags=dict(state.tags),
        version=state.version,
    )


def percent(share_bp: int) -> str:
    """A share for people, such as ``2.5 %``."""
    return f"{share_bp / 100:g} %"
