"""Ramps, steps down and retries: what goes on by itself, what holds it, and what it says meanwhile."""

import json
from typing import Any

import pytest

from schemas.v1.common import Decision, TestStatus
from schemas.v1.experiment import Descent, Experiment, Setback, StopRequest
from services.monitor.domain import actions, alerts, ramp, verdict
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.promotion import conditions, nearest
from services.monitor.domain.reading import Reading, Span, schedule
from services.router.domain.commands import ChangeSplit
from tests.unit.monitor.rollout import Rollout, ramped
from tests.unit.monitor.synthetic import START_S, TEST, Arm, Traffic

STEPPING: dict[str, Any] = {
    "guardrails": [{"metric": "error_rate", "margin_percent": 300, "action": "step_down"}],
    "retry": {"max_retries": 2, "backoff_minutes": 0.5},
    "failure_criteria": {"max_error_rate_percent": 90}, "thresholds": {"critical_error_rate": 90},
}  # fmt: skip


def rollout(test: Experiment, seed: int = 1, **fields: Any) -> Rollout:
    return Rollout(test, Traffic(seed, per_second=60), **fields)


def planned(evaluator: TestEvaluator) -> ramp.Plan:
    plan = ramp.plan(evaluator)
    assert plan is not None
    return plan


def until(done: Rollout, kind: str) -> None:
    while all(finding.kind != kind for finding in done.evaluator.findings):
        done.run(1)


def test_a_good_canary_goes_up_step_by_step_and_each_step_says_why() -> None:
    done = rollout(ramped(500, 2000, 5000)).run(60)
    assert done.story() == [("ramped", 2000), ("ramped", 5000)]
    first, second = done.asked
    assert (first.action, first.order.rule, first.order.actor) == ("advance", "ramp", "monitor")
    assert actions.event_id(first) == f"{TEST}.3.advance"
    assert second.order.decided_on == 4
    assert first.order.reason.startswith("ramp from step 1 of 3 (5 %) to 20 %: ")
    assert "of 20 requests of B finished at this split" in first.order.reason
    assert "no guardrail is near firing (the nearest is" in first.order.reason
    assert first.order.verdict is not None
    assert all(condition["met"] for condition in first.order.verdict.details["conditions"])
    assert planned(done.evaluator).waits_for == "the ramp is at its last step, 50 %"


@pytest.mark.parametrize("gate", ["none", "statistical"])
def test_soak_and_sample_are_waited_for_at_every_gate(gate: str) -> None:
    done = rollout(ramped(500, 5000, soak_minutes=0.5, min_requests=10, gate=gate)).run(29)
    assert done.asked == []
    plan = planned(done.evaluator)
    assert plan.waits_for.startswith("step 1 of 2 (5 %) waits: 0.45 of 0.5 minutes have passed")
    done = rollout(ramped(500, 5000, min_requests=200, gate=gate)).run(20)
    assert done.asked == []
    plan = planned(done.evaluator)
    (sample,) = [condition for condition in plan.conditions if condition.name == "sample_size"]
    missing = 200 - int(sample.value or 0)
    assert sample.needs_requests == missing * 20
    assert f"needs about {missing * 20} more requests (" in plan.waits_for
    assert "minutes at this rate)" in plan.waits_for
    assert verdict.status(done.evaluator).ramp == plan.outlook()


def test_a_manual_gate_waits_for_approval_and_says_so_once_nothing_else_is_missing() -> None:
    done = rollout(ramped(500, 5000, gate="manual"))
    done.run(3)
    assert planned(done.evaluator).approval == ""
    assert "minutes have passed" in planned(done.evaluator).waits_for
    done.run(12)
    plan = planned(done.evaluator)
    assert done.asked == []
    assert "POST /v1/ab-testing/approve or `cypria approve`" in plan.approval
    alert_id, alert = alerts.approval(done.evaluator, plan.approval)
    assert alert_id == f"{TEST}.alert.approval.0"
    assert alert.level == "INFO"
    assert plan.waits_for == "step 1 of 2 (5 %) waits for approval: POST /v1/ab-testing/approve or `cypria approve`"
    done.approve()
    done.run(2)
    assert done.story() == [("approved", 500), ("ramped", 5000)]


