"""Tests in words: each question has an answer that fits the figures, and none of it is code."""

from typing import Any

import pytest

from schemas.v1.common import Decision, TestStatus, rfc3339
from schemas.v1.control import RampStatus
from schemas.v1.experiment import Experiment, Ramp, RampStep, TestResult, VariantSummary, VerdictRecord
from schemas.v1.query import EffectStatus, GuardrailStatus, VerdictStatus
from schemas.v1.record import Report, TestChange
from services.router.domain import account, views
from services.router.domain.account.guardrails import rows, safety
from services.router.domain.account.timeline import timeline
from services.router.domain.account.words import plain, rule
from services.router.domain.suggesting import ModelStanding, suggested

T0 = 1_700_000_000_000


def errors(**fields: Any) -> GuardrailStatus:
    base = {"name": "error_rate_increase", "action": "rollback", "log_e": 0.1, "limit": 7.4, "metric": "errors", "quantity": "share",
            "threshold": 50.0, "unit": "%", "value_a": 1.0, "value_b": 1.2, "effect": 20.0, "effect_low": -40.0, "effect_high": 180.0,
            "n_a": 400, "n_b": 100, "text": "errors: 3 of B's 100 units against 4 of A's 400"}  # fmt: skip
    return GuardrailStatus.model_validate(base | fields)


def most_errors(**fields: Any) -> GuardrailStatus:
    own = {"name": "max_error_rate_percent", "relative": False, "threshold": 5.0, "effect": 1.2, "effect_low": 0.2, "effect_high": 3.1}
    return errors(**(own | fields))


def experiment(**fields: Any) -> Experiment:
    base = {"test_id": "t1", "version": 2, "status": TestStatus.RUNNING, "model_a": "stable", "model_b": "canary", "share_bp": 2000, "salt": "s",
            "created_ms": T0, "started_ms": T0, "ends_ms": T0 + 3_600_000, "duration_minutes": 60}  # fmt: skip
    return Experiment.model_validate(base | fields)


def live(test: Experiment, *guardrails: GuardrailStatus, effective: int | None = None, requests: int = 100, **verdict: Any) -> account.TestAccount:
    shown = VerdictStatus(test_id="t1", guardrails=list(guardrails), **verdict).model_dump(mode="json")
    metrics = {f"variant_{arm}": VariantSummary(request_count=requests, admitted=requests, outcomes={"ok": requests} if requests else {}) for arm in "ab"}
    status = views.status(test, T0 + 60_000, metrics=metrics, effective_bp=test.share_bp if effective is None else effective, verdict=shown,
                          running=["t1"], degraded=[])  # fmt: skip
    return account.live(status, test)


@pytest.mark.parametrize(("fields", "state", "tone", "words"), [
    ({}, "open", "plain", "B is between 40 % less and 180 % more than A."),
    ({"effect_high": 30.0, "effect_low": -99.99}, "within", "good", "B is at most 30 % more than A."),
    ({"effect_high": None}, "open", "plain", "B is at least 40 % less than A."),
    ({"effect_high": 1150.0}, "open", "plain", "B is between 40 % less and 12 times as much as A."),
    ({"effect": None, "effect_low": None, "effect_high": None}, "open", "plain", "Too few requests to say how B compares."),
    ({"value_a": 0.0, "value_b": 0.0}, "open", "plain", "Neither A nor B has had any."),
    ({"n_b": 0}, "no_data", "plain", "Nothing of B could be measured yet."),
    ({"log_e": 5.2}, "open", "plain", "B is between 40 % less and 180 % more than A."),
    ({"log_e": 5.2, "near": True}, "near", "wait", "Errors: 3 of B's 100 units against 4 of A's 400."),
    ({"log_e": 7.4}, "over", "bad", "Errors: 3 of B's 100 units against 4 of A's 400."),
    ({"fired": True, "log_e": 9.0}, "fired", "bad", "Errors: 3 of B's 100 units against 4 of A's 400."),
    ({"fired": True, "quiet_until_ms": T0}, "quiet", "wait", "B is between 40 % less and 180 % more than A."),
    ({"warned": True}, "worse", "wait", "B is between 40 % less and 180 % more than A."),
])  # fmt: skip
def test_a_guardrail_says_how_it_stands(fields: dict[str, Any], state: str, tone: str, words: str) -> None:
    (row,) = rows([errors(**fields)])
    assert (row.state, row.tone, row.text) == (state, tone, words)
    assert [one.name for one in rows([errors(name="calm"), errors(name="fires", fired=True)])] == ["fires", "calm"]
    assert (row.title, row.limit_text, row.action_text) == ("Error rate", "at most 50 % above A", "rolls back")


