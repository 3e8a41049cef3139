"""The decision at stop, and the numbers in its reason."""

import pytest

from schemas.v1.common import Decision
from schemas.v1.experiment import VerdictRecord
from services.monitor.domain import alerts, verdict
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.monitor.domain.promotion import conditions
from services.monitor.domain.waiting import Condition, waiting
from tests.unit.monitor.synthetic import TEST, Arm, Traffic, experiment, stream


def evaluated(traffic: Traffic, seconds: int, **fields: object) -> TestEvaluator:
    evaluator = TestEvaluator(experiment(share_bp=traffic.share_bp, **fields))
    ticker = Ticker(TEST)
    for message in stream(traffic, seconds):
        tick = ticker.add(*message)
        if tick is not None:
            evaluator.tick(tick)
    tick = ticker.open_tick()
    assert tick is not None
    evaluator.tick(tick)
    return evaluator


def test_no_data_is_inconclusive() -> None:
    record = verdict.decide(evaluated(Traffic(1, per_second=0), 10))
    assert record.decision is Decision.INCONCLUSIVE
    assert record.rule == "no_data"
    only_a = verdict.decide(evaluated(Traffic(1, share_bp=0), 10))
    assert only_a.decision is Decision.INCONCLUSIVE
    assert "B 0" in only_a.reason


def test_a_better_canary_is_promoted() -> None:
    """Errors are what a promotion waits for, so both arms have many here and the margin is wide."""
    traffic = Traffic(
        2, share_bp=5000, per_second=60, a=Arm(errors=0.2, median_ms=300), b=Arm(errors=0.1, median_ms=200)
    )
    evaluator = evaluated(
        traffic, 120, failure_criteria={"max_error_rate_percent": 90}, thresholds={"critical_error_rate": 90}
    )
    record = verdict.decide(evaluator)
    assert record.decision is Decision.PROMOTE_B, record.reason
    assert all(condition.met for condition in conditions(evaluator))
    assert "canary" in record.reason
    assert record.log_e is not None
    assert record.value == pytest.approx(-33, abs=8)
    status = verdict.status(evaluator)
    assert status.promotion["met"] is True
    assert "promote" in status.summary
    assert VerdictRecord.model_validate_json(record.model_dump_json()) == record


def test_a_worse_canary_within_the_margin_keeps_a() -> None:
    record = verdict.decide(evaluated(Traffic(3, share_bp=5000, per_second=60, b=Arm(median_ms=225)), 300))
    assert record.decision is Decision.KEEP_A
    assert record.rule == "latency_increase_warning"
    assert "%" in record.reason


def test_an_equal_canary_is_shown_not_to_improve() -> None:
    record = verdict.decide(
        evaluated(
            Traffic(4, share_bp=5000, per_second=60), 150, success_criteria={"min_improvement_threshold": 20}
        )
    )
    assert record.decision is Decision.KEEP_A
    assert record.rule == "no_improvement"
    assert "20 %" in record.reason


def test_little_evidence_is_inconclusive_and_says_how_much_is_missing() -> None:
    record = verdict.decide(evaluated(Traffic(5, per_second=5, b=Arm(median_ms=180)), 60))
    assert record.decision is Decision.INCONCLUSIVE
    assert "more requests" in record.reason
    assert record.details["conditions"]
    assert any(not condition["met"] for condition in record.details["conditions"])


def test_a_time_is_given_where_everything_missing_can_be_foreseen() -> None:
    evaluator = evaluated(Traffic(6, per_second=20), 4)
    sample = [condition for condition in conditions(evaluator) if condition.name == "sample_size"]
    assert not sample[0].met
    text = waiting(evaluator, sample)
    assert text.startswith("needs about ")
    assert "minutes at this rate" in text


def test_a_mismatched_split_can_promote_nothing() -> None:
    evaluator = TestEvaluator(experiment())
    ticker = Ticker(TEST)
    for sequence, time_ms, window in stream(Traffic(7), 100):
        for cell in window.cells:
            cell.share_bp = 4000
        tick = ticker.add(sequence, time_ms, window)
        if tick is not None:
            evaluator.tick(tick)
    record = verdict.decide(evaluator)
    assert record.decision is Decision.INCONCLUSIVE
    assert record.rule == "sample_ratio_mismatch"


def test_a_fired_guardrail_decides() -> None:
    evaluator = evaluated(Traffic(8, b=Arm(errors=0.6)), 30)
    record = verdict.decide(evaluator)
    assert record.decision is Decision.ROLLBACK
    assert record == verdict.decide(TestEvaluator.from_dict(evaluator.experiment, evaluator.to_dict()))
    fired = evaluator.fired
    assert fired is not None
    event_id, request = alerts.rollback_request(evaluator, fired)
    assert event_id == f"{TEST}.3.rollback"
    assert request.order.verdict == record
    assert verdict.status(evaluator).summary.startswith("rollback: ")