def test_an_approval_ahead_of_time_does_not_shorten_soak_or_sample() -> None:
    done = rollout(ramped(500, 5000, gate="manual", soak_minutes=0.5))
    done.approve()
    done.run(29)
    assert done.asked == []
    done.run(5)
    assert [asked.action for asked in done.asked] == ["advance"]


@pytest.mark.parametrize(("change", "words"), [
    ({"status": TestStatus.PAUSED}, "the test is paused"),
    ({"status": TestStatus.ROLLING_BACK}, "the test is rolling back"),
    ({"stopping": StopRequest(reason="r", actor="ops", at_ms=1)}, "the test is being stopped"),
    ({"descent": Descent(target_bp=100)}, "a reduction of the split is under way"),
])  # fmt: skip
def test_what_disturbs_holds_the_ramp(change: dict[str, Any], words: str) -> None:
    done = rollout(ramped(500, 5000, gate="none", soak_minutes=0.2)).run(5)
    done.evaluator.experiment = done.evaluator.experiment.model_copy(update=change)
    done.run(20)
    assert done.asked == []
    assert words in planned(done.evaluator).waits_for


def test_a_split_set_by_an_operator_holds_the_ramp() -> None:
    done = rollout(ramped(500, 5000)).run(3)
    done.command(ChangeSplit(TEST, share_bp=700, actor="ops"))
    done.run(20)
    assert done.asked == []
    assert "the ramp goes no further by itself: the split was set by ops" in planned(done.evaluator).waits_for


def test_without_ramp_and_setback_nothing_is_planned() -> None:
    done = rollout(ramped(500).model_copy(update={"ramp": None})).run(3)
    assert ramp.plan(done.evaluator) is None
    assert verdict.status(done.evaluator).ramp is None


def test_a_guardrail_near_firing_holds_a_statistical_gate_but_not_an_open_one() -> None:
    def slower(done: Rollout, _second: int) -> None:
        done.traffic.b = Arm(median_ms=320)

    done = rollout(ramped(500, 5000, min_requests=1, soak_minutes=60), script=slower)
    assert not any(one.near for one in done.evaluator.statuses())
    while not nearest(done.evaluator, trial_only=True)[1] >= nearest(done.evaluator, trial_only=True)[2]:
        done.run(1)
    assert done.evaluator.fired is None
    assert nearest(done.evaluator, trial_only=True)[0] in {one.name for one in done.evaluator.statuses() if one.near}
    soaked = {gate: ramped(500, 5000, min_requests=1, soak_minutes=0, gate=gate) for gate in ("statistical", "none")}
    done.evaluator.experiment = soaked["statistical"]
    assert "is near firing (ln E" in planned(done.evaluator).waits_for
    assert planned(done.evaluator).action is None
    done.evaluator.experiment = soaked["none"]
    assert planned(done.evaluator).action == "advance"


def test_a_sample_ratio_mismatch_holds_a_statistical_gate() -> None:
    class Skewed(Traffic):
        def _assign(self) -> tuple[str, int]:
            variant, unit = super()._assign()
            return ("b" if self.rng.random() < 0.3 else variant), unit

    done = Rollout(ramped(500, 5000), Skewed(1, per_second=60)).run(20)
    assert done.asked == []
    assert "sample ratio mismatch" in planned(done.evaluator).waits_for


def test_a_fired_rollback_that_only_alerts_holds_the_ramp_at_any_gate() -> None:
    def bad(done: Rollout, _second: int) -> None:
        done.traffic.b = Arm(errors=0.8)

    done = rollout(ramped(1000, 5000, gate="none", soak_minutes=1, auto_rollback=False), script=bad).run(100)
    assert done.evaluator.fired is not None
    assert done.asked == []
    assert f"{done.evaluator.fired.rule} has fired" in planned(done.evaluator).waits_for


def failing(done: Rollout, _second: int) -> None:
    """A canary that fails at 20 % and more, as one does that lacks capacity."""
    done.traffic.a = Arm(errors=0.02)
    done.traffic.b = Arm(errors=0.6 if done.evaluator.experiment.share_bp >= 2000 else 0.02)