def test_a_warning_is_part_of_the_guardrail_that_it_warns_of() -> None:
    echo = errors(name="error_rate_increase_warning", action="warn", threshold=0.0, warned=True)
    (row,) = rows([errors(), echo])
    assert row.state == "worse"
    own = errors(name="ttft_increase", action="warn", metric="ttft")
    assert [row.name for row in rows([errors(), own])] == ["error_rate_increase", "ttft_increase"]


def test_a_level_that_both_models_exceed_is_not_held_against_the_canary() -> None:
    warning = most_errors(name="warning_error_rate", action="warn", threshold=2.0, warned=True, value_a=1.0)
    (row,) = rows([most_errors(), warning])
    assert (row.state, row.text) == ("high", "B is between 0.2 % and 3.1 %. B is above the warning level of 2 %.")
    (row,) = rows([most_errors(), warning.model_copy(update={"value_a": 2.5})])
    assert (row.state, row.text) == ("within", "B is between 0.2 % and 3.1 %. A and B are above the warning level of 2 %.")


def test_safety_is_the_gravest_of_all() -> None:
    assert safety(rows([errors(), most_errors()]), live=True).text == (
        "No evidence of harm: none of 2 guardrails has fired or is close to it. Errors of the canary: 1.2 % so far, at most 3.1 % (limit 5 %)."
    )
    assert safety(rows([errors(effect_high=10.0), most_errors()]), live=True).text.startswith("Yes: all 2 guardrails are shown to be within their limits.")
    near = safety(rows([errors(log_e=6.0, near=True), errors(name="latency_increase", metric="latency", fired=True, text="median 9 ms")]), live=True)
    assert (near.tone, near.text) == ("bad", "No. Latency: beyond the limit. Median 9 ms.")
    assert safety(rows([errors(log_e=6.0, near=True)]), live=True).tone == "wait"
    assert safety(rows([errors(n_b=0)]), live=True).text == "Nothing can be said yet: no request of the canary has finished."
    assert safety([], live=True).tone == "plain"


@pytest.mark.parametrize(("fields", "effective", "headline", "actions"), [
    ({}, None, "canary is being served 20 % of stable's traffic.", ["pause", "split", "stop", "rollback"]),
    ({}, 0, "canary is being served 0 % of stable's traffic now, held back from the 20 % of its split.", ["pause", "split", "stop", "rollback"]),
    ({"status": "paused"}, None, "canary stays at 20 % of stable's traffic: the test is paused until somebody resumes it.", ["resume", "split", "stop", "rollback"]),
    ({"status": "scheduled"}, None, "canary is going to be served 20 % of stable's traffic.", ["stop"]),
    ({"status": "rolling_back"}, None, "canary is being taken out step by step: 20 % of stable's traffic is left.", ["rollback", "stop"]),
    ({"stopping": {"reason": "", "actor": "", "at_ms": 1}}, None, "The test of canary is being stopped: the last requests are awaited.", []),
])  # fmt: skip
def test_the_headline_says_what_is_served_and_what_can_be_done(fields: dict[str, Any], effective: int | None, headline: str, actions: list[str]) -> None:
    told = live(experiment(**fields), errors(), effective=effective)
    assert (told.headline, told.actions) == (headline, actions)
    assert told.live


