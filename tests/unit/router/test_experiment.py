"""The state machine, rule by rule."""

import dataclasses

import pytest

from schemas import subjects
from schemas.v1.common import Decision, TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.experiment import Experiment, RollbackOrder, VariantSummary, VerdictRecord
from services.router.domain import commands as c
from services.router.domain.descending import under_way, wanted_bp
from services.router.domain.experiment import RECENT, apply, new_test_id, result_of, without_events
from services.router.domain.refusals import Conflict, NotFound

T0 = 1_700_000_000_000
START = c.Start(
    test_id="ab_test_1", model_a="stable", model_b="canary", share_bp=1000, duration_minutes=60, salt="s", actor="ops",
    digests={"a": "sha256:a", "b": "sha256:b"}, config_hash="sha256:c", tags={"team": "x"},
)  # fmt: skip
ORDER = RollbackOrder(rule="error_rate", reason="errors 20 % of 50", actor="monitor", at_ms=T0 + 5, decided_on=1)


def started(**changes: object) -> Experiment:
    return apply(None, dataclasses.replace(START, **changes), T0)[0]


def run(state: Experiment, *commands: c.Command) -> Experiment:
    for command in commands:
        state, _ = apply(state, command, T0 + 1000)
    return state


def test_start_makes_a_running_entry_with_its_event_in_the_outbox() -> None:
    state, events = apply(None, START, T0)
    assert state.status is TestStatus.RUNNING
    assert (state.version, state.share_bp, state.slots) == (1, 1000, [(0, 1000)])
    assert (state.started_ms, state.ends_ms) == (T0, T0 + 3_600_000)
    assert state.outbox == events
    assert events[0].id == "ab_test_1.1.1"
    assert events[0].subject == subjects.event("test.started")
    assert TestEvent.model_validate(events[0].data).share_bp == 1000


def test_a_second_start_on_the_same_model_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="'ab_test_1' is already running") as refused:
        apply(started(), dataclasses.replace(START, test_id="ab_test_2"), T0)
    assert refused.value.param == "model_a"


def test_the_next_test_keeps_the_results_and_the_unpublished_events_of_the_ones_before() -> None:
    state = None
    for n in range(RECENT + 3):
        state, _ = apply(state, dataclasses.replace(START, test_id=f"t{n}"), T0)
        state, _ = apply(state, c.Rollback(f"t{n}", ORDER), T0)
    assert state is not None
    state, _ = apply(state, START, T0)
    assert [r.test_id for r in state.recent[:2]] == [f"t{RECENT + 2}", f"t{RECENT + 1}"]
    assert len(state.recent) == RECENT
    assert state.version == 1
    ids = [event.id for event in state.outbox]
    assert ids[0] == "t0.1.1"
    assert ids[-1] == "ab_test_1.1.1"
    assert len(set(ids)) == len(ids)


def test_a_schedule_in_the_future_waits_and_its_duration_begins_at_its_launch() -> None:
    state = started(starts_ms=T0 + 60_000)
    assert state.status is TestStatus.SCHEDULED
    assert not state.assigning
    assert state.outbox[0].type == "test.scheduled"
    launched, events = apply(state, c.Launch("ab_test_1"), T0 + 61_000)
    assert launched.status is TestStatus.RUNNING
    assert launched.ends_ms == T0 + 61_000 + 3_600_000
    assert [e.type for e in events] == ["test.started"]
    assert apply(launched, c.Launch("ab_test_1"), T0) == (launched, [])


def test_split_changes_move_units_one_way_and_say_so() -> None:
    grown, events = apply(started(), c.ChangeSplit("ab_test_1", 2500, "ops"), T0 + 1)
    assert (grown.version, grown.share_bp, grown.slots) == (2, 2500, [(0, 2500)])
    assert [e.id for e in events] == ["ab_test_1.2.1"]
    assert run(grown, c.ChangeSplit("ab_test_1", 1000, "ops")).slots == [(0, 1000)]


def test_the_same_split_again_changes_nothing() -> None:
    state = started()
    assert apply(state, c.ChangeSplit("ab_test_1", 1000, "ops"), T0)[0] is state


def test_pause_holds_the_split_and_assigns_on() -> None:
    paused = run(started(), c.Pause("ab_test_1", "ops"))
    assert paused.status is TestStatus.PAUSED
    assert paused.assigning
    assert paused.share_bp == 1000
    assert run(paused, c.Resume("ab_test_1", "ops")).status is TestStatus.RUNNING
    with pytest.raises(Conflict, match="only a running test"):
        run(paused, c.Pause("ab_test_1", "ops"))
    with pytest.raises(Conflict, match="only a paused test"):
        run(started(), c.Resume("ab_test_1", "ops"))


def test_a_stop_first_ends_assignment_and_then_completes_with_the_verdict() -> None:
    stopping = run(started(), c.BeginStop("ab_test_1", "enough", "ops"))
    assert stopping.live
    assert not stopping.assigning
    assert apply(stopping, c.BeginStop("ab_test_1", "again", "other"), T0)[0] is stopping
    for command in (c.ChangeSplit("ab_test_1", 5, "o"), c.Pause("ab_test_1", "o"), c.Resume("ab_test_1", "o")):
        with pytest.raises(Conflict, match="being stopped"):
            apply(stopping, command, T0)
    verdict = VerdictRecord(decision=Decision.PROMOTE_B, reason="B is 8 % faster", rule="promotion", at_ms=T0)
    summary = {"variant_b": VariantSummary(request_count=7)}
    done, events = apply(
        stopping, c.Complete("ab_test_1", Decision.PROMOTE_B, "B is 8 % faster", verdict, summary), T0 + 9000
    )
    assert (done.status, done.version, done.stopping) == (TestStatus.COMPLETED, 3, None)
    assert done.result is not None
    assert done.result.decision is Decision.PROMOTE_B
    assert done.result.end_time == "2023-11-14T22:13:29.000Z"
    assert done.result.metrics_summary["variant_b"].request_count == 7
    event = TestEvent.model_validate(events[0].data)
    assert event.result == done.result
    assert event.actor == "ops"