def test_down_up_again_and_out() -> None:
    done = rollout(ramped(500, 2000, 5000, **STEPPING), script=failing).run(500)
    assert done.story() == [
        ("ramped", 2000),
        ("stepped_down", 2000), ("split_changed", 500), ("retried", 2000),
        ("stepped_down", 2000), ("split_changed", 500), ("retried", 2000),
        ("rolled_back", 0),
    ]  # fmt: skip
    assert [asked.action for asked in done.asked] == ["advance", "step_down", "retry", "step_down", "retry"]
    assert len({actions.event_id(asked) for asked in done.asked}) == 5
    down, up = done.asked[1:3]
    assert down.order.rule == "error_rate_increase"
    assert down.order.verdict is not None
    assert down.order.verdict.decision is Decision.INCONCLUSIVE
    assert down.order.verdict.log_e is not None
    assert up.order.reason == "retry 1 of 2, back to 20 %: the backoff is over and nothing has fired since"
    record = verdict.decide(done.evaluator)
    assert record.rule == "error_rate_increase"
    assert "3rd failure after 2 retries" in record.reason


def test_a_canary_that_is_cured_goes_on_up_after_its_retry() -> None:
    def cured(done: Rollout, second: int) -> None:
        failing(done, second)
        if any(kind == "stepped_down" for kind, _ in done.story()):
            done.traffic.b = Arm(errors=0.02)

    done = rollout(ramped(500, 2000, 5000, **STEPPING), script=cured).run(250)
    assert [kind for kind, _ in done.story()] == ["ramped", "stepped_down", "split_changed", "retried", "ramped"]
    assert done.evaluator.experiment.share_bp == 5000
    assert done.evaluator.fired is None


def test_a_retry_waits_for_its_time_and_says_for_how_long() -> None:
    done = rollout(ramped(500, 2000, **STEPPING), script=failing)
    while "stepped_down" not in dict(done.story()):
        done.run(1)
    done.run(3)
    plan = planned(done.evaluator)
    assert plan.action is None
    assert plan.waits_for.startswith("retry 1 of 2, back to 20 %, waits: 0.4")
    assert "minutes to the retry" in plan.waits_for


@pytest.mark.parametrize("reachable", [True, False])
def test_an_action_is_asked_for_until_the_test_shows_it(reachable: bool) -> None:
    """On the version of the moment: what was decided on an older one says nothing."""
    done = rollout(ramped(2000, **STEPPING), script=failing)
    done.active = False
    until(done, "step_down")
    evaluator, version = done.evaluator, done.evaluator.experiment.version
    asked = actions.wanted(evaluator, done.done, monitoring_active=True)
    assert asked is not None
    assert (asked.action, asked.order.decided_on) == ("step_down", version)
    done.command(ChangeSplit(TEST, share_bp=2100, actor="ops"))
    again = actions.wanted(evaluator, done.done, monitoring_active=True)
    assert again is not None
    assert again.order.decided_on == version + 1
    assert again.order.verdict == asked.order.verdict
    if reachable:
        evaluator.experiment = evaluator.experiment.model_copy(
            update={"setback": Setback(count=1, since_ms=1000 * START_S, retry_at_ms=1000 * (START_S + 900))}
        )
        assert actions.carried_out(evaluator, again) == {f"{TEST}.done.step_down.error_rate_increase"}
        assert actions.wanted(evaluator, actions.carried_out(evaluator, again), monitoring_active=True) is None
    else:
        # A canary that is still bad when the quiet time is over is found anew; an old finding is not acted on.
        evaluator.second = (evaluator.trials["step_down"].quiet_until or 0) + 1
        assert actions.wanted(evaluator, done.done, monitoring_active=True) is None


def test_a_step_down_counts_as_made_however_findings_and_setbacks_are_numbered() -> None:
    """Monitoring was stopped at the first one: the second finding is the test's first setback."""
    done = rollout(ramped(2000, **STEPPING), script=failing)
    done.active = False
    while len([f for f in done.evaluator.findings if f.kind == "step_down"]) < 2:
        done.run(1)
    done.active = True
    done.run(40)
    assert [asked.action for asked in done.asked if asked.action == "step_down"] == ["step_down"]
    assert done.evaluator.experiment.setback is not None
    assert done.evaluator.experiment.setback.count == 1


@pytest.mark.parametrize(("active", "auto"), [(False, True), (True, False)])
def test_switched_off_nothing_is_asked_for_but_a_ramp_without_auto_rollback_goes_on(active: bool, auto: bool) -> None:
    done = rollout(ramped(500, 2000, auto_rollback=auto, **STEPPING), script=failing, active=active).run(150)
    assert [asked.action for asked in done.asked] == (["advance"] if active else [])
    if active:
        assert any(f.kind == "step_down" for f in done.evaluator.findings)