def test_a_gate_that_waits_for_somebody_can_be_approved() -> None:
    steps = [RampStep(share_bp=bp, gate="manual") for bp in (2000, 5000)]
    told = live(experiment(ramp=Ramp(steps=steps, since_ms=T0)), errors())
    assert told.actions[0] == "approve"
    assert isinstance(told.ramp, RampStatus)


def test_what_a_promotion_still_needs() -> None:
    conditions = [{"name": "sample_size", "met": True, "text": "200 requests"},
                  {"name": "errors_not_worse", "met": False, "text": "errors of B not above A's (ln E 0.20, needed 3.00)", "log_e": 0.2, "limit": 3.0,
                   "needs_requests": 900, "at_least": True}]  # fmt: skip
    told = live(experiment(primary_metric="ttft"), errors(), promotion={"met": False, "conditions": conditions},
                summary="needs about 900 more requests; how many in all cannot be told yet (errors_not_worse)")  # fmt: skip
    assert told.promotion is not None
    assert told.promotion.text == (
        "Not yet: 1 of 2 conditions are met. Needs about 900 more requests; how many in all cannot be told yet (errors not worse)."
    )
    assert [condition.at_least for condition in told.conditions] == [False, True]
    assert [(c.title, c.text, c.met) for c in told.conditions][1] == ("Errors not worse", "Errors of B not above A's.", False)
    done = live(experiment(), errors(), promotion={"met": True, "conditions": conditions[:1]}, summary="all conditions hold")
    assert done.promotion is not None
    assert (done.promotion.tone, done.promotion.text) == ("good", "All conditions hold.")


def test_no_traffic_is_told() -> None:
    assert live(experiment(), errors(n_b=0), requests=0).subline == "No request for stable has come since the test began."


@pytest.mark.parametrize(("failed", "rescued", "told"), [
    (0, 0, "0 requests of A and 9 of B have finished."),
    (1, 1, "0 requests of A and 9 of B have finished. The one that B failed got A's answer instead."),
    (9, 9, "0 requests of A and 9 of B have finished. All 9 that B failed got A's answer instead."),
    (9, 7, "0 requests of A and 9 of B have finished. 7 of the 9 that B failed got A's answer instead: the others failed for their callers."),
])  # fmt: skip
def test_what_callers_saw_of_the_canarys_failures_is_told(failed: int, rescued: int, told: str) -> None:
    arm = VariantSummary(request_count=9, error_count=failed, fallback_count=rescued)
    assert ended(metrics_summary={"variant_b": arm}).subline == told


