"""The experiment's state machine: ``apply(state, command, now_ms) -> (state, events)``, pure.

    scheduled -> running <-> paused -> rolling_back -> completed | rolled_back | failed

Every change raises ``version`` by one and numbers its events ``<test>.<version>.<n>`` from 1; a command
that changes nothing returns the very state it was given. Terminal states are final.
"""

from collections.abc import Callable, Iterable
from typing import Any

from schemas import subjects
from schemas.v1.common import Decision, TestStatus, rfc3339
from schemas.v1.events import TestEvent
from schemas.v1.experiment import (
    Experiment,
    OutboxEvent,
    RollbackOrder,
    ScheduledRollback,
    StopRequest,
    TestResult,
    VerdictRecord,
)
from services.router.domain import commands as c
from services.router.domain import slots
from services.router.domain.refusals import Conflict, NotFound, Unprocessable

RECENT = 20
"""Results that an entry carries along for histories that have not taken them yet."""

ROLLBACK_FLOOR_BP = 100
"""A gradual rollback ends when its next step would be below this share."""

NO_VERDICT = "no_verdict"
"""Rule of a decision for which the monitor gave no verdict in time."""

_CONFIGURED = frozenset({"test.started", "test.scheduled"})

Transition = tuple[Experiment, list[OutboxEvent]]


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
    return state.result or _result(state, None, None)


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
    new = Experiment(
        test_id=cmd.test_id,
        version=1,
        status=TestStatus.RUNNING if starts <= now_ms else TestStatus.SCHEDULED,
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
        digests=dict(cmd.digests),
        config_hash=cmd.config_hash,
        tags=dict(cmd.tags),
        actor=cmd.actor,
        recent=recent[:RECENT],
        outbox=list(state.outbox) if state else [],
    )
    started = "test.started" if new.status is TestStatus.RUNNING else "test.scheduled"
    return _emit(new, started, cmd.actor, None, now_ms)


def _launch(state: Experiment, _cmd: c.Launch, now_ms: int) -> Transition:
    if state.status is not TestStatus.SCHEDULED or state.stopping is not None:
        return state, []
    ends = now_ms + round(state.duration_minutes * 60_000)
    return _change(
        state, "test.started", state.actor, "its scheduled time has come", now_ms,
        status=TestStatus.RUNNING, started_ms=now_ms, ends_ms=ends,
    )  # fmt: skip


def _change_split(state: Experiment, cmd: c.ChangeSplit, now_ms: int) -> Transition:
    _not_stopping(state)
    if state.status is TestStatus.ROLLING_BACK:
        raise Conflict(
            f"test '{state.test_id}' is being rolled back: its split only goes down; start a new test to try again",
            code="rolling_back",
        )
    if cmd.share_bp == state.share_bp:
        return state, []
    return _resplit(state, cmd.share_bp, cmd.actor, None, now_ms)


def _pause(state: Experiment, cmd: c.Pause, now_ms: int) -> Transition:
    _not_stopping(state)
    if state.status is not TestStatus.RUNNING:
        raise Conflict(
            f"test '{state.test_id}' is {state.status}: only a running test can be paused", code="not_running"
        )
    return _change(state, "test.paused", cmd.actor, None, now_ms, status=TestStatus.PAUSED)


def _resume(state: Experiment, cmd: c.Resume, now_ms: int) -> Transition:
    _not_stopping(state)
    if state.status is not TestStatus.PAUSED:
        raise Conflict(
            f"test '{state.test_id}' is {state.status}: only a paused test can be resumed", code="not_paused"
        )
    return _change(state, "test.resumed", cmd.actor, None, now_ms, status=TestStatus.RUNNING)


def _begin_stop(state: Experiment, cmd: c.BeginStop, now_ms: int) -> Transition:
    if state.stopping is not None:
        return state, []
    new = _next(state, stopping=StopRequest(reason=cmd.reason, actor=cmd.actor, at_ms=now_ms))
    return new, []


def _complete(state: Experiment, cmd: c.Complete, now_ms: int) -> Transition:
    if state.stopping is None:
        raise Conflict(f"test '{state.test_id}' is not being stopped: stop it first", code="not_stopping")
    done = _next(state, status=TestStatus.COMPLETED, ended_ms=now_ms, stopping=None, rollback_at=None)
    done.result = _result(done, cmd.decision, cmd.reason).model_copy(
        update={
            "verdict": cmd.verdict or _bare(state, cmd.decision, NO_VERDICT, cmd.reason, now_ms),
            "metrics_summary": dict(cmd.metrics_summary),
        }
    )
    return _emit(done, "test.completed", state.stopping.actor, cmd.reason, now_ms, with_result=True)


def _begin_rollback(state: Experiment, cmd: c.BeginRollback, now_ms: int) -> Transition:
    _not_stopping(state)
    if state.status is TestStatus.ROLLING_BACK:
        return state, []
    if state.status is TestStatus.SCHEDULED:
        return _rolled_back(state, cmd.order, now_ms)
    moved = state.model_copy(
        update={"status": TestStatus.ROLLING_BACK, "rollback": cmd.order, "rollback_at": None}
    )
    return _step(moved, cmd.order, now_ms)


