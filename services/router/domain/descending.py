"""Taking traffic from B: at once, or in steps down to a target that the stable model can take (`capacity`). Pure."""

from schemas.v1.common import Decision, TestStatus
from schemas.v1.experiment import Descent, Experiment, RollbackOrder
from services.router.domain import commands as c
from services.router.domain.transitions import (
    Transition,
    at_share,
    bare_verdict,
    change,
    emit,
    ended,
    following,
    not_stopping,
    percent,
    result,
    settled,
)

SYSTEM = "system"
"""The actor of what follows from an earlier decision."""

ROLLBACK_FLOOR_BP = 100
"""A gradual rollback ends when its next step would be below this share."""


def under_way(state: Experiment) -> Descent | None:
    """The reduction that is to go on now: a rollback's in steps, or a step down's while the test runs."""
    if state.stopping is not None:
        return None
    if state.status is TestStatus.ROLLING_BACK:
        return state.descent or Descent()
    return state.descent if state.status is TestStatus.RUNNING else None


def wanted_bp(state: Experiment, descent: Descent) -> int:
    """The share after the next step, where the stable model can take it whole."""
    if state.status is not TestStatus.ROLLING_BACK:
        return descent.target_bp
    half = state.share_bp // 2
    return 0 if half < ROLLBACK_FLOOR_BP else half


def begin_rollback(state: Experiment, cmd: c.BeginRollback, now_ms: int) -> Transition:
    """A rollback in steps; of a canary that gets nothing, at once."""
    not_stopping(state)
    if state.status is TestStatus.ROLLING_BACK:
        return state, []
    if state.status is TestStatus.SCHEDULED or state.share_bp == 0:
        return rolled_back(state, cmd.order, now_ms)
    order = cmd.order
    return change(
        state, "test.rolling_back", order.actor, order.reason, now_ms, status=TestStatus.ROLLING_BACK, rollback=order,
        rollback_at=None, descent=Descent(), setback=settled(state.setback),
    )  # fmt: skip


def descend(state: Experiment, cmd: c.Descend, now_ms: int) -> Transition:
    """One step down; the step that reaches the target ends the reduction, at 0 the test."""
    descent = under_way(state)
    if descent is None or state.version != cmd.version or not descent.target_bp <= cmd.share_bp < state.share_bp:
        return state, []
    order = state.rollback
    if state.status is TestStatus.ROLLING_BACK:
        if order is None:
            return state, []
        if cmd.share_bp == 0:
            return rolled_back(state, order, now_ms)
        actor, reason = order.actor, f"gradual rollback: {order.reason}"
    else:
        actor, reason = SYSTEM, f"step down to {percent(descent.target_bp)}"
        if state.setback is not None and state.setback.rule:
            reason += f" ({state.setback.rule})"
    on_its_way = descent.model_copy(update={"stepped_ms": now_ms, "waiting": ""})
    left = None if cmd.share_bp == descent.target_bp else on_its_way
    return change(state, "test.split_changed", actor, reason, now_ms, descent=left, **at_share(state, cmd.share_bp))


def wait(state: Experiment, cmd: c.Wait, _now_ms: int) -> Transition:
    """Note what the next step waits for; nothing of the test changes, so there is no event."""
    descent = under_way(state)
    if descent is None or state.version != cmd.version or descent.waiting == cmd.waiting:
        return state, []
    return following(state, descent=descent.model_copy(update={"waiting": cmd.waiting})), []


def rollback(state: Experiment, cmd: c.Rollback, now_ms: int) -> Transition:
    """The canary gets nothing any more."""
    return rolled_back(state, cmd.order, now_ms)


def rolled_back(state: Experiment, order: RollbackOrder, now_ms: int) -> Transition:
    """The end of the test by a rollback."""
    done = ended(state, now_ms, status=TestStatus.ROLLED_BACK, rollback=order, share_bp=0, slots=[])
    # The result tells the split that the test ran at, not the 0 that ended it.
    done.result = result(done, Decision.ROLLBACK, order.reason).model_copy(
        update={
            "verdict": order.verdict or bare_verdict(state, Decision.ROLLBACK, order.rule, order.reason, order.at_ms),
            "traffic_split_percent": state.share_bp / 100,
        }
    )
    return emit(done, "test.rolled_back", order.actor, order.reason, now_ms, with_result=True)
