"""Ramps, approvals, pauses, steps down and retries, rule by rule."""

import pytest

from schemas.v1.common import TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.experiment import Descent, Experiment, RampStep, RetryPolicy, RollbackOrder
from services.router.domain import commands as c
from services.router.domain.experiment import apply
from services.router.domain.refusals import Conflict

T0 = 1_700_000_000_000
ID = "ab_test_1"
SHARES = (100, 500, 1000)


def started(share: int = 100, gate: str = "statistical", ramp: tuple[int, ...] = SHARES, **fields: object) -> Experiment:
    steps = tuple(RampStep(share_bp=bp, soak_minutes=5, gate=gate) for bp in ramp)
    retry = RetryPolicy(max_retries=2, backoff_minutes=10)
    start = c.Start(ID, "stable", "canary", ramp[0] if ramp else share, 60, "s", "ops", ramp=steps, retry=retry, **fields)
    return apply(None, start, T0)[0]


def order(state: Experiment, reason: str = "all well", behind: int = 0) -> RollbackOrder:
    return RollbackOrder(rule="rule", reason=reason, actor="monitor", at_ms=T0, decided_on=state.version - behind)


def decided(kind: type, state: Experiment, behind: int = 0) -> c.Command:
    return kind(ID, order(state, behind=behind))


def act(state: Experiment, *kinds: type, at: int = T0) -> Experiment:
    for kind in kinds:
        new, _ = apply(state, decided(kind, state), at)
        assert new is not state, kind
        state = new
    return state


def do(state: Experiment, *commands: c.Command, at: int = T0) -> Experiment:
    for command in commands:
        state, _ = apply(state, command, at)
    return state


def landed(state: Experiment, at: int = T0) -> Experiment:
    """With the descent under way carried out."""
    assert state.descent is not None
    return do(state, c.Descend(ID, state.version, state.descent.target_bp), at=at)


def last_event(state: Experiment) -> TestEvent:
    return TestEvent.model_validate(state.outbox[-1].data)


def refused(state: Experiment) -> Conflict:
    with pytest.raises(Conflict) as exc:
        do(state, c.Approve(ID, "ops"))
    return exc.value


def test_a_ramp_begins_with_the_test_and_goes_up_step_by_step() -> None:
    state = started()
    assert state.ramp is not None
    assert (state.share_bp, state.ramp.step, state.ramp.since_ms) == (100, 0, T0)
    up = act(state, c.Advance, at=T0 + 9)
    assert up.ramp is not None
    assert (up.share_bp, up.slots, up.ramp.step, up.ramp.since_ms) == (500, [(0, 500)], 1, T0 + 9)
    event = last_event(up)
    assert (up.outbox[-1].type, event.share_bp, event.actor) == ("test.ramped", 500, "monitor")
    assert event.reason == "all well"
    assert event.order is not None
    assert event.order.rule == "rule"
    top = act(up, c.Advance)
    assert top.share_bp == 1000
    assert do(top, decided(c.Advance, top)) is top


def test_a_scheduled_ramp_begins_at_its_launch() -> None:
    state = started(starts_ms=T0 + 60_000)
    assert state.ramp is not None
    assert state.ramp.since_ms == 0
    assert do(state, decided(c.Advance, state)) is state
    launched = do(state, c.Launch(ID), at=T0 + 60_000)
    assert launched.ramp is not None
    assert launched.ramp.since_ms == T0 + 60_000


@pytest.mark.parametrize("kind", [c.Advance, c.Hold, c.StepDown, c.Retry])
def test_a_decision_is_good_for_its_version_of_a_running_test_and_only_once(kind: type) -> None:
    state = landed(act(started(), c.Advance, c.StepDown)) if kind is c.Retry else started()
    stale = decided(kind, state, behind=1)
    assert do(state, stale) is state
    done = act(state, kind)
    assert do(done, decided(kind, state)) is done
    assert done.version == state.version + 1
    for other in (do(state, c.Pause(ID, "ops")), do(state, c.BeginStop(ID, "enough", "ops"))):
        assert do(other, decided(kind, other)) is other
    rolling = do(state, c.BeginRollback(ID, order(state)))
    assert do(rolling, decided(kind, rolling)) is rolling


