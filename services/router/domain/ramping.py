"""A ramp's way up and down: approvals, steps, steps down, retries. The monitor decides when, these rules whether.

A decision of the monitor's acts only on the version that it was taken on, and only while the test runs; on anything
else it changes nothing, so delivering one twice is harmless.
"""

from schemas.v1.common import TestStatus, rfc3339
from schemas.v1.experiment import Descent, Experiment, Ramp, RetryPolicy, Setback
from services.router.domain import commands as c
from services.router.domain.refusals import Conflict
from services.router.domain.transitions import Transition, at_share, change, not_stopping, percent, settled

STEP_DOWN_FLOOR_BP = 100
"""Halving ends at this share (or at the present one, where that is lower): a smaller canary shows nothing in time."""

_MINUTE_MS = 60_000
_LONGEST_WAIT_MS = 366 * 86_400_000
"""Longer than any test: a backoff that doubles twenty times would leave the calendar."""
_BEGUN = frozenset({TestStatus.RUNNING, TestStatus.PAUSED})


def begun(ramp: Ramp | None, now_ms: int) -> Ramp | None:
    """The ramp with its present step beginning now."""
    return None if ramp is None else ramp.model_copy(update={"since_ms": now_ms})


def held(ramp: Ramp | None, actor: str, *, again: bool) -> Ramp | None:
    """The ramp after an operator set the split; one that is held already says so ``again`` only for another split."""
    if ramp is None or (ramp.held and not again):
        return ramp
    return ramp.model_copy(update={"held": f"the split was set by {actor}"})


def waits_for_approval(state: Experiment) -> bool:
    """Whether the present step's manual gate is shut, with a step behind it that the ramp would go to."""
    ramp = state.ramp
    return (
        ramp is not None
        and not ramp.held
        and state.status in _BEGUN
        and ramp.step + 1 < len(ramp.steps)
        and ramp.steps[ramp.step].gate == "manual"
        and ramp.approved < ramp.step
    )


def approve(state: Experiment, cmd: c.Approve, now_ms: int) -> Transition:
    """Open the present step's gate; Conflict when it needs no approval (any more)."""
    not_stopping(state)
    ramp = state.ramp
    if ramp is None or not waits_for_approval(state):
        raise Conflict(f"test '{state.test_id}' waits for no approval: {_why_not(state)}", code="nothing_to_approve")
    reason = f"step {ramp.step + 1} of {len(ramp.steps)}, {percent(state.share_bp)}"
    approved = ramp.model_copy(update={"approved": ramp.step})
    return change(state, "test.approved", cmd.actor, reason, now_ms, ramp=approved)


def _why_not(state: Experiment) -> str:
    ramp = state.ramp
    if ramp is None:
        return "it has no ramp; PATCH /v1/ab-testing/traffic-split sets its split"
    if state.status not in _BEGUN:
        return f"it is {state.status}"
    if ramp.held:
        return f"its ramp is held ({ramp.held}); PATCH /v1/ab-testing/traffic-split sets its split"
    if ramp.step + 1 == len(ramp.steps):
        return "its ramp is at its last step"
    if ramp.steps[ramp.step].gate != "manual":
        return f"the gate of its step {ramp.step + 1} is {ramp.steps[ramp.step].gate}, which opens by itself"
    return f"its step {ramp.step + 1} is approved already"


def advance(state: Experiment, cmd: c.Advance, now_ms: int) -> Transition:
    """The next step, unless something keeps the ramp where it is."""
    ramp = state.ramp
    if not _in_force(state, cmd) or ramp is None or ramp.step + 1 >= len(ramp.steps):
        return state, []
    if ramp.held or waits_for_approval(state) or _set_back(state):
        return state, []
    order, step = cmd.order, ramp.step + 1
    up = ramp.model_copy(update={"step": step, "since_ms": now_ms})
    return change(
        state, "test.ramped", order.actor, order.reason, now_ms, order=order, ramp=up,
        **at_share(state, ramp.steps[step].share_bp),
    )  # fmt: skip