def test_other_primary_metrics_say_what_they_lack() -> None:
    assert "nothing was measured" in conditions(evaluated(Traffic(9), 30, primary_metric="cost"))[-1].text


def test_errors_as_primary_metric() -> None:
    traffic = Traffic(10, share_bp=5000, per_second=60, a=Arm(errors=0.3), b=Arm(errors=0.1))
    evaluator = evaluated(
        traffic, 60, primary_metric="error_rate", failure_criteria={"max_error_rate_percent": 90},
        thresholds={"critical_error_rate": 90},
    )
    condition = conditions(evaluator)[-1]
    assert condition.met
    assert condition.value == pytest.approx(-66, abs=10)


def test_an_impossible_improvement_is_named() -> None:
    evaluator = evaluated(Traffic(11), 20, success_criteria={"min_improvement_threshold": 100})
    assert "impossible" in conditions(evaluator)[-1].text


def test_few_sticky_users_hold_a_promotion() -> None:
    traffic = Traffic(12, users=30, share_bp=5000, per_second=60, b=Arm(median_ms=100))
    evaluator = evaluated(traffic, 60)
    assert "too few units" in conditions(evaluator)[-1].text
    assert verdict.decide(evaluator).decision is Decision.INCONCLUSIVE


def test_summaries_count_what_the_api_shows() -> None:
    traffic = Traffic(13, b=Arm(errors=0.2, client_errors=0.1))
    evaluator = evaluated(traffic, 20, policies={"on_monitor_down": "hold"})
    b = evaluator.totals.summaries()["b"]
    assert b.request_count + b.client_errors == b.admitted
    assert b.in_flight == 0
    assert b.error_rate == pytest.approx(100 * b.error_count / b.request_count)
    assert b.latency_p95_ms > b.latency_p50_ms > 0
    assert b.throughput_rps == pytest.approx(b.request_count / 20)


def test_alerts_tell_what_will_happen() -> None:
    evaluator = evaluated(Traffic(14, b=Arm(errors=0.6)), 30, auto_rollback=False)
    fired = evaluator.fired
    assert fired is not None
    off = alerts.alert_of(evaluator.experiment, fired, monitoring_active=True)
    assert "auto_rollback is off" in off.message
    stopped = evaluator.experiment.model_copy(update={"auto_rollback": True})
    assert "monitoring is stopped" in alerts.alert_of(stopped, fired, monitoring_active=False).message
    assert not alerts.acts(stopped, monitoring_active=False)
    assert alerts.acts(stopped, monitoring_active=True)
    assert off.level == "EMERGENCY"
    assert off.incident == f"{TEST}.rollback.{fired.rule}.1"


def test_nothing_is_promoted_before_its_minimum_duration() -> None:
    def judged(seconds: int) -> VerdictRecord:
        traffic = Traffic(2, share_bp=5000, per_second=60, a=Arm(errors=0.2, median_ms=300), b=Arm(errors=0.1, median_ms=200))
        evaluator = evaluated(
            traffic, seconds, min_duration_minutes=2.5, failure_criteria={"max_error_rate_percent": 90},
            thresholds={"critical_error_rate": 90},
        )  # fmt: skip
        first = conditions(evaluator)[0]
        assert (first.name, first.met) == ("min_duration", seconds > 150)
        return verdict.decide(evaluator)

    early = judged(120)
    assert (early.decision, early.rule) == (Decision.INCONCLUSIVE, "min_duration")
    assert "1.98 minutes have passed, at least 2.5 are asked for" in early.reason
    assert early.reason.endswith("needs 0.517 more minutes to its minimum duration")
    assert judged(152).decision is Decision.PROMOTE_B
    assert [c.name for c in conditions(evaluated(Traffic(1), 2)) if c.name == "min_duration"] == []


def test_what_is_known_of_the_wait_is_said_also_where_not_all_is() -> None:
    evaluator = evaluated(Traffic(6, per_second=20), 4)
    known = Condition(name="sample_size", met=False, text="", needs_requests=1200)
    more = Condition(name="latency_not_worse", met=False, text="", needs_requests=3000)
    unknown = Condition(name="errors_not_worse", met=False, text="")
    time = Condition(name="min_duration", met=False, text="", needs_requests=0, needs_minutes=12.0)
    assert waiting(evaluator, [known, more]).startswith("needs about 3000 more requests (")
    both = waiting(evaluator, [known, unknown, time])
    assert both.startswith("needs at least 1200 more requests (")
    assert "minutes at this rate); needs 12 more minutes to its minimum duration; " in both
    assert both.endswith("how many in all cannot be told yet (errors_not_worse)")
    assert waiting(evaluator, [unknown]) == "how many more requests it needs cannot be told yet (errors_not_worse)"
    assert waiting(evaluator, [time]) == "needs 12 more minutes to its minimum duration"
    assert "no growth so far" in waiting(evaluator, [])