def pausing(done: Rollout, second: int) -> None:
    done.traffic.a = Arm(client_errors=0.02)
    done.traffic.b = Arm(client_errors=0.6 if second < 100 else 0.02)


def test_a_pause_is_asked_for_once_and_resuming_goes_on() -> None:
    test = ramped(2000, 5000, guardrails=[{"metric": "client_error_rate", "margin_percent": 50, "action": "pause"}])
    done = rollout(test, script=pausing)
    while not done.asked:
        done.run(1)
    done.run(100)
    assert [asked.action for asked in done.asked] == ["pause"]
    assert done.evaluator.experiment.status is TestStatus.PAUSED
    assert done.story() == [("paused", 2000)]
    assert "the test is paused" in planned(done.evaluator).waits_for
    done.resume()
    done.run(60)
    assert [asked.action for asked in done.asked] == ["pause", "advance"]


def test_a_pause_that_could_not_be_asked_for_is_forgotten_after_a_while() -> None:
    test = ramped(2000, guardrails=[{"metric": "client_error_rate", "margin_percent": 50, "action": "pause"}])
    done = rollout(test, script=pausing, active=False)
    until(done, "pause")
    asked = actions.wanted(done.evaluator, set(), monitoring_active=True)
    assert asked is not None
    assert asked.action == "pause"
    done.evaluator.second = (done.evaluator.second or 0) + actions.PAUSE_FOR_S
    assert actions.wanted(done.evaluator, set(), monitoring_active=True) is None


@pytest.mark.parametrize("every", [0, 7])
def test_a_replay_of_a_rollout_with_retries_derives_the_very_verdict(every: int) -> None:
    test = ramped(500, 2000, 5000, **STEPPING)
    done = rollout(test, seed=4, script=failing, every=every).run(500)
    fired = done.evaluator.fired
    assert fired is not None
    recorded = verdict.finding_record(done.evaluator, fired)
    assert "3rd failure after 2 retries" in recorded.reason
    reading = Reading(test, 0, Span(recorded.details["windows_seq"], None), schedule(done.changes()))
    for message in done.messages:
        reading.take(*message)
    reading.close()
    assert reading.verdict() == recorded
    assert [f.key for f in reading.evaluator.findings] == [f.key for f in done.evaluator.findings]
    assert json.dumps(reading.evaluator.to_dict()) == json.dumps(done.evaluator.to_dict())
    limits = reading.series().build(reading.evaluator).limits
    assert set(limits) == {"error_rate_increase"}
    shares = [share for share in reading.series().build(reading.evaluator).share_bp if share]
    assert set(shares) == {500, 2000}


def test_a_replay_of_pauses_and_resumptions_finds_them_again() -> None:
    test = ramped(2000, guardrails=[{"metric": "client_error_rate", "margin_percent": 50, "action": "pause"}])

    def resuming(done: Rollout, second: int) -> None:
        done.traffic.a, done.traffic.b = Arm(client_errors=0.02), Arm(client_errors=0.6)
        if second in {60, 120}:
            done.resume()

    done = rollout(test, seed=5, script=resuming).run(150)
    assert [kind for kind, _ in done.story()] == ["paused", "resumed", "paused", "resumed", "paused"]
    found = [(f.key, f.tick, f.log_e, f.limit) for f in done.evaluator.findings]
    assert [key for key, *_ in found if key.startswith("pause")] == [
        "pause.client_error_increase", "pause.client_error_increase.2", "pause.client_error_increase.3",
    ]  # fmt: skip
    reading = Reading(test, 0, Span(None, None), schedule(done.changes()))
    for message in done.messages:
        reading.take(*message)
    assert [(f.key, f.tick, f.log_e, f.limit) for f in reading.evaluator.findings] == found
    assert reading.verdict() == verdict.decide(done.evaluator)


def test_what_was_stepped_down_is_not_promoted_before_it_was_tried_again() -> None:
    done = rollout(ramped(2000, **STEPPING), script=failing)
    until(done, "step_down")
    done.evaluator.epoch += 1
    for check in done.evaluator.checks:
        check.start_epoch(720)
    (quiet,) = [c for c in conditions(done.evaluator) if c.name == "guardrails"]
    assert not quiet.met
    assert quiet.text == "B was stepped down and has not been tried again"