def test_a_manual_gate_waits_for_an_approval_and_needs_it_once() -> None:
    state = started(gate="manual")
    assert do(state, decided(c.Advance, state)) is state
    approved = do(state, c.Approve(ID, "alice"))
    assert approved.ramp is not None
    assert (approved.ramp.approved, approved.share_bp, approved.outbox[-1].type) == (0, 100, "test.approved")
    assert (last_event(approved).actor, last_event(approved).reason) == ("alice", "step 1 of 3, 1 %")
    assert refused(approved).code == "nothing_to_approve"
    second = act(approved, c.Advance)
    assert second.share_bp == 500
    assert do(second, decided(c.Advance, second)) is second
    third = act(do(second, c.Approve(ID, "alice")), c.Advance)
    assert "last step" in refused(third).message


def test_approval_is_refused_where_none_is_waited_for_and_says_why() -> None:
    cases = {
        "it has no ramp": started(ramp=()),
        "gate of its step 1 is statistical": started(),
        "it is scheduled": started(gate="manual", starts_ms=T0 + 9),
        "the split was set by ops": do(started(gate="manual"), c.ChangeSplit(ID, 300, "ops")),
        "it is rolling_back": do(started(gate="manual"), c.BeginRollback(ID, order(started()))),
    }
    for why, state in cases.items():
        exc = refused(state)
        assert (exc.status, exc.code) == (409, "nothing_to_approve")
        assert why in exc.message
    assert refused(do(started(gate="manual"), c.BeginStop(ID, "x", "ops"))).code == "stopping"
    paused = do(started(gate="manual"), c.Pause(ID, "ops"), c.Approve(ID, "ops"))
    assert paused.status is TestStatus.PAUSED


def test_a_split_set_by_hand_holds_the_ramp_for_good() -> None:
    for share in (300, 100):
        held = do(started(), c.ChangeSplit(ID, share, "ops"))
        assert held.ramp is not None
        assert (held.share_bp, held.ramp.held) == (share, "the split was set by ops")
        assert do(held, decided(c.Advance, held)) is held
        assert do(held, c.ChangeSplit(ID, share, "bob")) is held
    other = do(held, c.ChangeSplit(ID, 700, "bob"))
    assert other.ramp is not None
    assert other.ramp.held == "the split was set by bob"


def test_a_split_set_by_hand_ends_a_step_down_and_its_retry() -> None:
    down = act(started(), c.Advance, c.StepDown)
    set_ = do(down, c.ChangeSplit(ID, down.share_bp, "ops"))
    assert set_.descent is None
    assert set_.setback is not None
    assert (set_.setback.retry_at_ms, set_.setback.count) == (None, 1)
    assert do(set_, decided(c.Retry, set_)) is set_


def test_a_step_down_goes_to_the_step_before_and_plans_a_retry() -> None:
    up = act(started(), c.Advance, c.Advance)
    down = act(up, c.StepDown, at=T0 + 7)
    assert (down.share_bp, down.descent) == (1000, Descent(target_bp=500))
    assert down.ramp is not None
    assert down.setback is not None
    assert (down.ramp.step, down.ramp.since_ms) == (1, T0 + 7)
    assert (down.setback.count, down.setback.from_bp, down.setback.from_step) == (1, 1000, 2)
    assert (down.setback.rule, down.setback.retry_at_ms) == ("rule", T0 + 7 + 600_000)
    assert down.outbox[-1].type == "test.stepped_down"
    assert last_event(down).reason == "to 5 %, retry at 2023-11-14T22:23:20.007Z: all well"
    assert do(down, decided(c.Retry, down)) is down, "not before the step down is carried out"
    at_five = landed(down)
    assert (at_five.share_bp, at_five.descent, at_five.slots) == (500, None, [(0, 500)])
    assert last_event(at_five).reason == "step down to 5 % (rule)"
    assert do(at_five, decided(c.Advance, at_five)) is at_five, "only the retry goes up"
    back = act(at_five, c.Retry, at=T0 + 900_000)
    assert back.ramp is not None
    assert back.setback is not None
    assert (back.share_bp, back.ramp.step, back.ramp.since_ms, back.setback.retry_at_ms) == (1000, 2, T0 + 900_000, None)
    assert back.outbox[-1].type == "test.retried"
    assert last_event(back).reason == "all well"