def ended(read: float = 1.0, **fields: Any) -> account.TestAccount:
    verdict = VerdictRecord(decision=Decision.ROLLBACK, reason="r", rule="error_rate_increase", at_ms=T0, tick=T0 // 1000)
    base = {"test_id": "t1", "status": TestStatus.ROLLED_BACK, "decision": Decision.ROLLBACK, "verdict": verdict,
            "reason": "error_rate_increase: errors: 9 of B's 9 units (100 %) against 0 of A's 30 (0 %) (ln E 8.31, needed 7.38)",
            "models": {"variant_a": "stable", "variant_b": "canary"}, "traffic_split_percent": 20.0, "start_time": rfc3339(T0),
            "end_time": rfc3339(T0 + 90_000), "metrics_summary": {"variant_b": VariantSummary(request_count=9, outcomes={"timeout": 9})}}  # fmt: skip
    result = TestResult.model_validate(base | fields)
    changes = [TestChange(id="1", at_ms=T0, kind="started", share_bp=2000, actor="ops"), TestChange(id="2", at_ms=T0 + 9, kind="rolled_back", share_bp=0)]
    evidence: dict[str, Any] = {"evidence": "complete" if read == 1 else "reading", "progress": read}
    report = Report(test_id="t1", at_ms=T0, result=result, changes=changes, **evidence, status=VerdictStatus(
        test_id="t1", guardrails=[errors(fired=True)], effect=EffectStatus(metric="latency", hold="too few units")), configuration=experiment())  # fmt: skip
    return account.ended(report)


def test_why_it_was_rolled_back() -> None:
    told = ended()
    assert told.headline == "canary was rolled back: stable serves everything again."
    assert told.why is not None
    assert told.why.text == "Error rate passed its limit. Errors: 9 of B's 9 units (100 %) against 0 of A's 30 (0 %)."
    assert (told.status_text, told.tone, told.elapsed_minutes, told.actions) == ("Rolled back", "bad", 1.5, [])
    assert [(o.title, o.bad, o.b_percent) for o in told.outcomes] == [("Timeouts", True, 100.0)]
    assert [one.title for one in told.timeline] == ["Rolled back", "Started"]
    assert ("Automatic rollback", "on") in told.configuration
    assert ([one.state for one in told.guardrails], told.reading) == (["fired"], None)
    half = ended(read=0.4)  # half of the evidence says other things than all of it
    assert (half.guardrails, half.safety, half.effect, half.reading) == ([], None, None, 0.4)
    assert half.why == told.why
    by_hand = ended(reason="operator: looks wrong to me")
    assert by_hand.why is not None
    assert by_hand.why.text == "Operator. Looks wrong to me."


@pytest.mark.parametrize(("decision", "headline", "tone"), [
    (Decision.PROMOTE_B, "canary is better than stable: promote it.", "good"),
    (Decision.KEEP_A, "canary is not better than stable: keep stable.", "wait"),
    (Decision.INCONCLUSIVE, "The test of canary against stable ended without a decision.", "plain"),
    (None, "The test of canary against stable has ended.", "plain"),
])  # fmt: skip
def test_how_it_ended(decision: Decision | None, headline: str, tone: str) -> None:
    told = ended(status=TestStatus.COMPLETED, decision=decision, reason="enough seen")
    assert (told.headline, told.tone) == (headline, tone)


def test_the_time_line_has_changes_and_what_alerts_say_beyond_them() -> None:
    changes = [TestChange(id="1", at_ms=T0, kind="started", actor="ops", share_bp=2000)]
    alerts = [
        {"id": "a", "level": "INFO", "title": "Test started", "message": "m", "incident": "t1.started", "time": rfc3339(T0 + 20)},
        {"id": "b", "level": "CRITICAL", "title": "Warning limit exceeded: ttft_increase", "message": "slow", "incident": "x", "time": rfc3339(T0 + 50)},
        {"id": "c", "level": "INFO", "title": "Other", "message": "", "incident": "y", "at_ms": T0 + 70, "resolved": True},
    ]
    found = timeline(changes, alerts)
    assert [(one.title, one.tone) for one in found] == [
        ("Info: Other (over)", "plain"), ("Critical: Warning limit exceeded: time to first token", "bad"), ("Started", "good"),
    ]  # fmt: skip
    assert found[-1].split_percent == 20.0


def test_names_of_code_are_not_for_people() -> None:
    assert plain("latency_increase is near firing (ln E 5.21, hold from 5.00)") == "Latency is near firing."
    assert rule("ttft_increase_2_warning") == "Time to first token"
    assert rule("invalid_json_increase") == "Invalid JSON"
    assert plain("") == ""
    assert plain("needs about 116443 more of 1.23456 at 2026 in ab_test_12345") == "Needs about 116,443 more of 1.23456 at 2026 in ab_test_12345."
    assert plain("model 'my_canary' is fine") == "Model 'my_canary' is fine."


def test_a_start_form_begins_with_the_last_test_or_with_names_that_speak() -> None:
    ready = [ModelStanding(name=name, state="ready", ready_workers=1) for name in ("alpha", "canary", "stable")]
    away = ModelStanding(name="gone", state="unavailable")
    assert suggested([*ready, away], [], []) == ("stable", "canary")
    assert suggested(ready[:2], [], []) == ("alpha", "canary")
    last = TestResult(test_id="t0", status=TestStatus.COMPLETED, models={"variant_a": "alpha", "variant_b": "stable"}, end_time=rfc3339(T0))
    assert suggested(ready, [], [last]) == ("alpha", "stable")
    assert suggested(ready, [experiment()], [last]) == ("alpha", None)
    assert suggested([away], [], []) == (None, None)