def test_without_data_it_says_how_many_requests_it_needs_at_least() -> None:
    record = verdict.decide(evaluated(Traffic(1, per_second=0), 10, success_criteria={"min_sample_size": 300}))
    assert record.reason.startswith("no data to compare: A finished 0 requests and B 0; needs at least 1500 more requests;")


def test_a_promotion_says_what_to_do_next() -> None:
    traffic = Traffic(2, share_bp=5000, per_second=60, a=Arm(errors=0.2, median_ms=300), b=Arm(errors=0.1, median_ms=200))
    evaluator = evaluated(
        traffic, 120, failure_criteria={"max_error_rate_percent": 90}, thresholds={"critical_error_rate": 90}
    )
    assert verdict.decide(evaluator).reason.endswith("Next: make 'canary' the stable model")
    assert verdict.status(evaluator).summary == (
        "all conditions of a promotion hold: stop the test to promote B, then make 'canary' the stable model"
    )


def _by_errors(a: float, b: float, seconds: int = 40, share_bp: int = 5000, **fields: object) -> TestEvaluator:
    traffic = Traffic(9, share_bp=share_bp, per_second=60, a=Arm(errors=a), b=Arm(errors=b))
    return evaluated(
        traffic, seconds, primary_metric="error_rate", failure_criteria={"max_error_rate_percent": 90},
        thresholds={"critical_error_rate": 90}, **fields,
    )  # fmt: skip


def test_a_canary_without_any_error_is_promoted_by_those_of_the_stable_model() -> None:
    evaluator = _by_errors(0.05, 0.0)
    record = verdict.decide(evaluator)
    assert record.decision is Decision.PROMOTE_B, record.reason
    assert record.value == -100.0
    assert record.bound is not None
    assert -100.0 < record.bound < -5.0, "shown is the end of the interval that is nearer to none"
    condition = conditions(evaluator)[-1]
    failed = evaluator.totals.of("a").errors
    assert condition.text.startswith(f"error_rate of B -100.0 % by units with an error (0 of B, {failed} of A), asked for -5 % or less")
    effect = verdict.status(evaluator).effect
    assert effect is not None
    assert (effect.effect, effect.low, effect.hold) == (-100.0, -100.0, None)
    assert effect.high == record.bound
    assert TestEvaluator.from_dict(evaluator.experiment, evaluator.to_dict()).to_dict() == evaluator.to_dict()


def test_where_nobody_fails_another_metric_is_named() -> None:
    for errors, who in (((0.0, 0.0), "neither A nor B has had an error yet"), ((0.0, 0.02), "A has had no error yet")):
        evaluator = _by_errors(*errors, seconds=5)
        condition = conditions(evaluator)[-1]
        assert condition.text.startswith(f"error_rate: {who}, and B can only be shown to have fewer than A has")
        assert "another primary metric (latency, ttft, cost, thumbs, conversion or score)" in condition.text
        assert (condition.met, condition.needs_requests) == (False, None)
        assert waiting(evaluator, [condition]) == "how many more requests it needs cannot be told yet (primary_metric)"
        assert verdict.decide(evaluator).decision is Decision.INCONCLUSIVE


def test_few_errors_of_the_stable_model_say_how_many_requests_show_it() -> None:
    evaluator = _by_errors(0.05, 0.0, seconds=3)
    condition = conditions(evaluator)[-1]
    failed = evaluator.totals.of("a").errors
    assert 0 < failed < 9
    assert condition.needs_requests == pytest.approx(evaluator.totals.requests() * (9 / failed - 1), rel=0.2)
    assert not condition.at_least
    assert waiting(evaluator, [condition]).startswith(f"needs about {condition.needs_requests} more requests (")


def test_errors_of_a_few_units_hold_a_promotion_that_their_number_alone_would_allow() -> None:
    evaluator = _by_errors(0.05, 0.0)
    for bucket in range(128):
        evaluator.totals.buckets[5000]["errors"][1, bucket] += 1
    condition = conditions(evaluator)[-1]
    assert condition.log_e is not None
    assert condition.log_e >= verdict.LIMIT
    assert (condition.met, condition.needs_requests) == (False, None)
    assert "% of A's failed, which is no such improvement" in condition.text
    assert verdict.decide(evaluator).decision is not Decision.PROMOTE_B


def test_an_interval_that_excludes_what_is_asked_for_is_a_decision() -> None:
    """By units and, where both have 20 errors, by requests; each interval has half of the level."""
    by = set()
    for b in (0.0, 0.03, 0.06, 0.1):
        for seconds in (4, 10, 30, 60):
            evaluator = _by_errors(0.2, b, seconds=seconds)
            effect, condition = verdict.status(evaluator).effect, conditions(evaluator)[-1]
            assert effect is not None
            if effect.high is not None and effect.high < -5.0:
                assert condition.met, condition.text
                by.add("by units" in condition.text)
            assert effect.low is None or effect.effect is None or effect.low <= effect.effect
    assert by == {True, False}