def test_each_backoff_is_twice_the_one_before_and_the_last_step_down_has_no_retry() -> None:
    state = act(started(), c.Advance)
    waits = []
    for _ in range(2):
        state = act(state, c.StepDown)
        assert state.setback is not None
        waits.append((state.setback.retry_at_ms or 0) - T0)
        state = act(landed(state), c.Retry)
    assert waits == [600_000, 1_200_000]
    state = landed(act(state, c.StepDown))
    assert state.setback is not None
    assert (state.setback.count, state.setback.retry_at_ms) == (3, None)
    assert "no retry is left" in state.outbox[-2].data["reason"]
    for kind in (c.Retry, c.Advance):
        assert do(state, decided(kind, state)) is state


def test_without_a_step_before_a_step_down_is_to_half_and_ends_at_a_floor() -> None:
    state = started(2000, ramp=())
    shares = []
    for _ in range(6):
        state = act(state, c.StepDown)
        shares.append(state.descent.target_bp if state.descent else state.share_bp)
        state = landed(state) if state.descent else state
    assert shares == [1000, 500, 250, 125, 100, 100]
    assert state.setback is not None
    assert state.setback.count == 6
    assert "1 % is the lowest step, which stays" in last_event(state).reason
    for share in (50, 1, 0):
        low = act(started(share, ramp=()), c.StepDown)
        assert (low.share_bp, low.descent) == (share, None)


def test_a_second_step_down_before_the_retry_goes_lower_and_keeps_where_the_retry_goes() -> None:
    up = act(started(), c.Advance, c.Advance)
    twice = act(up, c.StepDown, c.StepDown)
    assert (twice.share_bp, twice.descent) == (1000, Descent(target_bp=100))
    assert twice.setback is not None
    assert (twice.setback.count, twice.setback.from_bp, twice.setback.from_step) == (2, 1000, 2)
    back = act(landed(twice), c.Retry)
    assert back.ramp is not None
    assert (back.share_bp, back.ramp.step) == (1000, 2)


def test_a_pause_holds_ramp_retry_and_step_down_and_a_resumed_step_soaks_anew() -> None:
    down = act(started(), c.Advance, c.StepDown)
    paused = do(down, c.Pause(ID, "ops"))
    assert do(paused, c.Descend(ID, paused.version, 100)) is paused
    assert do(paused, decided(c.Retry, paused)) is paused
    resumed = do(paused, c.Resume(ID, "ops"), at=T0 + 5000)
    assert resumed.ramp is not None
    assert (resumed.ramp.since_ms, resumed.descent, resumed.setback) == (T0 + 5000, down.descent, down.setback)
    assert landed(resumed).share_bp == 100


def test_the_monitors_pause_says_why_and_a_person_ends_it() -> None:
    paused = act(started(), c.Hold)
    assert paused.status is TestStatus.PAUSED
    assert (last_event(paused).actor, last_event(paused).reason) == ("monitor", "all well")
    assert do(paused, c.Resume(ID, "ops")).status is TestStatus.RUNNING


def test_a_rollback_is_not_held_by_a_pause_and_ends_what_was_planned() -> None:
    down = act(started(), c.Advance, c.StepDown)
    rolling = do(down, c.Pause(ID, "ops"), c.BeginRollback(ID, order(down, "looks bad")))
    assert rolling.setback is not None
    assert (rolling.status, rolling.descent, rolling.setback.retry_at_ms) == (TestStatus.ROLLING_BACK, Descent(), None)
    done = do(down, c.Rollback(ID, order(down)))
    assert done.setback is not None
    assert (done.descent, done.setback.retry_at_ms, done.setback.count) == (None, None, 1)