def _set_back(state: Experiment) -> bool:
    """Whether a step down is under way, not taken back yet, or was the last one: then only a retry goes up."""
    setback = state.setback
    return state.descent is not None or (
        setback is not None and (setback.retry_at_ms is not None or setback.count > state.retry.max_retries)
    )


def hold(state: Experiment, cmd: c.Hold, now_ms: int) -> Transition:
    """The monitor's pause."""
    if not _in_force(state, cmd):
        return state, []
    order = cmd.order
    return change(state, "test.paused", order.actor, order.reason, now_ms, order=order, status=TestStatus.PAUSED)


def step_down(state: Experiment, cmd: c.StepDown, now_ms: int) -> Transition:
    """To the share of the step before, or half; what is left of a ramp goes on from there after the retry.

    A setback whose retry has not been made keeps the share that it goes back to.
    """
    if not _in_force(state, cmd):
        return state, []
    ramp, before, order = state.ramp, state.setback, cmd.order
    now_bp = state.share_bp if state.descent is None else state.descent.target_bp
    target, step = _below(ramp, now_bp)
    count = (before.count if before else 0) + 1
    pending = before is not None and before.retry_at_ms is not None
    setback = Setback(
        count=count,
        from_bp=before.from_bp if before and pending else state.share_bp,
        from_step=before.from_step if before and pending else (ramp.step if ramp else 0),
        since_ms=now_ms,
        retry_at_ms=_retry_at(state.retry, count, now_ms),
        rule=order.rule,
    )
    if ramp is not None:
        ramp = ramp.model_copy(update={"step": step, "since_ms": now_ms})
    stepped = state.descent.stepped_ms if state.descent else 0
    descent = Descent(target_bp=target, stepped_ms=stepped) if target < state.share_bp else None
    where = f"to {percent(target)}" if target < now_bp else f"{percent(target)} is the lowest step, which stays"
    then = "no retry is left" if setback.retry_at_ms is None else f"retry at {rfc3339(setback.retry_at_ms)}"
    reason = f"{where}, {then}: {order.reason}"
    return change(
        state, "test.stepped_down", order.actor, reason, now_ms, order=order, ramp=ramp, setback=setback,
        descent=descent,
    )  # fmt: skip


def _retry_at(policy: RetryPolicy, count: int, now_ms: int) -> int | None:
    if count > policy.max_retries:
        return None
    return now_ms + min(_LONGEST_WAIT_MS, round(policy.backoff_minutes * 2.0 ** (count - 1) * _MINUTE_MS))


def _below(ramp: Ramp | None, share_bp: int) -> tuple[int, int]:
    """(the next lower share, the ramp's step there); the same share where there is none."""
    step = ramp.step if ramp else 0
    if ramp is not None and not ramp.held and step > 0 and ramp.steps[step - 1].share_bp < share_bp:
        return ramp.steps[step - 1].share_bp, step - 1
    return max(share_bp // 2, min(share_bp, STEP_DOWN_FLOOR_BP)), step


def retry(state: Experiment, cmd: c.Retry, now_ms: int) -> Transition:
    """Back to the share before the step down, once that has been carried out."""
    setback, ramp = state.setback, state.ramp
    if not _in_force(state, cmd) or state.descent is not None or setback is None or setback.retry_at_ms is None:
        return state, []
    if ramp is not None:
        ramp = ramp.model_copy(update={"step": setback.from_step, "since_ms": now_ms})
    order = cmd.order
    return change(
        state, "test.retried", order.actor, order.reason, now_ms, order=order, ramp=ramp, setback=settled(setback),
        **at_share(state, setback.from_bp),
    )  # fmt: skip


def _in_force(state: Experiment, cmd: c.Advance | c.Hold | c.StepDown | c.Retry) -> bool:
    return state.status is TestStatus.RUNNING and state.stopping is None and state.version == cmd.order.decided_on