def test_completing_without_a_stop_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="not being stopped"):
        run(started(), c.Complete("ab_test_1", Decision.KEEP_A, "x"))


def test_rollback_ends_the_test_at_once_also_during_a_stop_or_a_pause() -> None:
    for state in (
        started(),
        run(started(), c.BeginStop("ab_test_1", "enough", "ops")),
        run(started(), c.Pause("ab_test_1", "ops")),
        started(starts_ms=T0 + 60_000),
    ):
        done, events = apply(state, c.Rollback("ab_test_1", ORDER), T0 + 2000)
        assert (done.status, done.share_bp, done.slots, done.stopping) == (TestStatus.ROLLED_BACK, 0, [], None)
        assert [e.type for e in events] == ["test.rolled_back"]
        assert done.result is not None
        assert (done.result.decision, done.result.reason) == (Decision.ROLLBACK, ORDER.reason)
        assert done.result.traffic_split_percent == 10.0


def test_the_same_rollback_order_twice_is_one_rollback() -> None:
    done = run(started(), c.Rollback("ab_test_1", ORDER))
    assert apply(done, c.Rollback("ab_test_1", ORDER), T0) == (done, [])
    with pytest.raises(NotFound):
        apply(done, c.Rollback("ab_test_1", ORDER.model_copy(update={"rule": "operator"})), T0)


def descend(state: Experiment) -> Experiment:
    """The whole next step, as a stable model without load can take it."""
    descent = under_way(state)
    assert descent is not None
    return run(state, c.Descend("ab_test_1", state.version, wanted_bp(state, descent)))


def test_a_gradual_rollback_halves_until_the_floor_and_drops_stale_steps() -> None:
    before = started(share_bp=2000)
    state, events = apply(before, c.BeginRollback("ab_test_1", ORDER), T0)
    assert [(e.type, e.data["share_bp"], e.data["reason"]) for e in events] == [("test.rolling_back", 2000, ORDER.reason)]
    assert (state.status, state.share_bp, state.slots) == (TestStatus.ROLLING_BACK, 2000, before.slots)
    with pytest.raises(Conflict, match="only goes down"):
        run(state, c.ChangeSplit("ab_test_1", 3000, "ops"))
    for stale in (c.Descend("ab_test_1", state.version - 1, 1000), c.Descend("ab_test_1", state.version, 2000)):
        assert apply(state, stale, T0)[0] is state
    shares = []
    while state.live:
        shares.append(state.share_bp)
        state = descend(state)
    assert shares == [2000, 1000, 500, 250, 125]
    assert state.status is TestStatus.ROLLED_BACK
    assert state.rollback == ORDER
    assert state.descent is None
    assert {e.type for e in state.outbox[2:-1]} == {"test.split_changed"}
    assert state.outbox[2].data["reason"] == f"gradual rollback: {ORDER.reason}"


def test_a_gradual_rollback_goes_on_after_a_part_of_a_step_and_says_what_it_waits_for() -> None:
    state = run(started(share_bp=2000), c.BeginRollback("ab_test_1", ORDER))
    waiting, events = apply(state, c.Wait("ab_test_1", state.version, "until 'a' has room"), T0)
    assert (waiting.version, waiting.share_bp, events) == (state.version + 1, 2000, [])
    assert waiting.descent is not None
    assert waiting.descent.waiting == "until 'a' has room"
    assert apply(waiting, c.Wait("ab_test_1", waiting.version, "until 'a' has room"), T0)[0] is waiting
    assert apply(waiting, c.Wait("ab_test_1", state.version, "until noon"), T0)[0] is waiting
    part = run(waiting, c.Descend("ab_test_1", waiting.version, 1700))
    assert part.descent is not None
    assert (part.share_bp, part.descent.waiting, part.descent.stepped_ms) == (1700, "", T0 + 1000)
    assert descend(part).share_bp == 850


def test_a_gradual_rollback_of_a_canary_that_gets_nothing_is_over_at_once() -> None:
    for state in (started(share_bp=0), started(starts_ms=T0 + 60_000)):
        assert run(state, c.BeginRollback("ab_test_1", ORDER)).status is TestStatus.ROLLED_BACK


def test_fail_says_why() -> None:
    failed = run(started(), c.Fail("ab_test_1", "model unloaded", "system"))
    assert failed.status is TestStatus.FAILED
    assert result_of(failed).reason == "model unloaded"


def test_a_command_for_another_test_of_the_key_finds_nothing() -> None:
    with pytest.raises(NotFound, match="'old' is not running"):
        run(started(), c.Pause("old", "ops"))
    with pytest.raises(NotFound):
        apply(None, c.Rollback("ab_test_1", ORDER), T0)


def test_taking_events_out_of_the_outbox_is_no_change_of_the_test() -> None:
    state = started()
    assert without_events(state, ["other"]) is state
    cleared = without_events(state, ["ab_test_1.1.1"])
    assert (cleared.outbox, cleared.version) == ([], 1)


def test_ids_sort_by_time_and_are_safe_as_a_token() -> None:
    ids = [new_test_id(ms, bytes([255 - n] * 4)) for n, ms in enumerate((1, 255, 256, T0, T0 + 1))]
    assert ids == sorted(ids)
    assert ids[0].startswith("ab_test_")
    assert all(subjects.token(test_id) == test_id for test_id in ids)
    with pytest.raises(ValueError, match="at least 4"):
        new_test_id(T0, b"abc")
