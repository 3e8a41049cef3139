"""The experiment's state machine: ``apply(state, command, now_ms) -> (state, events)``, pure.

    scheduled -> running <-> paused -> rolling_back -> completed | rolled_back | failed

Every change raises ``version`` by one and numbers its events ``<test>.<version>.<n>`` from 1; a command
that changes nothing returns the very state it was given. Terminal states are final.
"""

from collections.abc import Callable, Iterable
from typing import Any

from schemas.v1.common import Decision, TestStatus, rfc3339
from schemas.v1.experiment import Experiment, Ramp, ScheduledRollback, StopRequest, TestResult
from services.router.domain import commands as c
from services.router.domain import descending, ramping, slots
from services.router.domain.refusals import Conflict, NotFound, Unprocessable
from services.router.domain.transitions import (
    Transition,
    at_share,
    bare_verdict,
    change,
    emit,
    ended,
    following,
    not_stopping,
    result,
    settled,
)

RECENT = 20
"""Results that an entry carries along for histories that have not taken them yet."""

NO_VERDICT = "no_verdict"
"""Rule of a decision for which the monitor gave no verdict in time."""


def new_test_id(now_ms: int, random: bytes) -> str:
    """``ab_test_`` and hex digits that sort by time: 12 of the Unix milliseconds, then the random bytes'."""
    if len(random) < 4:
        raise ValueError("a test id needs at least 4 random bytes")
    return f"ab_test_{now_ms:012x}{random.hex()}"


def apply(state: Experiment | None, command: c.Command, now_ms: int) -> Transition:
    """The entry after the command, and the events that this adds to its outbox.

    ``state`` is the entry of the command's ``model_a``, None when there is none. Raises Conflict (409) when the
    command does not fit the state and NotFound (404) when its test does not run.
    """
    if isinstance(command, c.Start):
        return _start(state, command, now_ms)
    if state is None or state.test_id != command.test_id or not state.live:
        if isinstance(command, c.Rollback) and state is not None and _already(state, command):
            return state, []
        raise NotFound(
            f"test '{command.test_id}' is not running: GET /v1/ab-testing/status lists the running tests",
            param="test_id", code="test_not_running",
        )  # fmt: skip
    return _HANDLERS[type(command)](state, command, now_ms)


def without_events(state: Experiment, published: Iterable[str]) -> Experiment:
    """The entry without events that have been published; no change of the test, so the version stays."""
    gone = set(published)
    left = [event for event in state.outbox if event.id not in gone]
    return state if len(left) == len(state.outbox) else state.model_copy(update={"outbox": left})


def result_of(state: Experiment) -> TestResult:
    """The test in the shape of a result; of a live one without end, decision and reason."""
    return state.result or result(state, None, None)


def _already(state: Experiment, command: c.Rollback) -> bool:
    return state.test_id == command.test_id and state.rollback == command.order


def _start(state: Experiment | None, cmd: c.Start, now_ms: int) -> Transition:
    if state is not None and state.live:
        raise Conflict(
            f"test '{state.test_id}' is already running on model '{cmd.model_a}': stop it first, "
            "or start a test on another model_a",
            param="model_a", code="test_already_running",
        )  # fmt: skip
    recent = [r for r in (state.result, *state.recent) if r is not None] if state else []
    starts = now_ms if cmd.starts_ms is None else max(now_ms, cmd.starts_ms)
    running = starts <= now_ms
    new = Experiment(
        test_id=cmd.test_id,
        version=1,
        status=TestStatus.RUNNING if running else TestStatus.SCHEDULED,
        model_a=cmd.model_a,
        model_b=cmd.model_b,
        share_bp=cmd.share_bp,
        slots=slots.resize([], cmd.share_bp),
        salt=cmd.salt,
        unit_salt_version=cmd.unit_salt_version,
        created_ms=now_ms,
        started_ms=starts,
        ends_ms=starts + round(cmd.duration_minutes * 60_000),
        duration_minutes=cmd.duration_minutes,
        auto_rollback=cmd.auto_rollback,
        success_criteria=cmd.success_criteria,
        failure_criteria=cmd.failure_criteria,
        thresholds=cmd.thresholds,
        policies=dict(cmd.policies),
        check_interval_seconds=cmd.check_interval_seconds,
        primary_metric=cmd.primary_metric,
        configured=list(cmd.configured),
        guardrails=list(cmd.guardrails),
        ramp=Ramp(steps=list(cmd.ramp), since_ms=now_ms if running else 0) if cmd.ramp else None,
        retry=cmd.retry,
        min_duration_minutes=cmd.min_duration_minutes,
        preset=cmd.preset,
        change_type=cmd.change_type,
        digests=dict(cmd.digests),
        config_hash=cmd.config_hash,
        tags=dict(cmd.tags),
        actor=cmd.actor,
        recent=recent[:RECENT],
        outbox=list(state.outbox) if state else [],
    )
    started = "test.started" if running else "test.scheduled"
    return emit(new, started, cmd.actor, None, now_ms)