def _schedule_rollback(state: Experiment, cmd: c.ScheduleRollback, now_ms: int) -> Transition:
    _not_stopping(state)
    if state.status is TestStatus.ROLLING_BACK:
        raise Conflict(f"test '{state.test_id}' is already being rolled back", code="rolling_back")
    if state.ends_ms is not None and cmd.at_ms >= state.ends_ms:
        raise Unprocessable(
            f"at is not before the test's end at {rfc3339(state.ends_ms)}: give an earlier time", param="at"
        )
    planned = ScheduledRollback(at_ms=cmd.at_ms, speed=cmd.speed, order=cmd.order)
    reason = f"rollback at {rfc3339(cmd.at_ms)} ({cmd.speed}): {cmd.order.reason}"
    return _change(state, "test.rollback_scheduled", cmd.order.actor, reason, now_ms, rollback_at=planned)


def _step_rollback(state: Experiment, cmd: c.StepRollback, now_ms: int) -> Transition:
    if state.status is not TestStatus.ROLLING_BACK or state.version != cmd.version or state.rollback is None:
        return state, []
    return _step(state, state.rollback, now_ms)


def _step(state: Experiment, order: RollbackOrder, now_ms: int) -> Transition:
    half = state.share_bp // 2
    if half < ROLLBACK_FLOOR_BP:
        return _rolled_back(state, order, now_ms)
    return _resplit(state, half, order.actor, f"gradual rollback: {order.reason}", now_ms)


def _rollback(state: Experiment, cmd: c.Rollback, now_ms: int) -> Transition:
    return _rolled_back(state, cmd.order, now_ms)


def _rolled_back(state: Experiment, order: RollbackOrder, now_ms: int) -> Transition:
    done = _next(
        state,
        status=TestStatus.ROLLED_BACK,
        ended_ms=now_ms,
        stopping=None,
        rollback_at=None,
        rollback=order,
        share_bp=0,
        slots=[],
    )
    # The result tells the split that the test ran at, not the 0 that ended it.
    done.result = _result(done, Decision.ROLLBACK, order.reason).model_copy(
        update={
            "verdict": order.verdict
            or _bare(state, Decision.ROLLBACK, order.rule, order.reason, order.at_ms),
            "traffic_split_percent": state.share_bp / 100,
        }
    )
    return _emit(done, "test.rolled_back", order.actor, order.reason, now_ms, with_result=True)


def _bare(state: Experiment, decision: Decision, rule: str, reason: str, at_ms: int) -> VerdictRecord:
    """The record of a decision that rests on no evidence of the monitor's: an operator's, a breaker's, nobody's."""
    return VerdictRecord(
        decision=decision, reason=reason, rule=rule, at_ms=at_ms, split_bp=state.share_bp,
        digests=dict(state.digests), config_hash=state.config_hash,
    )  # fmt: skip


def _fail(state: Experiment, cmd: c.Fail, now_ms: int) -> Transition:
    done = _next(state, status=TestStatus.FAILED, ended_ms=now_ms, stopping=None, rollback_at=None)
    verdict = _bare(state, Decision.INCONCLUSIVE, "failed", cmd.reason, now_ms)
    done.result = _result(done, Decision.INCONCLUSIVE, cmd.reason).model_copy(update={"verdict": verdict})
    return _emit(done, "test.failed", cmd.actor, cmd.reason, now_ms, with_result=True)


_HANDLERS: dict[type[Any], Callable[[Experiment, Any, int], Transition]] = {
    c.Launch: _launch,
    c.ChangeSplit: _change_split,
    c.Pause: _pause,
    c.Resume: _resume,
    c.BeginStop: _begin_stop,
    c.Complete: _complete,
    c.BeginRollback: _begin_rollback,
    c.ScheduleRollback: _schedule_rollback,
    c.StepRollback: _step_rollback,
    c.Rollback: _rollback,
    c.Fail: _fail,
}


def _not_stopping(state: Experiment) -> None:
    if state.stopping is not None:
        raise Conflict(
            f"test '{state.test_id}' is being stopped: wait for its result in GET /v1/ab-testing/tests/{state.test_id}",
            code="stopping",
        )


def _resplit(state: Experiment, share_bp: int, actor: str, reason: str | None, now_ms: int) -> Transition:
    return _change(
        state, "test.split_changed", actor, reason, now_ms,
        share_bp=share_bp, slots=slots.resize(state.slots, share_bp),
    )  # fmt: skip


def _next(state: Experiment, **fields: Any) -> Experiment:
    return state.model_copy(update={"version": state.version + 1, **fields})


def _change(
    state: Experiment, kind: str, actor: str, reason: str | None, now_ms: int, **fields: Any
) -> Transition:
    return _emit(_next(state, **fields), kind, actor, reason, now_ms)


def _emit(
    state: Experiment, kind: str, actor: str, reason: str | None, now_ms: int, *, with_result: bool = False
) -> Transition:
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
        order=state.rollback,
        configuration=state.configuration if kind in _CONFIGURED or with_result else None,
    )
    event = OutboxEvent(
        id=f"{state.test_id}.{state.version}.1",
        subject=subjects.event(kind),
        type=kind,
        at_ms=now_ms,
        data=data.model_dump(mode="json", exclude_none=True),
    )
    return state.model_copy(update={"outbox": [*state.outbox, event]}), [event]


def _result(state: Experiment, decision: Decision | None, reason: str | None) -> TestResult:
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