def _fast_and_faultless(seconds: int, b: Arm | None = None, **success: float) -> TestEvaluator:
    traffic = Traffic(21, share_bp=5000, per_second=100, a=Arm(errors=0.0), b=b or Arm(errors=0.0, median_ms=150))
    return evaluated(traffic, seconds, success_criteria=success)


def _errors_of(evaluator: TestEvaluator) -> Condition:
    return next(condition for condition in conditions(evaluator) if condition.name == "errors_not_worse")


def test_a_faster_canary_without_any_error_is_promoted() -> None:
    evaluator = _fast_and_faultless(22, negligible_error_rate_percent=0.5)
    record = verdict.decide(evaluator)
    assert record.decision is Decision.PROMOTE_B, record.reason
    assert "errors 0.00 % against 0.00 %, at most the negligible 0.5 %" in record.reason
    units = evaluator.totals.of("b").units
    text = _errors_of(evaluator).text
    assert text.startswith(f"errors of B not above A's by 50 %, or at most 0.5 %: none of {units} units of B and 0 of A's had errors")
    assert text.endswith("; at most 0.5 % of B's is shown")
    assert TestEvaluator.from_dict(evaluator.experiment, evaluator.to_dict()).to_dict() == evaluator.to_dict()


def test_too_few_good_requests_say_how_many_more_show_a_negligible_rate() -> None:
    evaluator = _fast_and_faultless(6, negligible_error_rate_percent=0.1)
    condition = _errors_of(evaluator)
    units = evaluator.totals.of("b").units
    assert f"; about {5329 - units} more units of B without an error show it" in condition.text
    share = units / evaluator.totals.requests()
    assert condition.needs_requests == pytest.approx((5329 - units) / share, abs=2)
    record = verdict.decide(evaluator)
    assert (record.decision, record.rule) == (Decision.INCONCLUSIVE, "errors_not_worse")
    assert f"needs about {condition.needs_requests} more requests" in record.reason
    assert f"needs about {condition.needs_requests} more requests" in verdict.status(evaluator).summary


def test_a_test_from_before_there_was_a_negligible_rate_is_judged_as_then() -> None:
    evaluator = _fast_and_faultless(22)
    condition = _errors_of(evaluator)
    assert (condition.met, condition.log_e, condition.needs_requests) == (False, 0.0, None)
    assert condition.text.endswith("; without any error nothing can be compared, and no rate is negligible in this test")
    assert "negligible" not in evaluator.to_dict()["non_inferiority"]


def test_users_who_come_again_may_bring_fewer_new_units_than_those_before() -> None:
    traffic = Traffic(22, users=300, share_bp=5000, per_second=100, a=Arm(errors=0.0), b=Arm(errors=0.0))
    condition = _errors_of(evaluated(traffic, 10, success_criteria={"negligible_error_rate_percent": 0.1}))
    assert condition.needs_requests
    assert condition.at_least


def test_a_canary_whose_errors_are_above_the_negligible_rate_is_compared_with_control() -> None:
    evaluator = _fast_and_faultless(40, b=Arm(errors=0.01, median_ms=150), negligible_error_rate_percent=0.1)
    condition = _errors_of(evaluator)
    assert not condition.met
    assert condition.log_e is not None
    assert condition.log_e < 0


def test_callers_who_hang_up_more_often_on_the_canary_hold_its_promotion() -> None:
    evaluator = _fast_and_faultless(22, negligible_error_rate_percent=0.5)
    evaluator.totals.of("b").outcomes["client_cancel"] += evaluator.totals.of("b").done // 10
    record = verdict.decide(evaluator)
    assert (record.decision, record.rule) == (Decision.INCONCLUSIVE, "hung_up"), record.reason
    assert "of B's requests and 0.00 % of A's" in record.reason
    evaluator.totals.of("a").outcomes["client_cancel"] += evaluator.totals.of("a").done // 10
    assert verdict.decide(evaluator).decision is Decision.PROMOTE_B, "as often on A: nothing to do with B"


def test_a_few_units_of_many_failed_requests_are_not_negligible() -> None:
    evaluator = _fast_and_faultless(22, negligible_error_rate_percent=0.5)
    evaluator.totals.of("b").outcomes["timeout"] += evaluator.totals.of("b").done // 10
    condition = _errors_of(evaluator)
    assert not condition.met
    assert condition.text.endswith("% of B's requests failed, which is not negligible")
    assert verdict.decide(evaluator).decision is not Decision.PROMOTE_B