def _launch(state: Experiment, _cmd: c.Launch, now_ms: int) -> Transition:
    if state.status is not TestStatus.SCHEDULED or state.stopping is not None:
        return state, []
    ends = now_ms + round(state.duration_minutes * 60_000)
    return change(
        state, "test.started", state.actor, "its scheduled time has come", now_ms,
        status=TestStatus.RUNNING, started_ms=now_ms, ends_ms=ends, ramp=ramping.begun(state.ramp, now_ms),
    )  # fmt: skip


def _change_split(state: Experiment, cmd: c.ChangeSplit, now_ms: int) -> Transition:
    not_stopping(state)
    if state.status is TestStatus.ROLLING_BACK:
        raise Conflict(
            f"test '{state.test_id}' is being rolled back: its split only goes down; start a new test to try again",
            code="rolling_back",
        )
    fields = {
        **at_share(state, cmd.share_bp),
        "ramp": ramping.held(state.ramp, cmd.actor, again=cmd.share_bp != state.share_bp),
        "descent": None,
        "setback": settled(state.setback),
    }
    if all(getattr(state, name) == value for name, value in fields.items()):
        return state, []
    return change(state, "test.split_changed", cmd.actor, None, now_ms, **fields)


def _pause(state: Experiment, cmd: c.Pause, now_ms: int) -> Transition:
    not_stopping(state)
    if state.status is not TestStatus.RUNNING:
        raise Conflict(
            f"test '{state.test_id}' is {state.status}: only a running test can be paused", code="not_running"
        )
    return change(state, "test.paused", cmd.actor, None, now_ms, status=TestStatus.PAUSED)


def _resume(state: Experiment, cmd: c.Resume, now_ms: int) -> Transition:
    not_stopping(state)
    if state.status is not TestStatus.PAUSED:
        raise Conflict(
            f"test '{state.test_id}' is {state.status}: only a paused test can be resumed", code="not_paused"
        )
    # What made somebody pause may have passed or not: the step has to prove itself anew.
    ramp = ramping.begun(state.ramp, now_ms)
    return change(state, "test.resumed", cmd.actor, None, now_ms, status=TestStatus.RUNNING, ramp=ramp)


def _begin_stop(state: Experiment, cmd: c.BeginStop, now_ms: int) -> Transition:
    if state.stopping is not None:
        return state, []
    return following(state, stopping=StopRequest(reason=cmd.reason, actor=cmd.actor, at_ms=now_ms)), []


def _complete(state: Experiment, cmd: c.Complete, now_ms: int) -> Transition:
    if state.stopping is None:
        raise Conflict(f"test '{state.test_id}' is not being stopped: stop it first", code="not_stopping")
    done = ended(state, now_ms, status=TestStatus.COMPLETED)
    done.result = result(done, cmd.decision, cmd.reason).model_copy(
        update={
            "verdict": cmd.verdict or bare_verdict(state, cmd.decision, NO_VERDICT, cmd.reason, now_ms),
            "metrics_summary": dict(cmd.metrics_summary),
        }
    )
    return emit(done, "test.completed", state.stopping.actor, cmd.reason, now_ms, with_result=True)


def _schedule_rollback(state: Experiment, cmd: c.ScheduleRollback, now_ms: int) -> Transition:
    not_stopping(state)
    if state.status is TestStatus.ROLLING_BACK:
        raise Conflict(f"test '{state.test_id}' is already being rolled back", code="rolling_back")
    if state.ends_ms is not None and cmd.at_ms >= state.ends_ms:
        raise Unprocessable(
            f"at is not before the test's end at {rfc3339(state.ends_ms)}: give an earlier time", param="at"
        )
    planned = ScheduledRollback(at_ms=cmd.at_ms, speed=cmd.speed, order=cmd.order)
    reason = f"rollback at {rfc3339(cmd.at_ms)} ({cmd.speed}): {cmd.order.reason}"
    return change(state, "test.rollback_scheduled", cmd.order.actor, reason, now_ms, rollback_at=planned)


def _fail(state: Experiment, cmd: c.Fail, now_ms: int) -> Transition:
    done = ended(state, now_ms, status=TestStatus.FAILED)
    verdict = bare_verdict(state, Decision.INCONCLUSIVE, "failed", cmd.reason, now_ms)
    done.result = result(done, Decision.INCONCLUSIVE, cmd.reason).model_copy(update={"verdict": verdict})
    return emit(done, "test.failed", cmd.actor, cmd.reason, now_ms, with_result=True)


_HANDLERS: dict[type[Any], Callable[[Experiment, Any, int], Transition]] = {
    c.Launch: _launch,
    c.ChangeSplit: _change_split,
    c.Pause: _pause,
    c.Resume: _resume,
    c.Approve: ramping.approve,
    c.Advance: ramping.advance,
    c.Hold: ramping.hold,
    c.StepDown: ramping.step_down,
    c.Retry: ramping.retry,
    c.BeginStop: _begin_stop,
    c.Complete: _complete,
    c.BeginRollback: descending.begin_rollback,
    c.ScheduleRollback: _schedule_rollback,
    c.Descend: descending.descend,
    c.Wait: descending.wait,
    c.Rollback: descending.rollback,
    c.Fail: _fail,
}
